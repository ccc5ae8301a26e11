"""Who is next: the order in which waiting requests are admitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
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

    @abstractmethod
    def arrival_of(self, request: int) -> float:
        """When a request arrived or will arrive, in seconds."""


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
        """See `WaitingQueue`; victims mostly come youngest first, but one that was swapped was admitted anew."""
        self.back.append(request)
        if len(self.back) > 1 and self.back[-2] < request:
            self.back.sort(reverse=True)

    def next_change(self, now: float) -> float:
        """See `WaitingQueue`; a waiting head stays until it is admitted."""
        arrival = self.arrival[self.next]
        return inf if self.back or arrival <= now else arrival

    def next_arrival(self) -> float:
        """See `WaitingQueue`."""
        return self.arrival[self.next]

    def arrival_of(self, request: int) -> float:
        """See `WaitingQueue`."""
        return self.arrival[request]


class Sorted(WaitingQueue):
    """Smallest key first, ties by arrival: predicted length, priority."""

    __slots__ = ("_arrival", "_heap", "_key", "_next")

    def __init__(self, arrival: Sequence[float], key: Sequence[int]) -> None:
        self._arrival = [*arrival, inf]
        self._key = [*key]
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

    def arrival_of(self, request: int) -> float:
        """See `WaitingQueue`."""
        return self._arrival[request]


class Pool(WaitingQueue):
    """Smallest key first, ties by arrival, with all that the plain queues leave out.

    Requests may be handed in one by one, as a router does, and clients may turn away: at once from a full queue, else
    when their patience ends.

    Args:
        arrival, key: by request; equal keys make it first come, first served.
        coming: requests that come at their arrival without being handed in.
        room: requests that may wait at a time; what comes beyond them is refused.
        patience_s: seconds from its arrival after which a request that still waits is gone.

    Attributes:
        refused, expired: requests that went away.
    """

    __slots__ = (
        "_ages",
        "_arrival",
        "_coming",
        "_heap",
        "_key",
        "_patience",
        "_room",
        "_waiting",
        "expired",
        "refused",
    )

    def __init__(
        self,
        arrival: Sequence[float],
        key: Sequence[int],
        coming: Iterable[int] = (),
        room: float = inf,
        patience_s: float = inf,
    ) -> None:
        self._arrival, self._key = arrival, key
        self._room, self._patience = room, patience_s
        self._coming = [(arrival[request], request) for request in coming]
        self._heap: list[tuple[int, int]] = []
        self._waiting: set[int] = set()
        self._ages: list[int] = []
        self.refused: list[int] = []
        self.expired: list[int] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._coming)

    def push(self, request: int, moment: float) -> None:
        """A request comes at that moment, which has not passed yet."""
        heappush(self._coming, (moment, request))

    def _first_end(self) -> float:
        """When the next of those that wait turns away."""
        ages = self._ages
        while ages and ages[0] not in self._waiting:
            heappop(ages)
        return self._arrival[ages[0]] + self._patience if ages else inf

    def _expire(self, now: float) -> None:
        """Those that waited too long leave."""
        while self._first_end() <= now:
            request = heappop(self._ages)
            self._waiting.discard(request)
            self.expired.append(request)

    def _join(self, request: int) -> None:
        self._waiting.add(request)
        heappush(self._ages, request)
        heappush(self._heap, (self._key[request], request))

    def head(self, now: float) -> int:
        """See `WaitingQueue`."""
        coming = self._coming
        while coming and coming[0][0] <= now:
            moment, request = heappop(coming)
            if len(self._waiting) >= self._room:
                self._expire(moment)
            if len(self._waiting) >= self._room:
                self.refused.append(request)
            else:
                self._join(request)
        self._expire(now)
        heap = self._heap
        while heap and heap[0][1] not in self._waiting:
            heappop(heap)
        return heap[0][1] if heap else -1

    def pop(self) -> None:
        """See `WaitingQueue`."""
        self._waiting.discard(heappop(self._heap)[1])

    def put_back(self, request: int) -> None:
        """See `WaitingQueue`; one that was admitted before always has a place."""
        self._join(request)

    def next_change(self, now: float) -> float:  # noqa: ARG002
        """See `WaitingQueue`."""
        return min(self.next_arrival(), self._first_end())

    def next_arrival(self) -> float:
        """See `WaitingQueue`."""
        return self._coming[0][0] if self._coming else inf

    def arrival_of(self, request: int) -> float:
        """See `WaitingQueue`."""
        return self._arrival[request]
