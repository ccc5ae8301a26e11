"""How much a service carries: the highest rate, or the fewest engines, at which an objective is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf, log, log1p, log2

from stowplan.errors import InputError
from stowplan.serving.answers import Answers, Objective, summarise
from stowplan.serving.outcome import Watch
from stowplan.serving.requests import Requests
from stowplan.serving.service import Service
from stowplan.traces.trace import Trace

_SHORTEST_S = 1e-6
"""Span of a trace below which all its requests arrive at once for any engine: shorter than every step."""
_SLOWEST_BUSY = 1e-4
"""Share of the time that an engine works, below which still slower arrivals change nothing but single bursts."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was found.

    Attributes:
        rate: requests per second of the trace as it was replayed.
        engines: engines that served it.
        answers: of that replay.
        tried: (rate, engines, share of requests that met the objective) of every replay, in order.
    """

    rate: float
    engines: int
    answers: Answers
    tried: tuple[tuple[float, int, float], ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A replay of a search that is about to begin.

    Attributes:
        rate, engines: what is tried.
        last: share of the requests that met the objective in the replay before; None for the first.
        left: replays that will follow; None while nobody knows.
    """

    rate: float
    engines: int
    last: float | None
    left: int | None


Progress = Callable[[Attempt], None]


def highest_rate(
    service: Service,
    trace: Trace,
    objective: Objective,
    *,
    share: float = 0.99,
    tolerance: float = 0.01,
    progress: Progress | None = None,
    watch: Watch | None = None,
    workers: int = 1,
) -> Capacity:
    """The highest rate, within a tolerance, at which a share of the requests meets the objective.

    The trace keeps its order and its bursts; its gaps are scaled. The share is taken to fall with the rate, which holds
    but for the noise of single requests.

    Args:
        service: what serves.
        trace: what is asked.
        objective: what each request is to meet.
        share: of all requests, those that were refused or timed out included.
        tolerance: relative, of the rate.
        progress: told of every replay before it begins; watch, workers: as `Service.replay` takes them.

    Raises:
        InputError: a share or tolerance out of its range, a trace whose requests all arrive at once, or an objective
            that is missed however slowly requests come, or kept however fast.
    """
    _check(share)
    if not trace.rate < inf:
        raise InputError(f"trace '{trace.name}': all requests arrive at once, so that there is no rate to search")
    if not 1e-4 <= tolerance < 1.0:
        raise InputError(f"tolerance: {tolerance:g}; give between 0.0001 and 1")
    tried: list[tuple[float, int, float]] = []
    kept: tuple[float, Answers] | None = None
    missed: float | None = None

    def attempt(rate: float) -> Answers:
        if progress is not None:
            left = None
            if kept is not None and missed is not None:
                left = ceil(log2(max(1.0, log(missed / kept[0]) / log1p(tolerance)))) - 1
            progress(Attempt(rate, service.machines, tried[-1][2] if tried else None, left))
        requests = Requests.from_trace(trace.scaled_rate(rate))
        found = summarise(service.replay(requests, watch, workers), objective)
        tried.append((rate, service.machines, found.attainment or 0.0))
        return found

    rate, fastest = trace.rate, (len(trace) - 1) / _SHORTEST_S
    while kept is None or missed is None:
        found = attempt(rate)
        if (found.attainment or 0.0) >= share:
            kept = rate, found
            if rate >= fastest:
                raise InputError(
                    f"the objective is kept even where all {len(trace):,} requests arrive at once; a longer trace or a "
                    f"tighter objective has a highest rate"
                )
            rate = min(2.0 * rate, fastest)
        else:
            missed = rate
            if kept is None and found.busy < _SLOWEST_BUSY:
                raise InputError(
                    f"the objective is missed by more than {1 - share:.2%} of the requests however slowly they come; "
                    f"a looser objective or a faster engine would help"
                )
            rate /= 2.0
    while missed / kept[0] > 1.0 + tolerance:
        rate = (kept[0] * missed) ** 0.5
        found = attempt(rate)
        if (found.attainment or 0.0) >= share:
            kept = rate, found
        else:
            missed = rate
    return Capacity(kept[0], service.machines, kept[1], tuple(tried))


def fewest_engines(
    service: Service,
    trace: Trace,
    objective: Objective,
    *,
    share: float = 0.99,
    most: int = 256,
    progress: Progress | None = None,
    watch: Watch | None = None,
    workers: int = 1,
) -> Capacity:
    """The fewest engines with which a share of a trace's requests meets the objective at the trace's own rate.

    Args:
        service, trace, objective, share: as `highest_rate` takes them; the service's number of engines is left open.
        most: engines beyond which the search ends.
        progress, watch, workers: as `highest_rate` takes them.

    Raises:
        InputError: a share out of its range, prompt engines apart, or an objective that `most` engines miss.
    """
    _check(share)
    if service.prompt_engines:
        raise InputError("engines: cannot be counted where prompts have engines of their own; search the rate instead")
    requests = Requests.from_trace(trace)
    tried: list[tuple[float, int, float]] = []

    def attempt(engines: int) -> Answers:
        if progress is not None:
            left = None if kept is None else ceil(log2(kept[0] - missed)) - 1
            progress(Attempt(trace.rate, engines, tried[-1][2] if tried else None, left))
        found = summarise(replace(service, engines=engines).replay(requests, watch, workers), objective)
        tried.append((trace.rate, engines, found.attainment or 0.0))
        return found

    kept: tuple[int, Answers] | None = None
    missed, engines = 0, 1
    found = attempt(engines)
    while (found.attainment or 0.0) < share:
        missed = engines
        if engines >= most:
            raise InputError(
                f"{most} engines miss the objective for more than {1 - share:.2%} of the requests; "
                f"a looser objective or a faster engine would help"
            )
        engines = min(2 * engines, most)
        found = attempt(engines)
    kept = engines, found
    while kept[0] - missed > 1:
        engines = (kept[0] + missed) // 2
        found = attempt(engines)
        if (found.attainment or 0.0) >= share:
            kept = engines, found
        else:
            missed = engines
    return Capacity(trace.rate, kept[0], kept[1], tuple(tried))


def _check(share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise InputError(f"share: {share:g} is not above 0 and at most 1")
