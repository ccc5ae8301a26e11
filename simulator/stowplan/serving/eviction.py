"""Which segment goes first when a place for cached blocks is full.

A conversation's end is useless without its beginning, so callers hand segments in from the end of a prompt to its
beginning, and every policy keeps that order among segments that were handed in together.

A segment is not taken out when it is used: it is handed in once more when the use has ended, and what was noted of it
before is skipped when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

EvictionName = Literal["lru", "cost"]
Piece = tuple[int, int, int, float]
"""Blocks of a segment that leave a place together: the segment, the first of them, the one behind the last, when."""


class Shelf(Protocol):
    """Segments in the order in which they go."""

    def put(self, segment: int) -> None:
        """The last use of a segment has ended."""

    def first(self) -> int:
        """The segment that goes first; there is one that is not in use."""

    def drop(self) -> None:
        """The segment that `first` just named is gone."""

    def trim(self, over: int, sizes: Sequence[int], missing: list[int], now: float, gone: list[Piece]) -> None:
        """Let so many blocks go, the end of each segment first.

        Args:
            over: blocks that have to go, of those that are not in use.
            sizes: by segment, its blocks.
            missing: by segment, blocks at its end that are not there; brought up to date.
            now: the moment.
            gone: what goes is noted there, in the order in which it goes.
        """

    def order(self) -> list[int]:
        """Segments that are not in use, in the order in which they go if nothing else happens."""


class LeastRecentlyUsed:
    """The segment goes first whose last use ended the longest ago.

    A queue holds every end of a use; all but the last one of a segment are skipped.

    Args:
        busy: by segment, whether it is in use; changed by others.
    """

    __slots__ = ("_busy", "_queue", "_times")

    def __init__(self, busy: Sequence[int]) -> None:
        self._busy = busy
        self._queue: deque[int] = deque()
        self._times = [0] * len(busy)

    def put(self, segment: int) -> None:
        """See `Shelf`."""
        queue = self._queue
        if not queue or queue[-1] != segment:
            queue.append(segment)
            self._times[segment] += 1

    def first(self) -> int:
        """See `Shelf`."""
        queue, times, busy = self._queue, self._times, self._busy
        segment = queue[0]
        while times[segment] > 1 or busy[segment]:
            times[segment] -= 1
            queue.popleft()
            segment = queue[0]
        return segment

    def drop(self) -> None:
        """See `Shelf`."""
        self._times[self._queue.popleft()] = 0

    def trim(self, over: int, sizes: Sequence[int], missing: list[int], now: float, gone: list[Piece]) -> None:
        """See `Shelf`."""
        queue, times, busy = self._queue, self._times, self._busy
        while over > 0:
            segment = queue[0]
            if times[segment] > 1 or busy[segment]:
                times[segment] -= 1
                queue.popleft()
                continue
            size = sizes[segment]
            end = size - missing[segment]
            if end > over:
                missing[segment] = size - end + over
                gone.append((segment, end - over, end, now))
                return
            times[segment] = 0
            queue.popleft()
            if end:
                over -= end
                missing[segment] = size
                gone.append((segment, 0, end, now))

    def order(self) -> list[int]:
        """See `Shelf`."""
        last_first = dict.fromkeys(reversed(self._queue))
        return [segment for segment in reversed(last_first) if not self._busy[segment]]


class GreedyDual:
    """The segment goes first that is worth least, where worth fades as others go.

    Source: Cao and Irani, Cost-aware WWW proxy caching algorithms (USITS 1997), with seconds of computing per block as
    cost over size. Ends go first where a beginning is worth at least what its ends are.

    Args:
        busy: by segment, whether it is in use; changed by others.
        worth: by segment, seconds that a block of it saves; changed by others.
    """

    __slots__ = ("_busy", "_count", "_heap", "_level", "_noted", "_worth")

    def __init__(self, busy: Sequence[int], worth: Sequence[float]) -> None:
        self._busy, self._worth = busy, worth
        self._heap: list[tuple[float, int, int]] = []
        self._noted: dict[int, int] = {}
        self._level = 0.0
        self._count = 0

    def put(self, segment: int) -> None:
        """See `Shelf`."""
        self._count += 1
        self._noted[segment] = self._count
        heappush(self._heap, (self._level + self._worth[segment], self._count, segment))
        if len(self._heap) > 4 * len(self._noted) + 1024:  # most are of earlier uses
            self._heap = [entry for entry in self._heap if self._noted.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def first(self) -> int:
        """See `Shelf`."""
        heap, noted, busy = self._heap, self._noted, self._busy
        while noted.get(heap[0][2]) != heap[0][1] or busy[heap[0][2]]:
            heappop(heap)
        return heap[0][2]

    def drop(self) -> None:
        """See `Shelf`."""
        self._level, _, segment = heappop(self._heap)
        del self._noted[segment]

    def trim(self, over: int, sizes: Sequence[int], missing: list[int], now: float, gone: list[Piece]) -> None:
        """See `Shelf`."""
        while over > 0:
            segment = self.first()
            end = sizes[segment] - missing[segment]
            start = max(0, end - over)
            if not start:
                self.drop()
            over -= end - start
            missing[segment] += end - start
            if end:
                gone.append((segment, start, end, now))

    def order(self) -> list[int]:
        """See `Shelf`; their order also depends on what is put there, by how far worth has faded."""
        live = sorted(entry for entry in self._heap if self._noted.get(entry[2]) == entry[1])
        return [segment for _, _, segment in live if not self._busy[segment]]


def make_shelf(name: EvictionName, busy: Sequence[int], worth: Sequence[float]) -> Shelf:
    """A shelf by the name of its policy: ``lru`` or ``cost``."""
    return LeastRecentlyUsed(busy) if name == "lru" else GreedyDual(busy, worth)
