"""Replay of requests through an engine: what happened to each of them, and to the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError, UnknownName
from stowplan.serving.chunked import Chunked
from stowplan.serving.continuous import Continuous
from stowplan.serving.core import Core
from stowplan.serving.limits import Limits
from stowplan.serving.queues import FirstCome, Sorted, WaitingQueue
from stowplan.serving.requests import Requests
from stowplan.serving.scheduler import Scheduler
from stowplan.serving.static import Static
from stowplan.serving.step_time import StepTime
from stowplan.serving.tables import StepTables

LONGEST_REQUEST = 2**24
"""Tokens of prompt and output that one request may have in a replay; the tables of step times end there."""


class State(IntEnum):
    """How a request ended."""

    FINISHED = 0
    TOO_LONG = 1
    """Its prompt and output never fit into the cache."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What happened; one row per request, in the order of the requests.

    Attributes:
        requests: what was replayed.
        scheduler: name of the scheduler.
        state: `State` of every request.
        started_s, first_token_s, finished_s: seconds on the trace's clock; not a number where it never happened.
        preemptions: how often the request was preempted.
        kv_blocks, peak_blocks: blocks of cache that there are, and the most that were in use at a time.
        leaked_blocks: blocks in use after the last request; 0 always.
        passes: engine steps.
        swaps: preemptions that copied the cache to host memory.
    """

    requests: Requests
    scheduler: str
    state: NDArray[np.int8]
    started_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    preemptions: NDArray[np.int64]
    kv_blocks: int
    peak_blocks: int
    leaked_blocks: int
    passes: int
    swaps: int

    @property
    def counts(self) -> dict[str, int]:
        """Requests by the state that they ended in."""
        return {state.name.lower(): int(np.count_nonzero(self.state == state)) for state in State}


@dataclass(frozen=True, slots=True)
class _Scheduler:
    make: Callable[[Core], Scheduler]
    key: str = ""


_SCHEDULERS = {
    "static": _Scheduler(Static),
    "continuous": _Scheduler(Continuous),
    "chunked": _Scheduler(Chunked),
    "shortest": _Scheduler(Continuous, "length"),
    "shortest-chunked": _Scheduler(Chunked, "length"),
    "priority": _Scheduler(Continuous, "priority"),
    "priority-chunked": _Scheduler(Chunked, "priority"),
}


def list_schedulers() -> list[str]:
    """Names of the schedulers."""
    return list(_SCHEDULERS)


def replay(requests: Requests, step_time: StepTime, limits: Limits, scheduler: str = "continuous") -> Replay:
    """Replay requests; the same arguments give the same result to the last bit.

    Args:
        requests: what arrives, in order.
        step_time: what a step of the engine costs.
        limits: what the engine holds and admits.
        scheduler: one of `list_schedulers`.

    Raises:
        UnknownName: no such scheduler.
        InputError: a request that could run is longer than 2^24 tokens, or priorities are missing.
    """
    if scheduler not in _SCHEDULERS:
        raise UnknownName("scheduler", scheduler[:60], _SCHEDULERS)
    chosen = _SCHEDULERS[scheduler]
    longest = requests.prompt_tokens + requests.output_tokens - 1
    rows = np.flatnonzero(longest <= limits.longest)
    if len(rows) and int(longest[rows].max()) > LONGEST_REQUEST:
        raise InputError(f"requests: one has {int(longest[rows].max())} tokens; a replay takes up to {LONGEST_REQUEST}")
    core = Core(
        requests.prompt_tokens[rows].tolist(),
        requests.output_tokens[rows].tolist(),
        _queue(requests, rows, chosen.key),
        StepTables(step_time, int(longest[rows].max(initial=1)), limits),
        limits,
    )
    chosen.make(core).run()
    state = np.full(len(requests), State.TOO_LONG, dtype=np.int8)
    state[rows] = State.FINISHED
    preemptions = np.zeros(len(requests), dtype=np.int64)
    if core.preemptions:
        preempted = np.fromiter(core.preemptions.keys(), dtype=np.int64)
        preemptions[rows[preempted]] = np.fromiter(core.preemptions.values(), dtype=np.int64)
    return Replay(
        requests=requests,
        scheduler=scheduler,
        state=state,
        started_s=_spread(core.started, rows, len(requests)),
        first_token_s=_spread(core.first, rows, len(requests)),
        finished_s=_spread(core.finished, rows, len(requests)),
        preemptions=preemptions,
        kv_blocks=limits.kv_blocks,
        peak_blocks=limits.kv_blocks - core.lowest_free,
        leaked_blocks=limits.kv_blocks - core.free,
        passes=core.passes,
        swaps=core.swaps,
    )


def _queue(requests: Requests, rows: NDArray[np.int64], key: str) -> WaitingQueue:
    arrival = requests.arrival_s[rows].tolist()
    if key == "length":
        predicted = requests.output_tokens if requests.predicted_tokens is None else requests.predicted_tokens
        return Sorted(arrival, predicted[rows].tolist())
    if key == "priority":
        if requests.priority is None:
            raise InputError("requests: priority: is missing; a scheduler by priority needs one for every request")
        return Sorted(arrival, requests.priority[rows].tolist())
    return FirstCome(arrival)


def _spread(values: object, rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    column = np.full(count, np.nan)
    column[rows] = np.asarray(values)
    return column
