"""How local routing is over a segment of consecutive tokens, as arXiv:2505.16056 measures it.

``segment_routing`` is its segment routing best performance (SRP, section 2.2 and appendix C.1): the best F1 of a router
that must decide for a whole segment at once. ``segment_cache`` is its segment cache best hit rate (SCH, section 2.3): a
cache that knows how often each expert is used within the segment ahead. Both take several traces: SRP pools texts and
layers, SCH lets the layers of one text share one cache; the paper does so for its figures of whole models, and
recommends a cache of twice the active experts. ``segment_coverage`` is a plainer measure of this project alone: the
share of a segment's requests that its most used experts serve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest

from stowplan.errors import InputError
from stowplan.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class SegmentRouting:
    """The best router that decides once per segment.

    Attributes:
        f1: its F1 against the routing of single tokens (SRP), from 0 to 1.
        size: experts that it activates per expert that a token uses (the paper's size ratio).
    """

    f1: float
    size: float


def segment_routing(traces: Sequence[RoutingTrace], segment: int) -> SegmentRouting:
    """Best F1 over all routers that take each expert for all of a segment's tokens or for none of them.

    Segments of `segment` tokens start at every token. The best router takes the experts that a segment uses at least
    some number of times, and this threshold is the same for all experts of the group (appendix C.3): adding a use pays
    where its precision is at least half of the F1.

    Raises:
        InputError: a segment below 1 or longer than a trace, or no trace.
    """
    import numpy as np

    if not traces or not 1 <= segment <= min(len(trace.tokens) for trace in traces):
        raise InputError(f"segments of {segment} tokens: there must be traces of at least one such segment")
    often = np.zeros(segment + 1)
    for trace in traces:
        used = np.zeros((len(trace.tokens) + 1, trace.experts), dtype=np.int64)
        rows = np.repeat(np.arange(len(trace.tokens)), [len(chosen) for chosen in trace.tokens])
        used[rows + 1, [expert for chosen in trace.tokens for expert in chosen]] = 1
        total = used.cumsum(axis=0)
        often += np.bincount((total[segment:] - total[:-segment]).ravel(), minlength=segment + 1)
    # From the last threshold to the first: uses that are served, and uses that are provided.
    served = (often * np.arange(segment + 1))[::-1].cumsum()[::-1]
    provided = often[::-1].cumsum()[::-1] * segment
    f1 = 2.0 * served[1:] / (provided[1:] + served[0])
    best = int(f1.argmax())
    return SegmentRouting(float(f1[best]), float(provided[best + 1] / served[0]))


def segment_cache(layers: Sequence[RoutingTrace], segment: int, capacity: int) -> float:
    """Hit rate of a cache of `capacity` experts that throws out what its layers use least in the segment ahead.

    The segment of `segment` tokens begins with the present one, as in the program behind the paper's figures
    (src/41_sch_calc.py of github.com/ljcleo/moe-lrc; the text says "the next" tokens). Every expert that a token asks
    for is loaded; of those that are used equally often, the one used longest ago goes. The cache starts empty.

    Args:
        layers: routing of one text by the layers that share the cache.

    Raises:
        InputError: a segment below 1, layers of different length, or less room than one token needs.
    """
    if segment < 1 or not layers or len({len(layer.tokens) for layer in layers}) != 1:
        raise InputError(f"segments of {segment} tokens of {len(layers)} layers: need both, and layers of one length")
    tokens = [
        [(layer, expert) for layer, trace in enumerate(layers) for expert in trace.tokens[number]]
        for number in range(len(layers[0].tokens))
    ]
    if capacity < max(map(len, tokens)):
        raise InputError(f"a cache of {capacity} experts cannot hold the {max(map(len, tokens))} that one token needs")
    ahead = Counter(each for asked in tokens[: segment - 1] for each in asked)
    last: dict[tuple[int, int], int] = {}
    held: set[tuple[int, int]] = set()
    hits = 0
    for number, asked in enumerate(tokens):
        ahead.update(each for later in tokens[number + segment - 1 : number + segment] for each in later)
        ahead.subtract(asked)
        hits += sum(each in held for each in asked)
        last.update(dict.fromkeys(asked, number))
        held.update(asked)
        worth = [(ahead[each], last[each], each) for each in held.difference(asked)]
        held.difference_update(each for *_, each in nsmallest(len(held) - capacity, worth))
    return hits / sum(map(len, tokens))


def segment_coverage(trace: RoutingTrace, segment: int, group: int) -> float:
    """Mean share of the requests of `segment` consecutive tokens that the best group of `group` experts serves.

    Raises:
        InputError: a segment or a group below 1.
    """
    if segment < 1 or group < 1:
        raise InputError(f"a segment of {segment} tokens and a group of {group} experts: both must be at least 1")
    covered = asked = 0
    for first in range(0, len(trace.tokens), segment):
        counts = Counter(expert for chosen in trace.tokens[first : first + segment] for expert in chosen)
        covered += sum(count for _, count in counts.most_common(group))
        asked += sum(counts.values())
    return covered / asked
