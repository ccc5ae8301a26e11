"""Offline batching: requests of unlike lengths into batches, and the batches into an order, for the least makespan.

Few requests are solved exactly. For many, batches come from first fit by output, from the cheapest cuts of the sorted
requests and from columns over length classes, whichever is best; the bound is the larger of a bound per decode step
and the dual bound of the columns. One engine runs one batch after another, so the makespan is the sum of the batches
in any order; the order that is given finishes requests soonest on average (most requests per second first).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stowplan.errors import InputError
from stowplan.planner.batching_classes import length_classes, view
from stowplan.planner.batching_columns import Master, filled
from stowplan.planner.batching_costs import (
    BatchTime,
    Limits,
    Requests,
    StaticCost,
    batch_time,
    fixed_seconds,
    padded_time,
)
from stowplan.planner.batching_exact import LARGEST, solve_exactly
from stowplan.planner.batching_levels import level_bound, nondecreasing, prefill_bound
from stowplan.planner.batching_methods import BASELINES, Batches, best_cuts, first_fit, longest_outputs_first

GAP = 5e-3
"""Relative gap at which columns are no longer sought."""

_CLASSES = 48


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together.

    Attributes:
        requests: indices, longest outputs first.
        time: seconds of its prompts and of its decode steps.
        reserved: tokens of cache.
    """

    requests: tuple[int, ...]
    time: BatchTime
    reserved: int


@dataclass(frozen=True, slots=True)
class Batching:
    """Batches in the order in which they run.

    Attributes:
        method: what formed them: ``exact``, ``first_fit``, ``cuts``, ``columns``, or a rule to compare with.
        batches: the batches.
        makespan_s: seconds of all of them.
        bound_s: seconds that no batches without padding can beat; 0 where none was sought.
        bounds: every bound that was found, by name.
        seconds: time spent.
    """

    method: str
    batches: tuple[Batch, ...]
    makespan_s: float
    bound_s: float
    bounds: Mapping[str, float]
    seconds: float

    @property
    def gap(self) -> float:
        """How much of the makespan is not proven necessary."""
        return max(0.0, 1.0 - self.bound_s / self.makespan_s) if self.makespan_s > 0 else 0.0


def batch_requests(requests: Requests, cost: StaticCost, limits: Limits) -> Batching:
    """Batches of least makespan, with a proven bound.

    Raises:
        DoesNotFit: a request alone exceeds the cache.
        InputError: limits below 1, or more requests per batch than the cost knows.
    """
    started = time.perf_counter()
    _check(requests, cost, limits)
    if len(requests) <= LARGEST:
        batches, bound = solve_exactly(requests, cost, limits)
        return _result("exact", batches, (requests, cost), {"exact": bound}, started)
    found = dict(_by_rule(requests, cost, limits))
    seconds = {name: _makespan(batches, requests, cost) for name, batches in found.items()}
    bounds = {"levels": level_bound(requests, cost, limits)}
    best = min(seconds, key=lambda name: seconds[name])
    if bounds["levels"] < (1 - GAP) * seconds[best]:
        better, bounds["columns"] = _by_columns(found[best], requests, cost, limits)
        if better and _makespan(better, requests, cost) < seconds[best]:
            best, found["columns"] = "columns", better
    return _result(best, found[best], (requests, cost), bounds, started)


def compare(requests: Requests, cost: StaticCost, limits: Limits) -> dict[str, Batching]:
    """Batches by the rules of engines and papers, under the same cost; `padded` ones run padded."""
    _check(requests, cost, limits)
    found: dict[str, Batching] = {}
    for name, method in BASELINES.items():
        started = time.perf_counter()
        batches = method(requests, cost, limits)
        found[name] = _result(name, batches, (requests, cost), {}, started)
    return found


def _check(requests: Requests, cost: StaticCost, limits: Limits) -> None:
    requests.check(limits)
    if limits.max_batch > len(cost.step_s):
        raise InputError(
            f"limits: batches of {limits.max_batch} requests are allowed and the cost of a step is known up to "
            f"{len(cost.step_s)}"
        )


def _by_rule(requests: Requests, cost: StaticCost, limits: Limits) -> Iterator[tuple[str, Batches]]:
    """First fit of the longest outputs, with batches up to the limit and up to what is cheapest per request; cuts."""
    order = longest_outputs_first(requests)
    steps = np.asarray(cost.step_s[: limits.max_batch])
    cheapest = int(np.argmin(steps / np.arange(1, len(steps) + 1))) + 1
    for most in sorted({limits.max_batch, cheapest}):
        for tightest in (False, True):
            name = f"{'best' if tightest else 'first'}_fit" + ("" if most == limits.max_batch else f"_{most}")
            yield name, first_fit(order, requests, limits, most=most, tightest=tightest)
    yield "cuts", best_cuts(order, requests, cost, limits)


def _by_columns(start: Batches, requests: Requests, cost: StaticCost, limits: Limits) -> tuple[Batches, float]:
    """Batches and bound by columns over length classes."""
    classes = length_classes(requests, _CLASSES)
    steps = np.asarray(cost.step_s[: limits.max_batch])
    shortest = Master.of(view(classes, requests, longest=False), nondecreasing(steps), limits, longest=False)
    shortest.start(start)
    shortest.generate()
    bound = shortest.bound + prefill_bound(requests, cost, limits) + fixed_seconds(cost, requests)
    longest = Master.of(view(classes, requests, longest=True), steps, limits, longest=True)
    longest.start(start)
    longest.generate()
    return filled(longest.rounded(), longest.view, requests, limits), bound


def _makespan(batches: Batches, requests: Requests, cost: StaticCost) -> float:
    return sum(batch.time.seconds for batch in _timed(batches, requests, cost, padded=False))


def _timed(batches: Batches, requests: Requests, cost: StaticCost, *, padded: bool) -> Iterator[Batch]:
    timing = padded_time if padded else batch_time
    for members in batches:
        ranked = sorted(members, key=lambda i: (-int(requests.output[i]), -int(requests.prompt[i]), i))
        chosen = np.asarray(ranked, np.int64)
        prompt, output = requests.prompt[chosen], requests.output[chosen]
        reserved = len(ranked) * int(prompt.max() + output.max()) if padded else int(requests.reserved[chosen].sum())
        yield Batch(tuple(ranked), timing(cost, prompt, output), reserved)


def _result(
    method: str,
    batches: Batches,
    problem: tuple[Requests, StaticCost],
    bounds: Mapping[str, float],
    started: float,
) -> Batching:
    """The batches in the order of Smith's rule: seconds per request, least first."""
    timed = list(_timed(batches, *problem, padded=method == "padded"))
    timed.sort(key=lambda batch: (batch.time.seconds / len(batch.requests), batch.requests))
    makespan = sum(batch.time.seconds for batch in timed)
    bound = min(makespan, max(bounds.values(), default=0.0))
    return Batching(method, tuple(timed), makespan, bound, bounds, time.perf_counter() - started)
