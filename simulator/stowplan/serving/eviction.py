"""Which segment goes first when a place for cached blocks is full.

A conversation's end is useless without its beginning, so callers hand segments in from the end of a prompt to its
beginning, and every policy keeps that order among segments that were handed in together.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

EvictionName = Literal["lru", "cost"]
Ranges = tuple[tuple[int, int], ...]
"""Ranges of blocks of a segment, in rising order and apart from each other; nearly always one."""


class Shelf(Protocol):
    """Segments that may go, each with the ranges of its blocks that are there.

    Attributes:
        worth: seconds that a block of the segment saved which `take_first` returned last; 0 where nobody asks.
    """

    worth: float

    def __contains__(self, segment: object, /) -> bool: ...

    def __getitem__(self, segment: int, /) -> Ranges: ...

    def __len__(self) -> int: ...

    def put(self, segment: int, ranges: Ranges, worth: float, /) -> None:
        """A segment that is not there; `worth` is what a block of it saves, in seconds."""

    def take(self, segment: int, /) -> Ranges:
        """A segment that is there leaves; returns its ranges."""

    def take_first(self) -> tuple[int, Ranges]:
        """The segment that goes first leaves; there is one."""

    def first(self) -> int:
        """The segment that goes first."""


class LeastRecentlyUsed(OrderedDict[int, Ranges]):
    """The segment goes first whose last use is the longest ago."""

    worth = 0.0

    take = OrderedDict.pop

    def put(self, segment: int, ranges: Ranges, worth: float, /) -> None:  # noqa: ARG002
        """See `Shelf`."""
        self[segment] = ranges

    def take_first(self) -> tuple[int, Ranges]:
        """See `Shelf`."""
        return self.popitem(last=False)

    def first(self) -> int:
        """See `Shelf`."""
        return next(iter(self))


class GreedyDual:
    """The segment goes first that is worth least, where worth fades as others go.

    Source: Cao and Irani, Cost-aware WWW proxy caching algorithms (USITS 1997), with seconds of computing per block as
    cost over size. A beginning is worth at least what its end is, so that ends go first.
    """

    __slots__ = ("_count", "_heap", "_held", "_level", "worth")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._held: dict[int, tuple[tuple[float, int], float, Ranges]] = {}
        self._level = self.worth = 0.0
        self._count = 0

    def __contains__(self, segment: object, /) -> bool:
        return segment in self._held

    def __getitem__(self, segment: int, /) -> Ranges:
        return self._held[segment][2]

    def __len__(self) -> int:
        return len(self._held)

    def put(self, segment: int, ranges: Ranges, worth: float, /) -> None:
        """See `Shelf`."""
        self._count += 1
        priority = (self._level + worth, self._count)
        self._held[segment] = priority, worth, ranges
        heappush(self._heap, (*priority, segment))
        if len(self._heap) > 4 * len(self._held) + 1024:  # entries of segments that were taken out since
            self._heap = [(*entry[0], name) for name, entry in self._held.items()]
            heapify(self._heap)

    def take(self, segment: int, /) -> Ranges:
        """See `Shelf`."""
        _, self.worth, ranges = self._held.pop(segment)
        return ranges

    def take_first(self) -> tuple[int, Ranges]:
        """See `Shelf`."""
        segment = self.first()
        self._level = self._held[segment][0][0]
        return segment, self.take(segment)

    def first(self) -> int:
        """See `Shelf`."""
        heap, held = self._heap, self._held
        while heap[0][2] not in held or held[heap[0][2]][0] != heap[0][:2]:
            heappop(heap)
        return heap[0][2]


def make_shelf(name: EvictionName) -> Shelf:
    """A shelf by the name of its policy: ``lru`` or ``cost``."""
    return LeastRecentlyUsed() if name == "lru" else GreedyDual()
