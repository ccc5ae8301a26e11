"""What every scheduler is: an engine's core and a way to run it up to a moment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf

from stowplan.serving.core import Core
from stowplan.serving.queues import Pool


class Scheduler(ABC):
    """Decides which requests of a core run.

    Attributes:
        core: the engine's state.
    """

    def __init__(self, core: Core) -> None:
        self.core = core

    @abstractmethod
    def run(self, until: float = inf) -> None:
        """Run up to the first step boundary at or after `until`, or until nothing is left that arrives before it."""

    @property
    def next_time(self) -> float:
        """When it can act next: now, unless nothing runs or waits; infinity where nothing will ever come."""
        core = self.core
        if core.batch or core.swapped or core.waiting.head(core.now) >= 0:
            return core.now
        return max(core.now, self.next_event)

    @property
    def load(self) -> int:
        """Requests that wait, run, or are on their way here."""
        core = self.core
        assert isinstance(core.waiting, Pool)
        return len(core.waiting) + core.batch + len(core.swapped) + len(core.arriving)

    @property
    def next_event(self) -> float:
        """When something comes from outside: a request, or a sequence whose cache is on its way."""
        core = self.core
        arrival = core.waiting.next_arrival()
        return min(arrival, core.arriving[0][0]) if core.arriving else arrival
