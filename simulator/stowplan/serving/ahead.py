"""Requests as an engine sees them that schedules every step while the one before it runs.

What arrives during a step is too late for the step that is already scheduled behind it, and is admitted to the one
after: on average it waits one and a half steps instead of half of one. An idle engine takes an arrival at once.
"""

from __future__ import annotations

from math import inf

from stowplan.serving.core import Core
from stowplan.serving.limits import Limits
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.queues import Pool, WaitingQueue
from stowplan.serving.tables import StepTables


class AheadCore(Core):
    """A core that remembers the step boundary before the current one.

    Attributes:
        before: seconds at that boundary.
    """

    before = 0.0
    _now = 0.0

    @staticmethod
    def behind(
        prompt: list[int],
        output: list[int],
        waiting: WaitingQueue,
        tables: StepTables,
        limits: Limits,
        *,
        cache: PrefixCache | None = None,
        patience_s: float = inf,
    ) -> AheadCore:
        """A core that sees its queue one step late; the arguments are those of `Core`."""
        late = ScheduledAhead(waiting)
        core = AheadCore(prompt, output, late, tables, limits, cache=cache, patience_s=patience_s)
        core.impatient, late.core = isinstance(waiting, Pool), core
        return core

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
