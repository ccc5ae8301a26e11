"""One door to the planners of all systems."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from stowplan.errors import UnknownName
from stowplan.planner.result import Planned, Request
from stowplan.systems import list_systems

_PLANNERS = {
    "llama.cpp": ("stowplan.planner.llama_cpp", "plan_llama_cpp"),
    "flexgen": ("stowplan.planner.flexgen", "plan_flexgen"),
    "accelerate": ("stowplan.planner.accelerate", "plan_accelerate"),
}


def plan_for(system_key: str, request: Request) -> Planned:
    """The best plan that a system can express.

    Raises:
        UnknownName: no such system.
        DoesNotFit: no placement satisfies the memory limits.
        NotExpressible: a setting that the system does not have.
    """
    if system_key not in _PLANNERS:
        raise UnknownName("system", system_key, list_systems())
    module, name = _PLANNERS[system_key]
    planner = cast(Callable[[Request], Planned], getattr(import_module(module), name))
    return planner(request)
