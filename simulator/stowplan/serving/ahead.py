"""Engines that schedule every step while the one before it runs.

What arrives during a step is too late for the step that is already scheduled behind it, and is admitted to the one
after: on average it waits one and a half steps instead of half of one. The same holds for a cache that is copied here
from elsewhere. An idle engine takes both at once.
"""

from __future__ import annotations

from heapq import heappop
from math import inf

from stowplan.serving.core import Core
from stowplan.serving.limits import Limits
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.queues import Pool
from stowplan.serving.tables import StepTables


class AheadCore(Core):
    """A core that remembers when its next step was scheduled: at the step boundary before the current one.

    Args:
        prompt, output, waiting, tables, limits, beside, cache, patience_s: as for `Core`.

    Attributes:
        before: seconds at that boundary; the current moment where the engine is idle.
    """

    before = 0.0
    _now = 0.0

    def __init__(
        self,
        prompt: list[int],
        output: list[int],
        waiting: LatePool,
        tables: StepTables,
        limits: Limits,
        *,
        beside: Core | None = None,
        cache: PrefixCache | None = None,
        patience_s: float = inf,
    ) -> None:
        super().__init__(prompt, output, waiting, tables, limits, beside=beside, cache=cache, patience_s=patience_s)
        waiting.core = self

    @property
    def now(self) -> float:
        """Seconds at the current step boundary."""
        return self._now

    @now.setter
    def now(self, moment: float) -> None:
        self.before, self._now = self._now, moment

    def wait_until(self, moment: float) -> None:
        """See `Core`; nothing is scheduled yet, so that whatever is there by then is taken."""
        super().wait_until(moment)
        self.before = self._now

    def land(self) -> None:
        """See `Core.land`; what came during the last step joins a step later."""
        while self.arriving and self.arriving[0][0] <= self.before:
            _, request, cached = heappop(self.arriving)
            self._join(request, cached, self.output[request] - self.made.pop(request, 1))

    def decode(self, copies: float | None) -> None:
        """See `Core.decode`; of several steps at once, the last one counts."""
        tables, batch, context, passes = self.tables, self.batch, self.context, self.passes
        super().decode(copies)
        run = self.passes - passes
        if run > 1:
            attention = tables.of(batch).decode_attention(batch, context + batch * (run - 1))
            self.before = self.now - (tables.body[batch] + tables.logits[batch] + attention)


class LatePool(Pool):
    """Requests as an `AheadCore` sees them: those that had come when its next step was scheduled.

    Attributes:
        core: the engine that takes from it; it sets this itself.
    """

    __slots__ = ("core",)

    core: AheadCore

    def head(self, now: float) -> int:  # noqa: ARG002
        """See `WaitingQueue`; only what had come by the step boundary before."""
        return super().head(self.core.before)


def parts_of(*, ahead: bool) -> tuple[type[Core], type[Pool]]:
    """What an engine is made of: the kind of its core and of its pool of requests."""
    return (AheadCore, LatePool) if ahead else (Core, Pool)
