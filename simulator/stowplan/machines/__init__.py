"""Readers of ``hwprofiles/``: parts, and machines that compose them.

Names are imported on first use, so that loading one machine reads only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stowplan.machines.compose import load_machine
    from stowplan.machines.library import (
        list_keys,
        load_cpu,
        load_disk,
        load_gpu,
        load_link,
        load_memory,
    )
    from stowplan.machines.machine import Cpu, Disk, Gpu, Link, Machine, Memory, Number, SourceKind
    from stowplan.machines.overrides import OVERRIDES
    from stowplan.machines.schema import SCHEMA, Field

__all__ = [
    "OVERRIDES",
    "SCHEMA",
    "Cpu",
    "Disk",
    "Field",
    "Gpu",
    "Link",
    "Machine",
    "Memory",
    "Number",
    "SourceKind",
    "list_keys",
    "load_cpu",
    "load_disk",
    "load_gpu",
    "load_link",
    "load_machine",
    "load_memory",
]

_HOME = {
    "load_machine": "compose",
    "list_keys": "library",
    "load_cpu": "library",
    "load_disk": "library",
    "load_gpu": "library",
    "load_link": "library",
    "load_memory": "library",
    "OVERRIDES": "overrides",
    "SCHEMA": "schema",
    "Field": "schema",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stowplan.machines' has no attribute '{name}'")
    return getattr(import_module(f"stowplan.machines.{_HOME.get(name, 'machine')}"), name)
