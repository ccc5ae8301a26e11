"""Requests as an engine sees them that schedules every step while the one before it runs.

What arrives during a step is too late for the step that is already scheduled behind it, and is admitted to the one
after: on average it waits one and a half steps instead of half of one. An idle engine takes an arrival at once.
"""

from __future__ import annotations

from math import inf

import numpy as np

from stowplan.errors import InputError
from stowplan.serving.chains import Chains
from stowplan.serving.chunked import Chunked
from stowplan.serving.core import Core
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Record, Replay
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.queues import Pool, WaitingQueue
from stowplan.serving.replay import LONGEST_REQUEST, Caching, queue_of
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import StepTime
from stowplan.serving.tables import StepTables


class AheadCore(Core):
    """A core that remembers the step boundary before the current one.

    Attributes:
        before: seconds at that boundary.
    """

    before = 0.0
    _now = 0.0

    @property
    def now(self) -> float:
        """Seconds at the current step boundary."""
        return self._now

    @now.setter
    def now(self, moment: float) -> None:
        self.before, self._now = self._now, moment

    def decode(self, copies: float | None) -> None:
        """See `Core.decode`; of several steps at once, the last one counts."""
        tables, batch, context, passes = self.tables, self.batch, self.context, self.passes
        super().decode(copies)
        run = self.passes - passes
        if run > 1:
            attention = tables.decode_attention(batch, context + batch * (run - 1))
            self.before = self.now - (tables.body[batch] + tables.logits[batch] + attention)


class ScheduledAhead(WaitingQueue):
    """Another queue, seen one step late.

    Args:
        inner: the order of admission.

    Attributes:
        core: the engine that takes from it; to be set before the first request is taken.
    """

    __slots__ = ("_idle", "_inner", "core")

    core: AheadCore

    def __init__(self, inner: WaitingQueue) -> None:
        self._inner, self._idle = inner, -inf

    @property
    def _seen(self) -> float:
        return max(self.core.before, self._idle)

    def head(self, now: float) -> int:  # noqa: ARG002
        """See `WaitingQueue`; only what had arrived by the step boundary before."""
        return self._inner.head(self._seen)

    def pop(self) -> None:
        """See `WaitingQueue`."""
        self._inner.pop()

    def put_back(self, request: int) -> None:
        """See `WaitingQueue`."""
        self._inner.put_back(request)

    def next_change(self, now: float) -> float:  # noqa: ARG002
        """See `WaitingQueue`; in the past for what has arrived and is not yet seen, so that one step passes."""
        return self._inner.next_change(self._seen)

    def next_arrival(self) -> float:
        """See `WaitingQueue`; who asks is idle, and takes it when it comes."""
        arrival = self._inner.next_arrival()
        self._idle = max(self.core.now, arrival)
        return arrival

    def arrival_of(self, request: int) -> float:
        """See `WaitingQueue`."""
        return self._inner.arrival_of(request)


def replay_ahead(requests: Requests, step_time: StepTime, limits: Limits, caching: Caching | None = None) -> Replay:
    """Chunked prefill, every step scheduled while the one before it runs.

    Args:
        requests, step_time, limits, caching: as `stowplan.serving.replay.replay` takes them.

    Raises:
        InputError: a request that could run is longer than 2^24 tokens.
    """
    longest = requests.prompt_tokens + requests.output_tokens - 1
    rows = np.flatnonzero(longest <= limits.longest)
    if len(rows) and int(longest[rows].max()) > LONGEST_REQUEST:
        raise InputError(f"requests: one has {int(longest[rows].max())} tokens; a replay takes up to {LONGEST_REQUEST}")
    runnable = requests if len(rows) == len(requests) else requests.take(rows)
    tables = StepTables(step_time, int(longest[rows].max(initial=1)), limits)
    cache = None
    if caching is not None and runnable.prefix is not None:
        chains = Chains.from_blocks(runnable.prefix, runnable.prompt_tokens, limits.block_tokens)
        cache = PrefixCache(chains, tables, caching.tiers, caching.eviction)
    queue = queue_of(runnable, limits, "")
    late = ScheduledAhead(queue)
    core = AheadCore(
        runnable.prompt_tokens.tolist(),
        runnable.output_tokens.tolist(),
        late,
        tables,
        limits,
        cache=cache,
        patience_s=inf if limits.patience_s is None else limits.patience_s,
    )
    late.core = core
    core.impatient = isinstance(queue, Pool)
    Chunked(core).run()
    core.waiting = queue  # who gave up is in the queue's own account
    record = Record(requests, "chunked, one step ahead")
    record.add(core, rows, caching.tiers if caching is not None else ())
    return record.result()
