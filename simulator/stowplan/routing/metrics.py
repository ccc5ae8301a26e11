"""How local a trace's routing is, per segment of consecutive tokens (after arXiv:2505.16056).

``segment_routing``: the share of a segment's requests that the best fixed group of experts of a given size covers
(SRP). ``segment_cache``: the hit rate of a cache that may choose its content anew for every segment, knowing the
segment, and pays for each change by one miss (SCH). The paper recommends a cache of twice the active experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from stowplan.errors import InputError
from stowplan.routing.trace import RoutingTrace


def segment_routing(trace: RoutingTrace, segment: int, group: int) -> float:
    """Mean share of the requests of `segment` consecutive tokens that the best group of `group` experts covers.

    Raises:
        InputError: a segment or a group below 1.
    """
    covered = asked = 0
    for counts in _segments(trace, segment, group):
        covered += sum(count for _, count in counts.most_common(group))
        asked += sum(counts.values())
    return covered / asked


def segment_cache(trace: RoutingTrace, segment: int, capacity: int) -> float:
    """Hit rate of a cache of `capacity` experts that is refilled for every segment with its best content.

    An expert that was not in the cache before its segment costs one miss, however often the segment uses it then.

    Raises:
        InputError: a segment or a capacity below 1.
    """
    held: set[int] = set()
    hits = asked = 0
    for counts in _segments(trace, segment, capacity):
        # What is held counts fully, what is not counts one use less.
        gain = {expert: count - (expert not in held) for expert, count in counts.items()}
        best = sorted(gain, key=lambda expert: (-gain[expert], expert not in held, expert))[:capacity]
        hits += sum(gain[expert] for expert in best)
        asked += sum(counts.values())
        spare = sorted(held.difference(best))[: capacity - len(best)]
        held = {*best, *spare}
    return hits / asked


def _segments(trace: RoutingTrace, segment: int, size: int) -> Iterator[Counter[int]]:
    if segment < 1 or size < 1:
        raise InputError(f"a segment of {segment} tokens and a group of {size} experts: both must be at least 1")
    for first in range(0, len(trace.tokens), segment):
        yield Counter(expert for chosen in trace.tokens[first : first + segment] for expert in chosen)
