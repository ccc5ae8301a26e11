"""Several engines on one clock: each runs by itself for as long as nothing that the others do can reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, nextafter

from stowplan.serving.core import Core
from stowplan.serving.scheduler import Scheduler


@dataclass(slots=True)
class Unit:
    """One engine among several.

    Attributes:
        scheduler: what runs it.
        wake: when it can act next, as far as known; whoever hands it something calls `look`.
    """

    scheduler: Scheduler
    wake: float = inf

    @property
    def core(self) -> Core:
        """The engine's state."""
        return self.scheduler.core

    def look(self) -> None:
        """Find out anew when it can act."""
        self.wake = self.scheduler.next_time

    def run(self, until: float) -> None:
        """Run up to `until`; where it could do nothing, it waits for the next event that it knows of."""
        core = self.core
        now, passes = core.now, core.passes
        self.scheduler.run(until)
        stuck = (core.now, core.passes) == (now, passes)
        self.wake = max(core.now, self.scheduler.next_event) if stuck else self.scheduler.next_time


def run_units(
    units: Sequence[Unit],
    events: Callable[[], float],
    act: Callable[[float], None],
    *,
    after: Callable[[Unit], None] | None = None,
) -> None:
    """Run until nothing is left to do.

    A message between engines carries a moment that is not before the sender's clock, so the engine whose turn is
    earliest may always run up to the second earliest; where engines do not talk, up to the next event.

    Args:
        units: the engines.
        events: when something happens outside of them next: an arrival, a look at the balance; infinity for never.
        act: makes it happen; all engines have run up to that moment.
        after: called after a unit has run, to carry its messages to others; None where engines do not talk.
    """
    while True:
        unit = min(units, key=lambda unit: unit.wake)
        moment = events()
        if moment <= unit.wake:
            if moment == inf:
                return
            act(moment)
            continue
        until = moment
        if after is not None:
            until = min((other.wake for other in units if other is not unit), default=inf)
            until = min(moment, max(until, nextafter(unit.wake, inf)))
        unit.run(until)
        if after is not None:
            after(unit)
