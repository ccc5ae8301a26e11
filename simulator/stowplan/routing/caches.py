"""Expert caches: what share of the experts that tokens ask for a cache of some size already holds.

Every policy loads what it misses and differs in what it throws out: the expert used least recently (``lru``), the one
used least often (``lfu``), the one whose running mean of router scores is lowest (``score``), or nothing, because it
holds the most popular experts of the whole trace from the start (``static``). ``belady`` knows the future and throws
out what is needed last; nothing that only replaces on a miss does better.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from heapq import nsmallest
from math import ceil, floor, inf

from stowplan.errors import InputError
from stowplan.routing.generate import RoutingProfile, generate
from stowplan.routing.trace import RoutingTrace

POLICIES = ("static", "lru", "lfu", "score", "belady")
_SCORE_WEIGHT = (
    0.3  # of the newest scores in the running mean; the score cache of HybriMoE (section IV-C) smooths alike
)
_WARM_UP = 0.2  # share of a trace that only fills the cache
_TOKENS = 640
_SEEDS = (1, 2)


def hit_rate(trace: RoutingTrace, capacity: int, policy: str = "lru") -> float:
    """Share of the requests after a warm-up that find their expert in a cache of `capacity` experts.

    Raises:
        InputError: an unknown policy, a negative capacity, or no scores for ``score``.
    """
    if policy not in POLICIES:
        raise InputError(f"no expert cache is called '{policy}'; it is one of {', '.join(POLICIES)}")
    if capacity < 0:
        raise InputError(f"a cache cannot hold {capacity} experts")
    if capacity == 0:
        return 0.0
    if capacity >= trace.experts:
        return 1.0
    ranks = _Ranks(trace, policy)
    counted_from = floor(_WARM_UP * len(trace.tokens)) if len(trace.tokens) > 1 else 0
    held: set[int] = set(ranks.most_popular(capacity)) if policy == "static" else set()
    asked = found = 0
    for number, chosen in enumerate(trace.tokens):
        if number >= counted_from:
            asked += len(chosen)
            found += sum(expert in held for expert in chosen)
        ranks.see(number)
        if policy == "static":
            continue
        missed = [expert for expert in chosen if expert not in held]
        room = capacity - len(held)
        if len(missed) > room:
            others = held.difference(chosen)
            worst = nsmallest(len(missed) - room, others, key=lambda each: (ranks.worth(each, number), each))
            held.difference_update(worst)
            missed = missed[: room + len(worst)]
        held.update(missed)
    return found / asked


class _Ranks:
    """What an expert is worth to a policy at some moment; the least worth is thrown out."""

    def __init__(self, trace: RoutingTrace, policy: str) -> None:
        if policy == "score" and trace.scores is None:
            raise InputError("a score cache needs the router's scores, which this trace does not hold")
        self._trace, self._policy = trace, policy
        self._last = [-1] * trace.experts
        self._count = [0] * trace.experts
        self._mean = list(trace.scores[0]) if trace.scores else []
        self._uses: list[list[int]] = [[] for _ in range(trace.experts)]
        for number, chosen in enumerate(trace.tokens):
            for expert in chosen:
                self._uses[expert].append(number)

    def most_popular(self, capacity: int) -> list[int]:
        """Experts by how often the whole trace uses them."""
        return sorted(range(self._trace.experts), key=lambda each: (-len(self._uses[each]), each))[:capacity]

    def see(self, number: int) -> None:
        """Take a token into account."""
        for expert in self._trace.tokens[number]:
            self._last[expert] = number
            self._count[expert] += 1
        if self._policy == "score" and self._trace.scores is not None:
            newest = self._trace.scores[number]
            self._mean = [
                (1 - _SCORE_WEIGHT) * mean + _SCORE_WEIGHT * new for mean, new in zip(self._mean, newest, strict=True)
            ]

    def worth(self, expert: int, number: int) -> float:
        """Larger is kept longer."""
        if self._policy == "lru":
            return self._last[expert]
        if self._policy == "lfu":
            return self._count[expert]
        if self._policy == "score":
            return self._mean[expert]
        uses = self._uses[expert]
        position = bisect_right(uses, number)
        return -(uses[position] if position < len(uses) else inf)


@lru_cache(maxsize=4096)
def _whole(profile: RoutingProfile, experts: int, active: int, capacity: int, policy: str) -> float:
    rates = [hit_rate(_trace(profile, experts, active, seed), capacity, policy) for seed in _SEEDS]
    return sum(rates) / len(rates)


@lru_cache(maxsize=32)
def _trace(profile: RoutingProfile, experts: int, active: int, seed: int) -> RoutingTrace:
    return generate(profile, experts, active, _TOKENS, seed)


def expected_hit_rate(
    profile: RoutingProfile, experts: int, active: int, capacity: float, policy: str = "lru"
) -> float:
    """Hit rate of a cache of `capacity` experts (a fraction interpolates) for one token after another.

    A cache that holds fewer experts than one token uses keeps what it can of them.
    """
    low, high = floor(capacity), ceil(capacity)
    below = _whole(profile, experts, active, low, policy)
    if low == high:
        return below
    return below + (capacity - low) * (_whole(profile, experts, active, high, policy) - below)
