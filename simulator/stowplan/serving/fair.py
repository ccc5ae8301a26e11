"""Fair to clients: who has been served least goes first, and running sequences make way for them.

As the virtual token counter of Sheng et al. (Fairness in serving large language models, OSDI 2024): a client's counter
grows by one for a token of a prompt that is admitted and by two for a token that is generated, and a client that comes
back starts from the least counter among those that wait or run. As FastSwitch (2024), the order is looked at afresh
every so many steps; sequences that lose their place are switched out, by a copy to host memory or by dropping their
cache, and come back when it is their turn. Copies hold the engine up. Prompts are processed whole, ahead of decoding.
"""

from __future__ import annotations

from heapq import heappop, heappush, nsmallest
from math import inf

from stowplan.serving.continuous import Continuous
from stowplan.serving.core import Core
from stowplan.serving.queues import WaitingQueue

_QUANTUM = 50
"""Steps between two looks at the order; FastSwitch's evaluation updates priorities every 25 to 100 iterations."""
_PROMPT_WEIGHT, _OUTPUT_WEIGHT = 1, 2
"""Price of a prompt token and of a generated one; section 3.1 of the fairness paper, after what providers charge."""


class FairQueue(WaitingQueue):
    """The oldest request of the client with the smallest counter first.

    Attributes:
        counter: service received by each client that was ever seen.
        client: client of each request; active: requests of a client that wait or run.
    """

    def __init__(self, arrival: list[float], client: list[int]) -> None:
        self._arrival = [*arrival, inf]
        self.client = client
        self.counter: dict[int, int] = {}
        self.active: dict[int, int] = {}
        self._waiting: dict[int, list[int]] = {}
        self._heap: list[tuple[int, int, int]] = []
        self._next = 0

    def head(self, now: float) -> int:
        """See `WaitingQueue`."""
        while self._arrival[self._next] <= now:
            self._join(self._next)
            self._next += 1
        heap = self._heap
        while heap:
            counter, request, client = heap[0]
            if self.counter[client] == counter and self._waiting.get(client, (-1,))[0] == request:
                return request
            heappop(heap)
        return -1

    def charge(self, client: int, tokens: int) -> None:
        """A client was served."""
        self.counter[client] += tokens
        self._offer(client)

    def _offer(self, client: int) -> None:
        """Note the rank of a client's oldest request; what was noted before it no longer holds."""
        if client in self._waiting:
            heappush(self._heap, (self.counter[client], self._waiting[client][0], client))

    def _join(self, request: int) -> None:
        client = self.client[request]
        if not self.active.get(client):  # back after a pause, or new: no credit for the time away
            least = min((self.counter[other] for other, count in self.active.items() if count), default=0)
            self.counter[client] = max(self.counter.get(client, 0), least)
        self.active[client] = self.active.get(client, 0) + 1
        self.put_back(request)

    def pop(self) -> None:
        """See `WaitingQueue`."""
        client = heappop(self._heap)[2]
        heappop(self._waiting[client])
        if not self._waiting[client]:
            del self._waiting[client]
        self._offer(client)

    def put_back(self, request: int) -> None:
        """See `WaitingQueue`."""
        client = self.client[request]
        heappush(self._waiting.setdefault(client, []), request)
        self._offer(client)

    def next_change(self, now: float) -> float:  # noqa: ARG002
        """See `WaitingQueue`."""
        return self._arrival[self._next]

    def next_arrival(self) -> float:
        """See `WaitingQueue`."""
        return self._arrival[self._next]

    def arrival_of(self, request: int) -> float:
        """See `WaitingQueue`."""
        return self._arrival[request]

    def rank(self, request: int) -> tuple[int, int]:
        """What requests are sorted by."""
        return self.counter[self.client[request]], request

    def best(self, count: int) -> list[int]:
        """The first of those who wait."""
        return nsmallest(count, (request for requests in self._waiting.values() for request in requests), self.rank)


class Fair(Continuous):
    """Least served first; see the module's text."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        assert isinstance(core.waiting, FairQueue)
        self._queue = core.waiting
        self._counted: dict[int, int] = {}
        self._look_at = 0

    def run(self, until: float = inf) -> None:
        """See `Scheduler`."""
        core, queue = self.core, self._queue
        while core.now < until:
            head = queue.head(core.now)
            if core.passes >= self._look_at:
                self._count()
                self._switch()
                self._look_at = core.passes + _QUANTUM
                head = queue.head(core.now)
            outranks = head >= 0 and (not core.swapped or queue.rank(head) < queue.rank(core.swapped[-1]))
            if outranks and self._admit():
                continue
            if core.batch or core.swapped:
                copies = core.make_room()
                if copies is None and core.swapped:
                    copies = core.bring_back(core.batch)
                core.longest_run = max(1, self._look_at - core.passes)
                core.horizon = min(until, queue.next_arrival())
                core.decode(copies)
                continue
            self._count()
            arrival = queue.next_arrival()
            if arrival >= until:
                return
            core.wait_until(arrival)

    def _admit(self) -> bool:
        """Process the prompts that there is room for; those that are new are charged to their clients."""
        queue, admitted = self._queue, self._prefill()
        for request in admitted:
            if request not in self._counted:
                self._counted[request] = 0
                queue.charge(queue.client[request], _PROMPT_WEIGHT * self.core.prompt[request])
        return bool(admitted)

    def _count(self) -> None:
        """Charge what was generated since the last look, and note whose requests are done."""
        core, queue = self.core, self._queue
        for request, counted in list(self._counted.items()):
            made = core.made_of(request)
            if made > counted:
                queue.charge(queue.client[request], _OUTPUT_WEIGHT * (made - counted))
            self._counted[request] = made
            if made == core.output[request]:
                del self._counted[request]
                queue.active[queue.client[request]] -= 1

    def _switch(self) -> None:
        """Sequences make way for those that outrank them; the rest is put in order of rank."""
        core, queue, limits = self.core, self._queue, self.core.limits
        running = core.decoding()
        held = {request: limits.blocks(core.cached_of(request) + 1) for request in running}
        held |= {request: limits.blocks(core.prompt[request] + core.made[request]) for request in core.swapped}
        held |= {request: limits.blocks(core.length(request)) for request in queue.best(limits.max_running)}
        room, blocks = limits.max_running, limits.kv_blocks - core.reserve
        chosen: set[int] = set()
        for request in sorted(held, key=queue.rank):
            blocks -= held[request]
            if not room or blocks < 0:
                break
            room -= 1
            chosen.add(request)
        if not chosen <= set(running):
            seconds = 0.0
            for request in sorted(set(running) - chosen, key=queue.rank, reverse=True):
                seconds += core.preempt(request)
            core.now += seconds
        core.order = sorted(core.decoding(), key=queue.rank)
        core.swapped.sort(key=queue.rank, reverse=True)
