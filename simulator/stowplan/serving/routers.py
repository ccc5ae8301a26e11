"""Which of several engines takes a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from stowplan.serving.units import Unit

RouterName = Literal["round-robin", "least-loaded", "prefix"]
Router = Callable[[int, Sequence[Unit]], int]
"""Position of the engine for a request."""

_IMBALANCE = 32
"""Requests by which an engine that knows the prompt may be busier than the least busy one; the absolute threshold of
SGLang's cache-aware router."""


def make_router(name: RouterName) -> Router:
    """A router by name.

    ``round-robin`` asks nobody; ``least-loaded`` takes the engine with the fewest requests, running and waiting;
    ``prefix`` takes the one that has most of the prompt in its cache, unless it is much busier than the least busy one.
    """
    if name == "round-robin":
        return _RoundRobin()
    return _least_loaded if name == "least-loaded" else _by_prefix


class _RoundRobin:
    def __init__(self) -> None:
        self._last = -1

    def __call__(self, request: int, units: Sequence[Unit]) -> int:  # noqa: ARG002
        self._last = (self._last + 1) % len(units)
        return self._last


def _least_loaded(request: int, units: Sequence[Unit]) -> int:  # noqa: ARG001
    loads = [unit.scheduler.load for unit in units]
    return loads.index(min(loads))


def _by_prefix(request: int, units: Sequence[Unit]) -> int:
    loads = [unit.scheduler.load for unit in units]
    least = min(loads)
    known = [unit.core.look_up(request, unit.core.length(request)).tokens for unit in units]
    near = [i for i, load in enumerate(loads) if load <= least + _IMBALANCE]
    return max(near, key=lambda i: (known[i], -loads[i], -i))
