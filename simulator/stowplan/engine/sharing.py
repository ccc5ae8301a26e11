"""Max-min fair shares of resources among the tasks that run at one moment.

A task's *demand* on a resource is the fraction of it that the task uses when it runs alone; its slowest resource has
demand 1. Running at relative speed s, it uses s times its demand everywhere. The speeds are the max-min fair ones: no
task can be made faster without slowing one that is no faster than itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stowplan.work import Work


class Demand(NamedTuple):
    """What a task asks of the machine when it runs alone.

    Attributes:
        alone_s: seconds of its fluid part alone; zero when it has none.
        limiter: resource that binds it alone; empty when it has no fluid part.
        fractions: (resource, fraction of its rate in (0, 1]), sorted by resource.
    """

    alone_s: float
    limiter: str
    fractions: tuple[tuple[str, float], ...]


class Share(NamedTuple):
    """Relative speed in (0, 1] of a task and the resource that keeps it from being faster."""

    speed: float
    limiter: str


def demand_of(work: Work, rates: Mapping[str, float]) -> Demand:
    """Demand of a task; raises as `Work.alone_s`."""
    alone_s, limiter = work.roofline(rates)
    if alone_s == 0.0 or limiter is None:  # amounts so small that their time underflows count as none
        return Demand(0.0, "", ())
    fractions = []
    for name, amount in work.amounts.items():
        fraction = amount / rates[name] / alone_s
        if fraction > 0.0:
            fractions.append((name, fraction))
    return Demand(alone_s, limiter, tuple(fractions))


def fair_shares(demands: Sequence[Demand]) -> list[Share]:
    """Max-min fair shares of tasks that run together, in the order given.

    Progressive filling: all speeds rise together until a resource is full or they reach 1; tasks on a full
    resource keep their speed, the others rise on. Takes O(resources x tasks x demands) at worst. Where several
    resources fill at once, the one whose name sorts first is named as the limiter.
    """
    shares: list[Share] = [Share(1.0, demand.limiter) for demand in demands]
    rising = list(range(len(demands)))
    room: dict[str, float] = {}
    for demand in demands:
        for name, _ in demand.fractions:
            room[name] = 1.0
    level = 0.0
    while rising:
        pull = dict.fromkeys(room, 0.0)
        for index in rising:
            for name, fraction in demands[index].fractions:
                pull[name] += fraction
        next_level, full = 1.0, ""
        for name in sorted(room):
            if pull[name] > 0.0:
                reached = room[name] / pull[name]
                if reached < next_level:
                    next_level, full = reached, name
        if not full:
            break
        # Resources that fill at the same level may come out below it by a rounding error.
        level = max(level, next_level)
        still_rising = []
        for index in rising:
            if any(name == full for name, _ in demands[index].fractions):
                shares[index] = Share(level, full)
                for name, fraction in demands[index].fractions:
                    room[name] -= level * fraction
            else:
                still_rising.append(index)
        rising = still_rising
    return shares
