"""Who is next: the order in which waiting requests are admitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf


class WaitingQueue(ABC):
    """Requests that have arrived and not been admitted, and those that were preempted and lost their cache.

    Requests are numbered in order of arrival.
    """

    @abstractmethod
    def head(self, now: float) -> int:
        """The request to admit next among those that have arrived by `now`; -1 for none."""

    @abstractmethod
    def pop(self) -> None:
        """Take out the request that `head` named last."""

    @abstractmethod
    def put_back(self, request: int) -> None:
        """A preempted request waits again."""

    @abstractmethod
    def next_change(self, now: float) -> float:
        """When the head can next become another one by an arrival alone; infinity for never."""

    @abstractmethod
    def next_arrival(self) -> float:
        """When the next request arrives; infinity after the last one."""


class FirstCome(WaitingQueue):
    """First come, first served. A preempted request came before every one that still waits."""

    __slots__ = ("_arrival", "_back", "_next")

    def __init__(self, arrival: Sequence[float]) -> None:
        self._arrival = [*arrival, inf]
        self._back: list[int] = []
        self._next = 0

    def head(self, now: float) -> int:
        """See `WaitingQueue`."""
        if self._back:
            return self._back[-1]
        return self._next if self._arrival[self._next] <= now else -1

    def pop(self) -> None:
        """See `WaitingQueue`."""
        if self._back:
            self._back.pop()
        else:
            self._next += 1

    def put_back(self, request: int) -> None:
        """See `WaitingQueue`; victims come back youngest first, so that the oldest ends up in front."""
        self._back.append(request)

    def next_change(self, now: float) -> float:
        """See `WaitingQueue`; a waiting head stays until it is admitted."""
        arrival = self._arrival[self._next]
        return inf if self._back or arrival <= now else arrival

    def next_arrival(self) -> float:
        """See `WaitingQueue`."""
        return self._arrival[self._next]


class Sorted(WaitingQueue):
    """Smallest key first, ties by arrival: predicted length, priority."""

    __slots__ = ("_arrival", "_heap", "_key", "_next")

    def __init__(self, arrival: Sequence[float], key: Sequence[int]) -> None:
        self._arrival = [*arrival, inf]
        self._key = key
        self._heap: list[tuple[int, int]] = []
        self._next = 0

    def head(self, now: float) -> int:
        """See `WaitingQueue`."""
        arrival, i = self._arrival, self._next
        while arrival[i] <= now:
            heappush(self._heap, (self._key[i], i))
            i += 1
        self._next = i
        return self._heap[0][1] if self._heap else -1

    def pop(self) -> None:
        """See `WaitingQueue`."""
        heappop(self._heap)

    def put_back(self, request: int) -> None:
        """See `WaitingQueue`."""
        heappush(self._heap, (self._key[request], request))

    def next_change(self, now: float) -> float:  # noqa: ARG002
        """See `WaitingQueue`; any arrival may be smaller than the head."""
        return self._arrival[self._next]

    def next_arrival(self) -> float:
        """See `WaitingQueue`."""
        return self._arrival[self._next]
