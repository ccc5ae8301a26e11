"""Scouts: processes that run later stretches of a trace while the replay runs the first; see `stretches`.

Each gets the requests from its first one on, an idle engine and an empty cache. For some time it publishes the
fingerprint of its state at every pause. Whoever comes from behind, the replay or an earlier scout, stops at the first
pause with the same fingerprint; the rows and accounts of the scout go on from there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stowplan.children import deaf_children, ignore_interrupts
from stowplan.serving.account import Account
from stowplan.serving.chains import Chains
from stowplan.serving.core import Core
from stowplan.serving.limits import Limits
from stowplan.serving.policies import Caching, make_engine, policy_of
from stowplan.serving.queues import FirstCome
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import StepTime
from stowplan.serving.stretches import PRINT_BYTES, Pause, chains_from, fingerprint, marks_of, run_in_stretches
from stowplan.serving.tables import StepTables

LEAST_ROWS = 100_000
"""Requests that are worth a process: it takes as long to start as they take to run, or less."""
_TURNS = 1.5
"""How often all that a cache holds has been replaced until a scout's is as it would have been, about. It decides only
where scouts start: measured on a BurstGPT-like trace with conversations, 1.3 to 1.6."""
_PUBLISHED = 0.5, 2.0
"""Where scouts publish fingerprints, in parts of the rows that this is thought to take: each costs about as much time
as 2,000 requests."""


@dataclass(frozen=True, slots=True)
class Mission:
    """What scouts have to know.

    Attributes:
        requests: all that can run; chains: segments of their prompts, None for no cache.
        step_time, limits, scheduler, caching: as for `stowplan.serving.replay.replay`.
        longest: most tokens of one request.
    """

    requests: Requests
    chains: Chains | None
    step_time: StepTime
    longest: int
    limits: Limits
    scheduler: str
    caching: Caching | None


@dataclass(frozen=True, slots=True)
class _Order:
    """Mission of one scout.

    Attributes:
        mission: its requests are those of the scout, its segments those of the whole trace.
        earlier, count: requests before the scout's, and of the whole trace.
        publish: rows from which and up to which fingerprints are published.
    """

    mission: Mission
    earlier: int
    count: int
    publish: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Findings:
    """What a scout found.

    Attributes:
        earlier: requests of the trace before its first one.
        started, first, finished, reused: columns of its requests, up to where it stopped.
        preemptions: by row of the trace.
        accounts: (row of the trace, account from there on).
        now, free, met: seconds and free blocks at its end; scout that it met there, -1 for none.
    """

    earlier: int
    started: NDArray[np.float64]
    first: NDArray[np.float64]
    finished: NDArray[np.float64]
    reused: NDArray[np.int64]
    preemptions: dict[int, int]
    accounts: list[tuple[int, Account]]
    now: float
    free: int
    met: int


class _Board:
    """Memory that all processes share: fingerprints by scout and mark, and requests that each scout has run."""

    def __init__(self, scouts: int, marks: int) -> None:
        self._marks, self._scouts = marks, scouts
        self._prints = RawArray("c", scouts * marks * PRINT_BYTES)
        self.rows = RawArray("q", scouts)

    def publish(self, scout: int, mark: int, state: bytes) -> None:
        """A scout pauses behind a mark."""
        at = (scout * self._marks + mark) * PRINT_BYTES
        memoryview(self._prints).cast("B")[at : at + PRINT_BYTES] = state

    def published(self, after: int, mark: int) -> dict[bytes, int]:
        """Fingerprints behind a mark of the scouts after that one, with their numbers."""
        found: dict[bytes, int] = {}
        for scout in range(after + 1, self._scouts):
            at = (scout * self._marks + mark) * PRINT_BYTES
            state = bytes(memoryview(self._prints).cast("B")[at : at + PRINT_BYTES])
            if any(state):
                found[state] = scout
        return found


class Scouts:
    """The scouts of one replay; they end with the context.

    Args:
        wanted: processes to start at most.
        count: requests that the replay has.
        caching: prefix cache of the engine.
    """

    def __init__(self, wanted: int, count: int, caching: Caching | None) -> None:
        if caching is not None and caching.eviction != "lru":
            wanted = 0  # what fades depends on all that ever was
        self._count = count
        self._board = _Board(max(0, min(wanted, count // LEAST_ROWS - 1)), len(marks_of(count)))
        self._links: list[Connection] = []
        self._processes: list[Any] = []
        self._found: list[_Findings] = []

    def __enter__(self) -> Self:
        context = get_context("spawn")
        with deaf_children():
            for number in range(len(self._board.rows)):
                here, there = context.Pipe()
                process = context.Process(target=_scout, args=(number, there, self._board), daemon=True)
                process.start()
                there.close()
                self._links.append(here)
                self._processes.append(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links:
            link.close()
        for process in self._processes:
            process.terminate()
            process.join()

    def send(self, mission: Mission) -> None:
        """Tell the scouts where they start and what they run."""
        if not self._links:
            return
        starts, overlap = _starts(mission, len(self._links) + 1)
        requests = replace(mission.requests, prefix=None, session=None)
        for link, start in zip(self._links, starts, strict=False):
            part = replace(mission, requests=requests.take(np.arange(start, self._count)))
            with suppress(OSError):  # a process that is gone is met nowhere
                publish = start + int(_PUBLISHED[0] * overlap), start + int(_PUBLISHED[1] * overlap)
                link.send(_Order(part, start, self._count, publish))

    def match(self, core: Core) -> Pause | None:
        """What the replay is to call at its pauses; None where there are no scouts."""
        if not self._links:
            return None
        segments = np.arange(0 if core.cache is None else core.cache.segments)

        def pause(mark: int) -> bool:
            others = self._board.published(-1, mark)
            met = others.get(fingerprint(core, 0, segments), -1) if others else -1
            return met >= 0 and self._receive(met)

        return pause

    def share(self, begun: float) -> float:
        """How far the replay is, 0 to 1, when it has begun that share of the requests itself."""
        return min(1.0, begun + sum(self._board.rows) / self._count) if self._count else 1.0

    def _receive(self, scout: int) -> bool:
        """Wait for what a scout found, and those whom it met; whether all of it came."""
        self._found = []
        while scout >= 0:
            try:
                self._found.append(self._links[scout].recv())
            except (EOFError, OSError):  # its process was ended, for want of memory perhaps
                self._found = []
                break
            scout = self._found[-1].met
        return bool(self._found)

    def adopt(self, core: Core) -> list[Account]:
        """Take over what the scouts found behind the place where the replay stopped; the accounts of that."""
        accounts: list[Account] = []
        waiting = core.waiting
        for found in self._found:
            assert isinstance(waiting, FirstCome)
            row, end = waiting.next, found.earlier + len(found.started)
            for column, values in (
                (core.started, found.started),
                (core.first, found.first),
                (core.finished, found.finished),
                (core.reused, found.reused),
            ):
                np.frombuffer(column, dtype=values.dtype)[row:end] = values[row - found.earlier :]
            core.preemptions |= {request: times for request, times in found.preemptions.items() if request >= row}
            accounts += [account for begin, account in found.accounts if begin >= row]
            core.now, core.free, waiting.next = found.now, found.free, end
        return accounts


def _starts(mission: Mission, processes: int) -> tuple[list[int], int]:
    """Rows at which scouts start so that all have equally much to do, and rows until they know what is in the cache."""
    count, limits, caching, chains = len(mission.requests), mission.limits, mission.caching, mission.chains
    marks = marks_of(count)
    overlap = 2 * marks.step
    if caching is not None and chains is not None:
        new_blocks = max(1, int(chains.sizes.sum())) / count
        held = limits.kv_blocks + sum(tier.blocks for tier in caching.tiers)
        overlap += int(_TURNS * held / new_blocks)
    while processes > 1:
        each = (count + (processes - 1) * overlap) // processes
        if each >= max(LEAST_ROWS, 2 * overlap):
            return [marks[k * (each - overlap) // marks.step - 1] for k in range(1, processes)], overlap
        processes -= 1
    return [], overlap


def _scout(number: int, link: Connection, board: _Board) -> None:
    """What a scout's process does."""
    ignore_interrupts()
    try:
        order: _Order = link.recv()
    except EOFError:  # nobody needs it
        return
    link.send(_explore(number, order, board))
    link.close()


