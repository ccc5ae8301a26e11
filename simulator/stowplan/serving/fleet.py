"""Several engines behind a router, and sequences that move from a crowded one to one with room.

Migration follows Llumnix (Sun et al., OSDI 2024): every so often, where requests wait on an engine for blocks, its
shortest sequence is copied to the engine with the most free blocks while it goes on; it pauses only for the last of its
blocks. A sequence that finishes first stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, isfinite

import numpy as np

from stowplan.errors import InputError
from stowplan.serving.ahead import parts_of
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Record, Replay, Watch, share_begun
from stowplan.serving.policies import Caching, keys_of, policy_of
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.queues import Pool
from stowplan.serving.replay import chains_of, replay, runnable_rows
from stowplan.serving.requests import Requests
from stowplan.serving.routers import RouterName, make_router
from stowplan.serving.step_time import StepTime
from stowplan.serving.tables import StepTables
from stowplan.serving.units import Unit, run_units


@dataclass(frozen=True, slots=True)
class Migration:
    """How sequences move.

    Attributes:
        every_s: seconds between two looks at the balance.
        s_per_block: seconds to copy one block to another engine.
        pause_s: seconds that a sequence stands still; Llumnix measures 20 to 30 ms, whatever the length.

    Raises:
        InputError: a time out of its range.
    """

    every_s: float = 1.0
    s_per_block: float = 1e-4
    pause_s: float = 0.025

    def __post_init__(self) -> None:
        if not all(isfinite(s) and s >= 0.0 for s in (self.s_per_block, self.pause_s)) or not 0.0 < self.every_s < inf:
            raise InputError("migration: needs a time above 0 between looks, and copies and pauses of 0 s or more")


def replay_fleet(
    requests: Requests,
    step_time: StepTime,
    limits: Limits,
    scheduler: str,
    *,
    engines: int,
    router: RouterName = "least-loaded",
    migration: Migration | None = None,
    caching: Caching | None = None,
    ahead: bool = False,
    watch: Watch | None = None,
    workers: int = 1,
) -> Replay:
    """Replay requests through equal engines behind a router; one engine is replayed as it is without one.

    A router sees what a step does as soon as the step has begun.

    Args:
        requests, step_time, limits, scheduler, caching, ahead, watch: as for one engine; each has caches and a queue
            of its own.
        workers: as for one engine; several take one process.
        engines: how many.
        router: who takes a request.
        migration: how sequences move; None where they stay.

    Raises:
        InputError: fewer than 1 engine, a scheduler that only runs alone, or as `stowplan.serving.replay.replay`.
        UnknownName: no such scheduler.
    """
    if not 1 <= engines <= 4096:
        raise InputError(f"engines: {engines}; give between 1 and 4096")
    if engines == 1:
        return replay(requests, step_time, limits, scheduler, caching, ahead=ahead, watch=watch, workers=workers)
    policy = policy_of(scheduler, limits, caching, ahead=ahead)
    if policy.plain:
        raise InputError(f"scheduler: '{scheduler}' runs one engine only; try chunked or continuous")
    rows, runnable, longest = runnable_rows(requests, limits)
    tables = StepTables(step_time, longest, limits)
    chains = chains_of(runnable, limits, caching)
    keys = keys_of(runnable, policy.key)
    arrival = runnable.arrival_s.tolist()
    columns = runnable.prompt_tokens.tolist(), runnable.output_tokens.tolist()
    kind, pool = parts_of(ahead=ahead)
    room = inf if limits.max_waiting is None else limits.max_waiting
    units: list[Unit] = []
    for _ in range(engines):
        core = kind(
            *columns,
            pool(arrival, keys, room=room, patience_s=limits.patience),
            tables,
            limits,
            beside=units[0].core if units else None,
            cache=PrefixCache(chains, tables, caching.tiers, caching.eviction) if caching and chains else None,
            patience_s=limits.patience,
        )
        units.append(Unit(policy.make(core)))
    if watch is not None:
        watch(lambda: share_begun(units[0].core.started))
    engine_of = _Fleet(units, arrival, router, migration).run()
    record = Record(requests, scheduler)
    for number, unit in enumerate(units):
        record.add(unit.core, np.where(engine_of == number, rows, -1), caching.tiers if caching else ())
    return record.result()


class _Fleet:
    """The router's and the migration's part of a run."""

    def __init__(
        self, units: Sequence[Unit], arrival: list[float], router: RouterName, migration: Migration | None
    ) -> None:
        self._units, self._arrival, self._migration = units, arrival, migration
        self._choose = make_router(router)
        self._next = 0
        self._look_at = inf if migration is None else migration.every_s
        self._moving: list[tuple[float, int, int, int, int]] = []
        self._on_the_way: set[int] = set()
        self._engine = np.full(len(arrival), -1, dtype=np.int64)

    def run(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Run to the end; returns the engine that had each request last."""
        run_units(self._units, self._event, self._act)
        return self._engine

    def _event(self) -> float:
        arrival = self._arrival[self._next] if self._next < len(self._arrival) else inf
        moving = self._moving[0][0] if self._moving else inf
        busy = any(unit.wake < inf for unit in self._units)
        return min(arrival, moving, self._look_at if busy else inf)

    def _act(self, moment: float) -> None:
        if self._moving and self._moving[0][0] <= moment:
            self._arrive(heappop(self._moving))
        elif self._next < len(self._arrival) and self._arrival[self._next] <= moment:
            self._route(moment)
        else:
            assert self._migration is not None
            self._look_at = moment + self._migration.every_s
            self._balance(moment, self._migration)

    def _route(self, moment: float) -> None:
        request, self._next = self._next, self._next + 1
        chosen = self._choose(request, self._units)
        self._engine[request] = chosen
        waiting = self._units[chosen].core.waiting
        assert isinstance(waiting, Pool)
        waiting.push(request, moment)
        self._units[chosen].look()

    def _balance(self, moment: float, migration: Migration) -> None:
        """Begin to copy one sequence from the engine that lacks blocks to the one that has most of them."""
        crowded = [unit for unit in self._units if self._lacks_blocks(unit)]
        roomy = [unit for unit in self._units if not self._lacks_blocks(unit)]
        if not crowded or not roomy:
            return
        source = min(crowded, key=lambda unit: unit.core.free)
        target = max(roomy, key=lambda unit: unit.core.free)
        core = source.core
        candidates = [request for request in core.decoding() if request not in self._on_the_way]
        if not candidates or target.scheduler.load >= target.core.limits.max_running:
            return
        request = min(candidates, key=lambda request: (core.cached_of(request), request))
        blocks = core.limits.blocks(core.cached_of(request)) + 1
        if target.core.free - blocks < target.core.reserve:
            return
        target.core.reserve_blocks(blocks)
        self._on_the_way.add(request)
        places = self._units.index(source), self._units.index(target)
        heappush(self._moving, (moment + blocks * migration.s_per_block, request, *places, blocks))

    def _lacks_blocks(self, unit: Unit) -> bool:
        """Whether a request waits for blocks rather than for a place or the next step."""
        core = unit.core
        head = core.waiting.head(core.now)
        if head < 0 or core.batch >= core.limits.max_running:
            return False
        return core.free - core.limits.blocks(core.length(head)) < core.reserve

    def _arrive(self, move: tuple[float, int, int, int, int]) -> None:
        """The copy is there: the sequence goes on at its new place, if it still runs and has not outgrown its room."""
        assert self._migration is not None
        _, request, source, target, blocks = move
        self._on_the_way.discard(request)
        old, new = self._units[source].core, self._units[target].core
        new.free += blocks
        if old.finish[request] >= 0 and new.free - old.limits.blocks(old.cached_of(request)) >= 0:
            cached, made = old.leave_for(request)
            new.made[request] = made
            new.expect(request, cached, max(old.now, new.now) + self._migration.pause_s)
            self._engine[request] = target
        self._units[source].look()
        self._units[target].look()
