"""What every scheduler is: an engine's core and a way to run it up to a moment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf

from stowplan.serving.core import Core


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
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing runs or waits to come back; requests may still arrive."""
