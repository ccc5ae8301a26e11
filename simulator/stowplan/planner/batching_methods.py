"""Ways to form batches by a rule: what engines and papers do, to compare with, and the first fit that we start from.

Each takes requests, cost and limits and returns batches of request indices; every batch keeps the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from stowplan.planner.batching_costs import Counts, Limits, Requests, Seconds, StaticCost

Batches = list[list[int]]
Fit = Literal["first", "tightest", "balanced"]
Method = Callable[[Requests, StaticCost, Limits], Batches]


def first_come(requests: Requests, cost: StaticCost, limits: Limits) -> Batches:  # noqa: ARG001
    """In the order of arrival; a batch closes when the next request does not fit."""
    return _next_fit(range(len(requests)), requests, limits)


def padded(requests: Requests, cost: StaticCost, limits: Limits) -> Batches:  # noqa: ARG001
    """In the order of arrival, as rectangles: every request reserves the batch's longest prompt and longest output."""
    batches: Batches = []
    prompt = output = 0
    for request in range(len(requests)):
        wide, long = max(prompt, int(requests.prompt[request])), max(output, int(requests.output[request]))
        count = len(batches[-1]) + 1 if batches else 0
        if not 0 < count <= limits.max_batch or count * (wide + long) > limits.cache_tokens:
            batches.append([])
            wide, long = int(requests.prompt[request]), int(requests.output[request])
        batches[-1].append(request)
        prompt, output = wide, long
    return batches


def sorted_by_length(requests: Requests, cost: StaticCost, limits: Limits) -> Batches:  # noqa: ARG001
    """Longest output first, ties by prompt; a batch closes when the next request does not fit."""
    return _next_fit(longest_outputs_first(requests), requests, limits)


def bin_packed(requests: Requests, cost: StaticCost, limits: Limits) -> Batches:  # noqa: ARG001
    """First fit by decreasing tokens, which fills the cache best and does not look at outputs.

    The packing of Zhao et al. 2024, "Prepacking" (arXiv 2404.09529), with whole requests in the place of prompts.
    """
    order = np.argsort(-requests.reserved, kind="stable")
    return first_fit(order, requests, limits, most=limits.max_batch)


def mixed(requests: Requests, cost: StaticCost, limits: Limits) -> Batches:
    """Requests that are bound by arithmetic beside requests that are bound by memory.

    The dual scan of Zhao et al. 2024, "BlendServe" (arXiv 2411.16102): requests in the order of their ratio of prompt
    seconds to decode seconds; a batch takes from the end that brings its own ratio nearer to that of all requests.
    """
    prompt, output = requests.prompt.astype(np.float64), requests.output.astype(np.float64)
    compute = (cost.token_s + cost.pass_s / cost.micro_batch) * prompt + cost.pair_s * prompt * (prompt + 1) / 2
    memory = cost.step_s[0] * output + cost.context_s * (prompt * output + output * (output - 1) / 2)
    both = compute + memory
    order = np.argsort(-np.divide(compute, both, out=np.zeros_like(both), where=both > 0), kind="stable")
    all_compute, all_memory = float(compute.sum()), float(memory.sum())
    low, high = 0, len(order) - 1
    batches, room = Batches(), 0
    computing = reading = 0.0
    while low <= high:
        front = computing * all_memory <= all_compute * reading
        request = int(order[low] if front else order[high])
        if not batches or room < requests.reserved[request] or len(batches[-1]) == limits.max_batch:
            batches.append([])
            room, computing, reading = limits.cache_tokens, 0.0, 0.0
        batches[-1].append(request)
        room -= int(requests.reserved[request])
        computing, reading = computing + compute[request], reading + memory[request]
        low, high = (low + 1, high) if front else (low, high - 1)
    return batches


def longest_outputs_first(requests: Requests) -> Counts:
    """Indices by output, ties by prompt, then by arrival."""
    return np.lexsort((np.arange(len(requests)), -requests.prompt, -requests.output)).astype(np.int64)


