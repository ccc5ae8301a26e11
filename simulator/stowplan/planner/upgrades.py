"""What would help: the same request planned again on a machine, or in a format, that differs in one thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stowplan.errors import StowplanError
from stowplan.machines import load_machine
from stowplan.machines.machine import Machine
from stowplan.models import load_model
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Planned, Request
from stowplan.systems import load_system
from stowplan.systems.base import RAM
from stowplan.units import format_bytes

_SMALLER = (
    "bf16",
    "f16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q4_k_m",
    "iq4_xs",
    "q3_k_m",
    "iq3_xxs",
    "iq2_m",
    "iq2_xxs",
    "iq1_m",
)
_LATEST_PCIE = 5
_MOST_GPUS = 2


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One change and what the best plan does with it.

    Attributes:
        title: the change in the user's words: "64 GiB more RAM".
        decode_tokens_per_s, ttft_s: of the new best plan.
        cost: its objective in seconds.
        quality: whether the answers of the model change with it.
    """

    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost: float
    quality: bool = False


def upgrades(system: str, request: Request, planned: Planned) -> list[Upgrade]:
    """Single changes, the most helpful first; a change that the machine cannot have is left out."""
    found: list[Upgrade] = []
    workload = planned.plan.workload
    asked = replace(request, workload=workload, batches=(), write_lp=None)
    for title, changed, quality in _candidates(asked, planned):
        request.progress(title)
        try:
            better = plan_for(system, changed)
        except StowplanError:  # the changed machine cannot run it either
            continue
        prediction = better.prediction
        found.append(Upgrade(title, prediction.decode_tokens_per_s, prediction.ttft_s, better.cost, quality))
    return sorted(found, key=lambda each: (each.cost, each.title))


def _candidates(request: Request, planned: Planned) -> Iterator[tuple[str, Request, bool]]:
    machine = request.setup.machine
    host = planned.prediction.memory_bytes[RAM]
    unified = bool(machine.gpus) and machine.gpus[0].unified
    if host.used > 0.9 * host.capacity:
        capacity = machine.memory.capacity.value
        title = f"{format_bytes(capacity)} more RAM"
        yield title, _on(request, _changed(machine, f"memory.capacity={2 * capacity / 2**30}GiB")), False
    dram = request.setup.figures.value("host.dram")
    if not unified:
        title = "RAM twice as fast (more channels)"
        yield title, _on(request, _changed(machine, f"memory.bandwidth={2 * dram / 1e9}GB/s")), False
    if machine.gpus and not unified and len(machine.gpus) < _MOST_GPUS:
        name = machine.gpus[0].name
        second = replace(machine, gpus=machine.gpus * 2, pcie=machine.pcie * 2)
        yield f"a second {name}", _on(request, second), False
    if machine.gpus and not unified and machine.gpus[0].pcie_generation < _LATEST_PCIE:
        generation = machine.gpus[0].pcie_generation + 1
        title = f"PCIe {generation}.0 on GPU and board"
        yield title, _on(request, _changed(machine, f"gpu.pcie.generation={generation}")), False
    quant = request.setup.model.quant
    if quant in _SMALLER[:-1]:
        smaller = _SMALLER[_SMALLER.index(quant) + (2 if quant == "bf16" else 1)]
        model = load_model(request.model_reference[0], smaller)
        setup = replace(request.setup, model=model)
        title = f"{smaller.upper()} instead of {quant.upper()}"
        yield title, replace(request, setup=setup, model_reference=(request.model_reference[0], smaller)), True


def _changed(machine: Machine, override: str) -> Machine:
    return load_machine(machine.spec, [*machine.settings, override])


def _on(request: Request, machine: Machine) -> Request:
    """The request on another machine, with that machine's figures."""
    engine = request.settings.get("engine")
    variant = str(engine) if engine is not None else None
    return replace(request, setup=make_setup(machine, request.setup.model, load_system("llama.cpp"), variant))
