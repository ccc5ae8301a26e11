"""A lower bound on decode seconds that is exact in every length: how few batches can be alive at each step.

At step k, the requests with more than k tokens to make are divided among batches. Their number N and the tokens that
they reserve say how many batches m there are at least. Two bounds follow, and the larger is taken:

- m batches with N requests cost least when they share evenly, with h replaced by its convex envelope. Tight where
  more requests cost more than in proportion (arithmetic binds), or all the same.
- a request that reserves the share s of a batch's limits pays at least ``s h(1 / s)``, its part of a batch of its
  like. Tight where more requests cost less than in proportion (experts that a batch has in common).

Steps are bounded one by one and summed: the only thing given up is that the groups at one step must be parts of the
groups before. Between two distinct outputs nothing changes, so the sum has one term per distinct output.
"""

from __future__ import annotations

import numpy as np

from stowplan.planner.batching_costs import Counts, Limits, Requests, Seconds, StaticCost, fixed_seconds

_ENVELOPES = 64
_THRESHOLDS = 32
_SHARES = 9


def level_bound(requests: Requests, cost: StaticCost, limits: Limits) -> float:
    """Seconds that no grouping can beat, for the whole run."""
    order = np.argsort(-requests.output, kind="stable")
    output, reserved = requests.output[order], requests.reserved[order]
    last_of_its_level = np.append(output[:-1] > output[1:], True)  # requests with equal outputs run to the same step
    levels = np.flatnonzero(last_of_its_level)
    steps = output[levels] - np.append(output[levels[1:]], 0)
    each_step = np.maximum(
        _evenly_shared(reserved, levels, cost, limits), _paid_by_share(reserved, cost, limits)[levels]
    )
    return float(steps @ each_step) + prefill_bound(requests, cost, limits) + fixed_seconds(cost, requests)


def prefill_bound(requests: Requests, cost: StaticCost, limits: Limits) -> float:
    """Seconds of the passes that no grouping avoids: full micro-batches, and one per batch."""
    batches = int(fewest_batches(requests.reserved, limits)[-1])
    return cost.pass_s * max(-(-int(requests.prompt.sum()) // cost.micro_batch), batches)


def fewest_batches(reserved: Counts, limits: Limits) -> Counts:
    """How many batches the first 1, 2 ... requests need at least.

    Besides total tokens over capacity: for a threshold t up to half the capacity, a request above capacity - t fills a
    batch (nothing of t or more fits beside it) and requests below t are left out; the largest of all is taken.
    (Fekete and Schepers 2001, "New classes of fast lower bounds for bin packing problems", call these dual feasible
    functions.)
    """
    capacity = limits.cache_tokens
    fewest = -(-np.arange(1, len(reserved) + 1) // limits.max_batch)
    small = np.unique(reserved[reserved <= capacity // 2])
    chosen = np.linspace(0, len(small) - 1, min(_THRESHOLDS, len(small))).astype(np.int64)
    rounded = [np.where(2 * reserved > capacity, capacity, 0), reserved]
    rounded += [
        np.where(reserved > capacity - threshold, capacity, np.where(reserved < threshold, 0, reserved))
        for threshold in map(int, small[chosen])
    ]
    for filled in rounded:
        fewest = np.maximum(fewest, -(-np.cumsum(filled) // capacity))
    return fewest


def largest_batch(reserved: Counts, limits: Limits) -> int:
    """How many of the requests fit one batch: the shortest together."""
    together = np.cumsum(np.sort(reserved))
    return max(1, min(int(np.searchsorted(together, limits.cache_tokens, side="right")), limits.max_batch))


def nondecreasing(step_s: Seconds) -> Seconds:
    """The largest function that is nowhere above `step_s` and never falls."""
    return np.minimum.accumulate(step_s[::-1])[::-1]


def convex_envelope(step_s: Seconds) -> Seconds:
    """The largest convex function below `step_s`, at the same points."""
    hull: list[int] = []
    for n in range(len(step_s)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (step_s[b] - step_s[a]) * (n - a) < (step_s[n] - step_s[a]) * (b - a):
                break
            hull.pop()
        hull.append(n)
    return np.interp(np.arange(len(step_s)), hull, step_s[hull])


def _evenly_shared(reserved: Counts, levels: Counts, cost: StaticCost, limits: Limits) -> Seconds:
    """Least seconds of a step at each level by even sharing; an envelope reaches to the largest batch that fits."""
    fewest = fewest_batches(reserved, limits)
    found = [np.zeros(0)]
    for group in np.array_split(levels, min(_ENVELOPES, len(levels))):
        largest = largest_batch(reserved[: int(group[-1]) + 1], limits)
        envelope = convex_envelope(nondecreasing(np.asarray(cost.step_s[: limits.max_batch]))[:largest])
        found.append(_evenly(group + 1, fewest[group], envelope))
    return np.concatenate(found)


def _paid_by_share(reserved: Counts, cost: StaticCost, limits: Limits) -> Seconds:
    """Least seconds of a step with the first 1, 2 ... requests, each paying for its share of the limits.

    Shares ``s = t w / capacity + (1 - t) / most`` of a batch add up to at most 1 for any t between 0 and 1. For a
    concave f with f(0) = 0, Jensen's inequality gives ``sum of s f(1 / s) <= f(requests)``; h is made concave from
    above and the result divided by how far that lifts it at most.
    """
    steps = nondecreasing(np.asarray(cost.step_s[: limits.max_batch]))
    counts = np.arange(len(steps) + 1)
    concave = -convex_envelope(-np.concatenate(([0.0], steps)))
    usable = steps > 0
    lifted = float(np.max(concave[1:][usable] / steps[usable], initial=1.0))
    if not usable.all():  # a step that takes no time has no finite ratio
        return np.zeros(len(reserved))
    most = np.zeros(len(reserved))
    for t in np.linspace(0.0, 1.0, _SHARES):
        share = t * reserved / limits.cache_tokens + (1 - t) / limits.max_batch
        most = np.maximum(most, np.cumsum(share * np.interp(1 / share, counts, concave)) / lifted)
    return most


def _evenly(alive: Counts, fewest: Counts, envelope: Seconds) -> Seconds:
    """Least seconds of a step in which `alive` requests are divided among at least `fewest` batches.

    More batches than needed cost more as long as each holds no more than the cheapest number per request.
    """
    each = envelope / np.arange(1, len(envelope) + 1)
    cheapest = int(np.argmin(each))
    batches = np.maximum(fewest, -(-alive // len(envelope)))
    share, left = alive // batches, alive % batches
    above = envelope[np.minimum(share, len(envelope) - 1)]
    even = (batches - left) * envelope[share - 1] + left * above
    return np.where(alive <= batches * (cheapest + 1), even, alive * each[cheapest])
