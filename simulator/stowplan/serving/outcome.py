"""What happened in a replay: one row per request, and the engine's own account."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from stowplan.serving.account import Account, CacheAccount, whole
from stowplan.serving.core import Core
from stowplan.serving.queues import Pool
from stowplan.serving.requests import Requests
from stowplan.serving.tiers import Tier


class State(IntEnum):
    """How a request ended."""

    FINISHED = 0
    TOO_LONG = 1
    """Its prompt and output never fit into the cache."""
    REFUSED = 2
    """The queue was full when it arrived."""
    TIMED_OUT = 3
    """Its client stopped waiting."""


@dataclass(frozen=True, slots=True)
class TierUse:
    """What a place for cached blocks did.

    Attributes:
        name: of the place; the GPU first.
        hit_tokens: prompt tokens that were found there.
        blocks, peak_blocks: blocks that it may hold and the most that it held; on the GPU those of running sequences
            included.
        read_blocks, written_blocks, dropped_blocks: blocks read, written, and not written because the writer was busy.
        write_s: seconds of writing.
    """

    name: str
    hit_tokens: int
    blocks: int
    peak_blocks: int
    read_blocks: int = 0
    written_blocks: int = 0
    dropped_blocks: int = 0
    write_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What a prefix cache did.

    Attributes:
        looked_up_tokens: tokens of the prompts that were admitted, those admitted again included.
        tiers: the GPU and the places below it.
        samples: (moment, free blocks of the GPU, those of them that hold cached blocks, blocks in each tier).
    """

    looked_up_tokens: int
    tiers: tuple[TierUse, ...]
    samples: tuple[tuple[float, ...], ...] = ()

    @property
    def hit_rate(self) -> float:
        """Share of the tokens that were found somewhere."""
        return sum(tier.hit_tokens for tier in self.tiers) / self.looked_up_tokens if self.looked_up_tokens else 0.0


@dataclass(frozen=True, slots=True)
class EngineUse:
    """What one engine did.

    Attributes:
        kv_blocks, peak_blocks: blocks of cache that there are, and the most that running sequences held at a time.
        leaked_blocks: blocks in use after the last request; 0 always.
        passes: engine steps; swaps: preemptions that copied the cache to host memory.
        busy_s: seconds in which it ran a step; ended_s: when its last step ended.
        tally: int64[t]; steps by the number of tokens that they processed.
        cache: prefix cache, None where there was none.
    """

    kv_blocks: int
    peak_blocks: int
    leaked_blocks: int
    passes: int
    swaps: int
    busy_s: float
    ended_s: float
    tally: NDArray[np.int64]
    cache: CacheUse | None


