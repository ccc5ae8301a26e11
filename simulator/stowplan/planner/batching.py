"""Offline batching: requests of unlike lengths into batches, and the batches into an order, for the least makespan.

Few requests are solved exactly. For many, batches come from first fit by output, from the cheapest cuts of the sorted
requests, from first fit among requests of like size and from columns over length classes, until the gap is small; the
bound is the larger of a bound per decode step and the dual bound of the columns. One engine runs one batch after
another, so the makespan is the sum of the batches in any order; the order that is given finishes requests soonest on
average (most requests per second first).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stowplan.errors import InputError
from stowplan.planner.batching_classes import length_classes, view
from stowplan.planner.batching_columns import Master, filled
from stowplan.planner.batching_costs import (
    BatchTime,
    Counts,
    Limits,
    Requests,
    StaticCost,
    batch_time,
    fixed_seconds,
    padded_time,
)
from stowplan.planner.batching_exact import LARGEST, solve_exactly
from stowplan.planner.batching_levels import level_bound, nondecreasing, prefill_bound
from stowplan.planner.batching_methods import (
    BASELINES,
    Batches,
    Fit,
    best_cuts,
    first_fit,
    longest_outputs_first,
    stratified,
)

GAP = 5e-3
"""Relative gap that is small enough: no further rule is tried."""

_LARGE_GAP = 0.02
"""Relative gap above which columns are worth their seconds; where requests have few shapes, columns lose nothing."""

_AT_ONCE = 20_000
"""Requests that one pass of a rule forms batches of; rules look at every open batch, so larger sets are divided."""

_CLASSES = 48
_STRATA = (2, 3, 4, 6, 8)
_FITS: tuple[Fit, ...] = ("first", "tightest", "balanced")


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
        method: what formed them: ``exact``, ``columns``, or the name of a rule.
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
    bounds = {"levels": level_bound(requests, cost, limits)}
    method, best, seconds = "", Batches(), np.inf
    for name, batches in _divided(requests, cost, limits):
        makespan = _makespan(batches, requests, cost)
        if makespan < seconds:
            method, best, seconds = name, batches, makespan
        if bounds["levels"] >= (1 - GAP) * seconds:
            break
    else:
        classes = length_classes(requests, _CLASSES)
        large = len(requests) <= _AT_ONCE and bounds["levels"] < (1 - _LARGE_GAP) * seconds
        if _alike(classes, requests) or large:
            columns = _by_columns(best, bounds["levels"], classes, (requests, cost, limits))
            bounds["columns"] = columns.bound
            if columns.batches and _makespan(columns.batches, requests, cost) < seconds:
                method, best = "columns", columns.batches
    return _result(method, best, (requests, cost), bounds, started)


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


def _divided(requests: Requests, cost: StaticCost, limits: Limits) -> Iterator[tuple[str, Batches]]:
    """Batches by rule; many requests are dealt, longest outputs first, to shares that are solved one by one."""
    order, count = longest_outputs_first(requests), -(-len(requests) // _AT_ONCE)
    shares = [order[first::count] for first in range(count)]
    rules = [_candidates(Requests(requests.prompt[s], requests.output[s]), cost, limits) for s in shares]
    for found in zip(*rules, strict=True):
        yield (
            found[0][0],
            [share[members].tolist() for share, (_, each) in zip(shares, found, strict=True) for members in each],
        )


def _candidates(requests: Requests, cost: StaticCost, limits: Limits) -> Iterator[tuple[str, Batches]]:
    """Batches by rule, cheap rules first; a step's cost per request decides which of them is good."""
    order = longest_outputs_first(requests)
    steps = np.asarray(cost.step_s[: limits.max_batch])
    cheapest = int(np.argmin(steps / np.arange(1, len(steps) + 1))) + 1
    for most in sorted({limits.max_batch, cheapest}, reverse=True):
        for fit in _FITS:
            name = f"{fit}_fit" + ("" if most == limits.max_batch else f"_{most}")
            yield name, first_fit(order, requests, limits, most=most, fit=fit)
    yield "cuts", best_cuts(order, requests, cost, limits)
    if 2 * steps[len(steps) // 2] <= steps[0] + steps[-1]:  # requests of one batch have nothing in common
        return
    for strata in _STRATA:
        for by_tokens in (False, True):
            name = f"strata_{strata}_by_{'tokens' if by_tokens else 'requests'}"
            yield name, stratified(order, requests, limits, strata, by_tokens=by_tokens)


def _alike(classes: Sequence[Counts], requests: Requests) -> bool:
    """Whether the requests of every class have the same output and reserve the same."""
    return all(np.ptp(requests.output[k]) == 0 and np.ptp(requests.reserved[k]) == 0 for k in classes)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Batches (none where rounding found none) and bound of column generation."""

    batches: Batches
    bound: float


def _by_columns(
    start: Batches, known_bound: float, classes: Sequence[Counts], problem: tuple[Requests, StaticCost, Limits]
) -> _Columns:
    """Batches over the longest of every class, bound over the shortest; it is cut short below the known bound."""
    requests, cost, limits = problem
    steps = np.asarray(cost.step_s[: limits.max_batch])
    others = prefill_bound(requests, cost, limits) + fixed_seconds(cost, requests)
    shortest = Master.of(view(classes, requests, longest=False), nondecreasing(steps), limits, longest=False)
    shortest.start(start)
    shortest.generate(useless_below=known_bound - others)
    longest = Master.of(view(classes, requests, longest=True), steps, limits, longest=True)
    longest.start(start)
    longest.generate()
    return _Columns(filled(longest.rounded(), longest.view, requests, limits), shortest.bound + others)


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
