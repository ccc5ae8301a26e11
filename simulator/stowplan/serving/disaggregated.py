"""Prompts on some engines, decoding on others, and the cache copied from the one to the other.

As DistServe (Zhong et al., OSDI 2024) and Splitwise (Patel et al., ISCA 2024): a prompt engine processes whole prompts,
first come, first served, and emits the first token. The cache of a prompt stays there until a decode engine has room
and has copied it; copies to one engine go one after another and hold nobody else up. A decode engine that runs out of
blocks drops the sequence admitted last and computes its cache again itself.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, isfinite

import numpy as np

from stowplan.errors import InputError
from stowplan.serving.ahead import AheadCore, parts_of
from stowplan.serving.continuous import Continuous
from stowplan.serving.core import Core
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Record, Replay, Watch, share_begun
from stowplan.serving.queues import Pool
from stowplan.serving.replay import runnable_rows
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import StepTime
from stowplan.serving.tables import StepTables
from stowplan.serving.units import Unit, run_units


@dataclass(frozen=True, slots=True)
class Stage:
    """The engines of one kind: how many, what a step costs, what each may hold, and whether they schedule ahead."""

    engines: int
    step_time: StepTime
    limits: Limits
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Handover:
    """How a cache gets from a prompt engine to a decode engine.

    Attributes:
        s_per_token: seconds to copy the cache of one token.
        latency_s: seconds before a copy begins.

    Raises:
        InputError: a time out of its range.
    """

    s_per_token: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not all(isfinite(s) and s >= 0.0 for s in (self.s_per_token, self.latency_s)):
            raise InputError("handover: needs times of 0 or more")


def replay_disaggregated(
    requests: Requests, prompts: Stage, decodes: Stage, handover: Handover, watch: Watch | None = None
) -> Replay:
    """Replay requests through prompt engines and decode engines; each takes the request for the least busy one.

    Answers of one token end on the prompt engine. Prompt engines come first in the result's `engines`.

    Raises:
        InputError: a stage without engines, limits on queues or patience, which these engines do not know, or a request
            longer than 2^24 tokens.
    """
    for name, stage in (("prompt", prompts), ("decode", decodes)):
        if not 1 <= stage.engines <= 4096:
            raise InputError(f"{name} engines: {stage.engines}; give between 1 and 4096")
        if stage.limits.max_waiting is not None or stage.limits.patience_s is not None:
            raise InputError(f"{name} engines: know no queue limits and time-outs; leave them out")
    tokens = requests.prompt_tokens + requests.output_tokens - 1
    fits = (requests.prompt_tokens <= prompts.limits.longest) & (tokens <= decodes.limits.longest)
    _, runnable, longest = runnable_rows(requests.take(np.flatnonzero(fits)), decodes.limits)
    rows = np.flatnonzero(fits)
    pair = _Pair(runnable, prompts, decodes, handover, longest)
    if watch is not None:
        watch(lambda: share_begun(pair.started))
    pair.run()
    return pair.record(requests, rows)


class _HoldingCore(Core):
    """A prompt engine, whose sequences keep their blocks until they are told to let go."""

    def __init__(
        self,
        prompt: list[int],
        output: list[int],
        waiting: Pool,
        tables: StepTables,
        limits: Limits,
        *,
        beside: Core | None = None,
    ) -> None:
        super().__init__(prompt, output, waiting, tables, limits, beside=beside)
        self.held: dict[int, int] = {}
        self.done: list[int] = []

    def release(self, request: int, cached: int, computed: int | None = None) -> None:
        """See `Core`; the blocks stay."""
        del computed
        self.held[request] = self.limits.blocks(cached)
        self.done.append(request)


class _HoldingAheadCore(_HoldingCore, AheadCore):
    """One that schedules ahead."""


class _Prompts(Continuous):
    """Prompts only; blocks come back at moments that decode engines set."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.freed: list[tuple[float, int]] = []

    def run(self, until: float = inf) -> None:
        """See `Scheduler`."""
        core = self.core
        while core.now < until:
            while self.freed and self.freed[0][0] <= core.now:
                core.free += heappop(self.freed)[1]
            if self._prefill():
                return  # what was processed goes on to the decode engines before anything else happens
            event = self.next_event
            if event >= until:
                return
            core.wait_until(event)

    @property
    def next_event(self) -> float:
        """See `Scheduler`."""
        event = super().next_event
        return min(event, self.freed[0][0]) if self.freed else event


