"""Plans that put everything on the GPU, and hold the settings that an engine's exporter is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stowplan.exports.places import part_bytes
from stowplan.plan import Plan, Workload, run_lengths
from stowplan.systems.base import Setup

SPEC = "rtx-3090 + epyc-7742 + ddr4-3200x8:512GiB + samsung-990-pro:4TB"


def plain_plan(setup: Setup, system: str, settings: Mapping[str, Any]) -> Plan:
    """Such a plan, of a system with its settings."""
    layers = [dict.fromkeys((*part_bytes(layer), "kv"), "gpu0") for layer in setup.model.layers]
    return Plan(
        system=system,
        machine=setup.machine.spec,
        model=setup.model.key,
        quant=setup.model.quant,
        workload=Workload(prompt=64, generate=16),
        layers=run_lengths(layers),
        embedding="gpu0",
        output="gpu0",
        settings=dict(settings),
    )