def _explore(number: int, order: _Order, board: _Board) -> _Findings:
    mission, earlier = order.mission, order.earlier
    chains, segments = None, np.arange(0)
    if mission.chains is not None:
        chains, segments = chains_from(mission.chains, earlier)
    engine = make_engine(
        policy_of(mission.scheduler, mission.limits, mission.caching),
        mission.requests,
        StepTables(mission.step_time, mission.longest, mission.limits),
        mission.limits,
        mission.caching,
        chains,
        earlier=earlier,
        trace_requests=order.count,
    )
    core, begins, met = engine.core, [earlier], -1
    waiting = core.waiting
    assert isinstance(waiting, FirstCome)

    def pause(mark: int) -> bool:
        nonlocal met
        row = waiting.next + earlier
        begins.append(row)
        board.rows[number] = waiting.next
        others, publishes = board.published(number, mark), order.publish[0] <= row <= order.publish[1]
        if others or publishes:
            state = fingerprint(core, earlier, segments)
            met = others.get(state, -1)
            if publishes:
                board.publish(number, mark, state)
        return met >= 0

    accounts = run_in_stretches(engine, earlier, order.count, pause)
    board.rows[number], end = waiting.next, waiting.next
    return _Findings(
        earlier,
        np.asarray(core.started)[:end],
        np.asarray(core.first)[:end],
        np.asarray(core.finished)[:end],
        np.asarray(core.reused)[:end],
        {request + earlier: times for request, times in core.preemptions.items()},
        list(zip(begins, accounts, strict=False)),
        core.now,
        core.free,
        met,
    )