class _Decodes(Continuous):
    """Sequences whose prompts were processed elsewhere, and prompts again that lost their cache here."""

    def __init__(self, core: Core, pair: _Pair) -> None:
        super().__init__(core)
        self._pair = pair
        self._link_free = 0.0

    def _computes(self, request: int) -> bool:
        """See `Continuous`; the others come with their cache."""
        return request in self.core.made

    def _prefill(self) -> list[int]:
        """Fetch the caches that there is room for, then process the prompts whose cache was dropped here."""
        core, pair = self.core, self._pair
        limits, waiting = core.limits, core.waiting
        request = waiting.head(core.now)
        while request >= 0 and request not in core.made:
            cached = core.prompt[request]
            full = core.batch + len(core.arriving) >= limits.max_running
            if full or core.free - limits.blocks(cached) < core.reserve:
                return []
            waiting.pop()
            begin = max(core.now, self._link_free) + pair.handover.latency_s
            self._link_free = begin + cached * pair.handover.s_per_token
            core.expect(request, cached, self._link_free)
            pair.fetched(request, self._link_free)
            core.land()
            request = waiting.head(core.now)
        return super()._prefill() if request >= 0 else []


class _Pair:
    """Both kinds of engines and what passes between them."""

    def __init__(self, requests: Requests, prompts: Stage, decodes: Stage, handover: Handover, longest: int) -> None:
        self.handover = handover
        self._arrival = requests.arrival_s.tolist()
        self._prompt, self._output = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
        self._next = 0
        keys = [0] * len(requests)
        ones = [1] * len(requests)
        tables, (_, pool) = StepTables(prompts.step_time, longest, prompts.limits), parts_of(ahead=prompts.ahead)
        holding = _HoldingAheadCore if prompts.ahead else _HoldingCore
        self._prompts: list[Unit] = []
        for _ in range(prompts.engines):
            beside = self._prompts[0].core if self._prompts else None
            waiting = pool(self._arrival, keys)
            here = holding(self._prompt, ones, waiting, tables, prompts.limits, beside=beside)
            self._prompts.append(Unit(_Prompts(here)))
        tables, (kind, pool) = StepTables(decodes.step_time, longest, decodes.limits), parts_of(ahead=decodes.ahead)
        self._decodes: list[Unit] = []
        for _ in range(decodes.engines):
            beside = self._decodes[0].core if self._decodes else None
            waiting = pool(self._arrival, keys)
            core = kind(self._prompt, self._output, waiting, tables, decodes.limits, beside=beside)
            self._decodes.append(Unit(_Decodes(core, self)))
        self._prompt_engine = [-1] * len(requests)
        self._engine = np.full(len(requests), -1, dtype=np.int64)

    @property
    def started(self) -> array[float]:
        """Seconds at which every prompt was first scheduled."""
        return self._prompts[0].core.started

    def run(self) -> None:
        """Run to the end."""
        run_units([*self._prompts, *self._decodes], self._event, self._route, after=self._pass_on)

    def record(self, requests: Requests, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Replay:
        """What happened."""
        record = Record(requests, "disaggregated")
        first = self._prompts[0].core
        for number, unit in enumerate(self._prompts):
            record.add(unit.core, np.where(self._engine == number, rows, -1))
        for number, unit in enumerate(self._decodes, len(self._prompts)):
            unit.core.started, unit.core.first = first.started, first.first
            record.add(unit.core, np.where(self._engine == number, rows, -1))
        return record.result()

    def fetched(self, request: int, moment: float) -> None:
        """The cache of a prompt has been copied at that moment, and its blocks are free there."""
        unit = self._prompts[self._prompt_engine[request]]
        core, scheduler = unit.core, unit.scheduler
        assert isinstance(core, _HoldingCore)
        assert isinstance(scheduler, _Prompts)
        heappush(scheduler.freed, (moment, core.held.pop(request)))
        unit.look()

    def _event(self) -> float:
        return self._arrival[self._next] if self._next < len(self._arrival) else inf

    def _route(self, moment: float) -> None:
        request, self._next = self._next, self._next + 1
        self._prompt_engine[request] = self._hand(request, moment, self._prompts)
        self._engine[request] = self._prompt_engine[request]

    def _hand(self, request: int, moment: float, units: list[Unit]) -> int:
        """Give a request to the engine with the least to do; returns its position."""
        loads = [unit.scheduler.load for unit in units]
        chosen = loads.index(min(loads))
        waiting = units[chosen].core.waiting
        assert isinstance(waiting, Pool)
        waiting.push(request, moment)
        units[chosen].look()
        return chosen

    def _pass_on(self, unit: Unit) -> None:
        """Prompts that were processed go on."""
        core = unit.core
        if not isinstance(core, _HoldingCore):
            return
        for request in core.done:
            if self._output[request] == 1:
                self.fetched(request, core.now)
            else:
                self._engine[request] = len(self._prompts) + self._hand(request, core.now, self._decodes)
        core.done.clear()
