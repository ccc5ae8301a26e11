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
    "vllm": ("stowplan.systems.vllm", "Vllm"),
}


def list_systems() -> list[str]:
    """Keys of the engines; published systems have a list of their own in `stowplan.systems.published`."""
    return list(_SYSTEMS)


def load_system(key: str) -> System:
    """An engine or a published system by key.

    Raises:
        UnknownName: no such system.
    """
    if key not in _SYSTEMS:
        return _published(key)
    module, name = _SYSTEMS[key]
    return cast(System, getattr(import_module(module), name)())


def _published(key: str) -> System:
    from stowplan.systems.published import load_published, published_keys
    from stowplan.systems.published.system import PublishedSystem

    if key not in published_keys():
        raise UnknownName("system", key[:60], [*_SYSTEMS, *published_keys()])
    return cast(System, PublishedSystem(load_published(key)))
