"""Which segment goes first when a tier of the cache is full.

A conversation's end is useless without its beginning, so callers hand segments in from the end of a prompt to its
beginning, and every policy keeps that order among segments that were handed in together.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

EvictionName = Literal["lru", "cost"]


class Eviction(Protocol):
    """Segments that may go, in the order in which they do; its length is their number."""

    def add(self, segment: int, worth: float, /) -> None:
        """A segment that may go from now on; `worth` is what a block of it saves, in seconds."""

    def remove(self, segment: int, /) -> None:
        """A segment that may not go, or is gone."""

    def first(self) -> int:
        """The segment that goes first; there is one."""

    def __len__(self) -> int: ...


class LeastRecentlyUsed(OrderedDict[int, float]):
    """The segment whose last use is the longest ago."""

    __slots__ = ()

    add = OrderedDict.__setitem__
    remove = OrderedDict.__delitem__

    def first(self) -> int:
        """See `Eviction`."""
        return next(iter(self))


class GreedyDual:
    """The segment that is worth least, where worth fades as others go.

    Source: Cao and Irani, Cost-aware WWW proxy caching algorithms (USITS 1997), with seconds of computing per block as
    cost over size. A beginning is worth at least what its end is, so that ends go first.
    """

    __slots__ = ("_count", "_heap", "_level", "_priority")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._priority: dict[int, tuple[float, int]] = {}
        self._level = 0.0
        self._count = 0

    def add(self, segment: int, worth: float, /) -> None:
        """See `Eviction`."""
        self._count += 1
        entry = (self._level + worth, self._count)
        self._priority[segment] = entry
        heappush(self._heap, (*entry, segment))
        if len(self._heap) > 4 * len(self._priority) + 1024:  # entries of segments that were taken out since
            self._heap = [(*kept, name) for name, kept in self._priority.items()]
            heapify(self._heap)

    def remove(self, segment: int, /) -> None:
        """See `Eviction`."""
        del self._priority[segment]

    def first(self) -> int:
        """See `Eviction`."""
        heap, priority = self._heap, self._priority
        while priority.get(heap[0][2]) != heap[0][:2]:
            heappop(heap)
        self._level = heap[0][0]
        return heap[0][2]

    def __len__(self) -> int:
        return len(self._priority)


def make_eviction(name: EvictionName) -> Eviction:
    """A policy by name: ``lru`` or ``cost``."""
    return LeastRecentlyUsed() if name == "lru" else GreedyDual()