@dataclass(frozen=True, slots=True)
class Replay:
    """What happened; one row per request, in the order of the requests.

    Attributes:
        requests: what was replayed.
        scheduler: name of the scheduler.
        state: `State` of every request.
        started_s, first_token_s, finished_s: seconds on the trace's clock; not a number where it never happened.
        preemptions: how often the request was preempted.
        reused_tokens: tokens of its prompt that were found in a cache when it first ran.
        made_tokens: tokens that were generated for it, of which those of a request that timed out are dropped.
        engine: position in `engines` of the one that finished it, or had it last; -1 for none.
        engines: what each engine did.
    """

    requests: Requests
    scheduler: str
    state: NDArray[np.int8]
    started_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    preemptions: NDArray[np.int64]
    reused_tokens: NDArray[np.int64]
    made_tokens: NDArray[np.int64]
    engine: NDArray[np.int16]
    engines: tuple[EngineUse, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Requests by the state that they ended in."""
        return {state.name.lower(): int(np.count_nonzero(self.state == state)) for state in State}

    @property
    def passes(self) -> int:
        """Steps of all engines."""
        return sum(engine.passes for engine in self.engines)

    @property
    def swaps(self) -> int:
        """Preemptions that copied a cache, over all engines."""
        return sum(engine.swaps for engine in self.engines)

    @property
    def peak_share(self) -> float:
        """Largest share of its cache that any engine had in use."""
        return max(engine.peak_blocks / engine.kv_blocks for engine in self.engines)

    def seen_by_clients(self, request_s: float) -> Replay:
        """The same replay where a request spends so many seconds outside the engine: its tokens come later."""
        first, finished = self.first_token_s + request_s, self.finished_s + request_s
        return replace(self, first_token_s=first, finished_s=finished)

    @property
    def leaked_blocks(self) -> int:
        """Blocks in use after the last request; 0 always."""
        return sum(abs(engine.leaked_blocks) for engine in self.engines)


Watch = Callable[[Callable[[], float]], None]
"""Called when a replay begins, with what says how far it is, 0 to 1; any thread may ask."""


def share_begun(started: array[float]) -> float:
    """How far a replay is, 0 to 1: requests are begun in order, or nearly so, and the last one that has been tells.

    Args:
        started: seconds at which every request was first scheduled, not a number where it was not yet.
    """
    if not len(started):
        return 1.0
    begun = np.flatnonzero(~np.isnan(np.frombuffer(started, dtype=np.float64)))
    return (int(begun[-1]) + 1) / len(started) if len(begun) else 0.0


class Record:
    """Columns of a replay, filled engine by engine."""

    def __init__(self, requests: Requests, scheduler: str) -> None:
        count = len(requests)
        self._requests, self._scheduler = requests, scheduler
        self._state = np.full(count, State.TOO_LONG, dtype=np.int8)
        self._times = [np.full(count, np.nan) for _ in range(3)]
        self._counts = [np.zeros(count, dtype=np.int64) for _ in range(3)]
        self._engine = np.full(count, -1, dtype=np.int16)
        self._engines: list[EngineUse] = []

    def add(
        self, core: Core, rows: NDArray[np.int64], tiers: Sequence[Tier] = (), accounts: Sequence[Account] = ()
    ) -> None:
        """What an engine did with its requests, which are these rows; rows of another engine stay as they are.

        Args:
            core: the engine, which has nothing left to do.
            rows: row of each request of the engine; -1 for one that went elsewhere.
            tiers: places below the GPU of its prefix cache.
            accounts: those that have been closed; none for one of the whole.
        """
        here = np.flatnonzero(rows >= 0)
        mine = rows[here]
        for column, values in zip(self._times, (core.started, core.first, core.finished), strict=True):
            column[mine] = np.asarray(values)[here]
        self._state[mine] = State.FINISHED
        preemptions, reused, made = self._counts
        made[mine] = self._requests.output_tokens[mine]
        reused[mine] = np.asarray(core.reused)[here]
        _note(core.preemptions, rows, preemptions)
        gone = dict(core.given_up)
        if isinstance(core.waiting, Pool):
            gone |= {request: core.made.get(request, 0) for request in core.waiting.expired}
            refused = _known(rows[np.asarray(core.waiting.refused, dtype=np.int64)])
            self._state[refused] = State.REFUSED
            made[refused] = 0
        _note(gone, rows, made)
        self._state[_known(rows[np.fromiter(gone, dtype=np.int64, count=len(gone))])] = State.TIMED_OUT
        self._engine[mine] = len(self._engines)
        self._engines.append(_engine_use(core, whole(accounts or [core.close_account()]), tiers))

    def result(self) -> Replay:
        """The replay."""
        return Replay(
            self._requests,
            self._scheduler,
            self._state,
            self._times[0],
            self._times[1],
            self._times[2],
            self._counts[0],
            self._counts[1],
            self._counts[2],
            self._engine,
            tuple(self._engines),
        )


def _known(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[rows >= 0]


def _note(noted: dict[int, int], rows: NDArray[np.int64], column: NDArray[np.int64]) -> None:
    """Set the rows of some requests."""
    if noted:
        where = rows[np.fromiter(noted, dtype=np.int64, count=len(noted))]
        values = np.fromiter(noted.values(), dtype=np.int64, count=len(noted))
        column[where[where >= 0]] = values[where >= 0]


def _engine_use(core: Core, account: Account, tiers: Sequence[Tier]) -> EngineUse:
    limits = core.limits
    tally = np.zeros(len(core.tally), dtype=np.int64)
    tally[list(account.tally)] = list(account.tally.values())
    return EngineUse(
        kv_blocks=limits.kv_blocks,
        peak_blocks=limits.kv_blocks - account.lowest_free,
        leaked_blocks=limits.kv_blocks - core.free,
        passes=account.passes,
        swaps=account.swaps,
        busy_s=core.now - account.idle_s,
        ended_s=core.now,
        tally=tally,
        cache=None if account.cache is None else _cache_use(account.cache, tiers, limits.kv_blocks),
    )


def _cache_use(cache: CacheAccount, tiers: Sequence[Tier], kv_blocks: int) -> CacheUse:
    places = [TierUse("gpu", cache.hits[0], kv_blocks, kv_blocks)]
    for tier, hits, traffic in zip(tiers, cache.hits[1:], cache.traffic, strict=True):
        places.append(
            TierUse(
                tier.name,
                hits,
                tier.blocks,
                traffic.peak,
                traffic.read,
                traffic.written,
                traffic.dropped,
                traffic.busy_s,
            )
        )
    return CacheUse(cache.looked_up, tuple(places), tuple(cache.samples))