def first_fit(order: Iterable[int], requests: Requests, limits: Limits, *, most: int, fit: Fit = "first") -> Batches:
    """Each request in turn goes to a batch with room, or to a new one where none has.

    Args:
        order: indices; longest outputs first, so that a request never lengthens the batch it joins.
        requests, limits: the problem.
        most: requests of a batch; may be below the limit where larger batches do not pay.
        fit: which of the batches with room: the ``first``, the one with least (``tightest``), or the one whose room
            per free slot is nearest to the request (``balanced``: slots and cache run out together).
    """
    room, slots = np.zeros(len(requests), np.int64), np.full(len(requests), most)
    batches: Batches = []
    oldest = 0  # batches before it have no room for the shortest request
    shortest = int(requests.reserved.min())
    for request in map(int, order):
        size = int(requests.reserved[request])
        open_ = slice(oldest, len(batches))
        fitting = oldest + np.flatnonzero(room[open_] >= size)
        if not len(fitting):
            number = len(batches)
            batches.append([])
            room[number] = limits.cache_tokens
        elif fit == "first":
            number = int(fitting[0])
        elif fit == "tightest":
            number = int(fitting[np.argmin(room[fitting])])
        else:
            number = int(fitting[np.argmin(np.abs(room[fitting] / slots[fitting] - size))])
        batches[number].append(request)
        slots[number] -= 1
        room[number] = room[number] - size if slots[number] else 0
        while oldest < len(batches) and room[oldest] < shortest:
            oldest += 1
    return batches


def stratified(order: Counts, requests: Requests, limits: Limits, strata: int, *, by_tokens: bool) -> Batches:
    """First fit among requests of like size: pays where requests of one batch have work in common (experts).

    Args:
        order: indices, longest outputs first.
        requests, limits: the problem.
        strata: ranges of sizes.
        by_tokens: ranges hold as many tokens, in the place of as many requests.
    """
    by_size = np.argsort(requests.reserved, kind="stable")
    weights = requests.reserved[by_size] if by_tokens else np.ones(len(by_size), np.int64)
    before = np.cumsum(weights) - weights
    stratum = np.empty(len(by_size), np.int64)
    stratum[by_size] = before * strata // int(weights.sum())
    batches: Batches = []
    for number in range(strata):
        mine = order[stratum[order] == number]
        if len(mine):
            batches += first_fit(mine, requests, limits, most=limits.max_batch, fit="tightest")
    return batches


def best_cuts(order: Sequence[int] | Counts, requests: Requests, cost: StaticCost, limits: Limits) -> Batches:
    """The cheapest batches of requests that are neighbours in an order, by dynamic programming.

    ``best[j] = min over i of best[i] + seconds of the batch of requests i ... j - 1``; the order must be longest
    outputs first, since ranks within a batch are then positions.
    """
    chosen = np.asarray(order, np.int64)
    output, reserved, prompt = requests.output[chosen], requests.reserved[chosen], requests.prompt[chosen]
    rank_s, total = cost.rank_s, len(chosen)
    held, prompts = (np.concatenate(([0], np.cumsum(each))) for each in (reserved, prompt))
    best, start = np.full(total + 1, np.inf), np.zeros(total + 1, np.int64)
    best[0] = 0.0
    for i in range(total):
        end = min(int(np.searchsorted(held, held[i] + limits.cache_tokens, side="right")) - 1, i + limits.max_batch)
        passes = -(-(prompts[i + 1 : end + 1] - prompts[i]) // cost.micro_batch)
        seconds: Seconds = best[i] + np.cumsum(rank_s[: end - i] * output[i:end]) + cost.pass_s * passes
        better = seconds < best[i + 1 : end + 1]
        best[i + 1 : end + 1][better] = seconds[better]
        start[i + 1 : end + 1][better] = i
    batches, end = Batches(), total
    while end:
        batches.append([int(request) for request in chosen[start[end] : end]])
        end = int(start[end])
    return batches[::-1]


def _next_fit(order: Iterable[int], requests: Requests, limits: Limits) -> Batches:
    batches, room = Batches(), 0
    for request in map(int, order):
        size = int(requests.reserved[request])
        if not batches or size > room or len(batches[-1]) == limits.max_batch:
            batches.append([])
            room = limits.cache_tokens
        batches[-1].append(request)
        room -= size
    return batches


BASELINES: Mapping[str, Method] = {
    "padded": padded,
    "first_come": first_come,
    "mixed": mixed,
    "bin_packed": bin_packed,
    "sorted": sorted_by_length,
}
"""What the optimum is compared with; ``padded`` batches also run padded."""
