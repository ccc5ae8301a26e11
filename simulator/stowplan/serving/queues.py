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
    """First come, first served. A preempted request came before every one that still waits.

    Attributes:
        arrival: seconds by request, then infinity.
        next: the first request that has never been admitted.
        back: preempted requests, the oldest last.
    """

    __slots__ = ("arrival", "back", "next")

    def __init__(self, arrival: Sequence[float]) -> None:
        self.arrival = [*arrival, inf]
        self.back: list[int] = []
        self.next = 0

    def head(self, now: float) -> int:
        """See `WaitingQueue`."""
        if self.back:
            return self.back[-1]
        return self.next if self.arrival[self.next] <= now else -1

    def pop(self) -> None:
        """See `WaitingQueue`."""
        if self.back:
            self.back.pop()
        else:
            self.next += 1

    def put_back(self, request: int) -> None:
        """See `WaitingQueue`; victims come back youngest first, so that the oldest ends up in front."""
        self.back.append(request)

    def next_change(self, now: float) -> float:
        """See `WaitingQueue`; a waiting head stays until it is admitted."""
        arrival = self.arrival[self.next]
        return inf if self.back or arrival <= now else arrival

    def next_arrival(self) -> float:
        """See `WaitingQueue`."""
        return self.arrival[self.next]


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
