"""Systems: what each engine can place where, how it runs that, and its own words for it."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from stowplan.errors import UnknownName
from stowplan.systems.base import System

_SYSTEMS = {
    "llama.cpp": ("stowplan.systems.llama_cpp", "LlamaCpp"),
    "accelerate": ("stowplan.systems.accelerate", "Accelerate"),
    "flexgen": ("stowplan.systems.flexgen", "Flexgen"),
}


def list_systems() -> list[str]:
    """Keys of the systems."""
    return list(_SYSTEMS)


def load_system(key: str) -> System:
    """A system by key.

    Raises:
        UnknownName: no such system.
    """
    if key not in _SYSTEMS:
        raise UnknownName("system", key, _SYSTEMS)
    module, name = _SYSTEMS[key]
    return cast(System, getattr(import_module(module), name)())
