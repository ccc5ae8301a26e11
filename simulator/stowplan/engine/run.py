"""What a simulated step did: when every task ran, how fast, what held it up, and which memory was in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stowplan.engine.graph import MEMORY_WAIT, Graph
from stowplan.work import OVERHEAD


class Phase(NamedTuple):
    """A stretch at constant speed; it lasts until the next phase of the task or its end.

    Attributes:
        start_s: when it began.
        speed: relative speed in (0, 1] of what the task would reach alone.
        limiter: the resource that kept it from being faster.
    """

    start_s: float
    speed: float
    limiter: str


@dataclass(frozen=True, slots=True)
class Run:
    """Result of a simulation. Tuples run parallel to ``graph.tasks``; times are seconds from the start of the step.

    Attributes:
        graph: what was run.
        makespan: when the last task ended.
        ready: when all that the task waits for had ended.
        start: when its memory was granted and its overhead began.
        overhead_end: when its overhead was spent.
        end: when it ended.
        phases: its speeds from `overhead_end` to `end`; empty when it has no amounts.
        delivered: amount that each used resource gave, integrated over the run.
        busy_s: integral over time of each used resource's utilisation, in seconds.
        memory_peak: most bytes ever held on each tier.
        memory_curve: per tier (time, bytes held from then on), beginning at time zero with what was resident.
    """

    graph: Graph
    makespan: float
    ready: tuple[float, ...]
    start: tuple[float, ...]
    overhead_end: tuple[float, ...]
    end: tuple[float, ...]
    phases: tuple[tuple[Phase, ...], ...]
    delivered: Mapping[str, float]
    busy_s: Mapping[str, float]
    memory_peak: Mapping[str, float]
    memory_curve: Mapping[str, tuple[tuple[float, float], ...]]

    @property
    def utilisation(self) -> dict[str, float]:
        """Share of the makespan in [0, 1] that each used resource was busy, the busiest first."""
        if self.makespan == 0.0:
            return {}
        busiest_first = sorted(self.busy_s.items(), key=lambda item: (-item[1], item[0]))
        return {name: busy / self.makespan for name, busy in busiest_first}

    @property
    def bottleneck(self) -> str | None:
        """The busiest resource; None when no resource was used."""
        return next(iter(self.utilisation), None)


def critical_path(run: Run) -> tuple[int, ...]:
    """Indices of the tasks that determined the makespan, first to last.

    Walks back from the task that ended last: what it waited for longest is the predecessor that ended last (ties: the
    lower index). The path has no gaps but the memory waits between a task's `ready` and `start`.
    """
    if not run.end:
        return ()
    index = max(range(len(run.end)), key=lambda other: (run.end[other], -other))
    path = [index]
    while waits_for := run.graph.predecessors[index]:
        index = max(waits_for, key=lambda other: (run.end[other], -other))
        path.append(index)
    return tuple(reversed(path))


def blame(run: Run) -> dict[str, float]:
    """Seconds of the critical path by what held it up, the largest first; they sum to the makespan.

    Keys are resource names, ``'overhead'`` and ``'memory wait'``. A task that shares a resource blames the one that
    limited its speed at each moment.
    """
    seconds: dict[str, float] = {}
    for index in critical_path(run):
        spans = [
            (MEMORY_WAIT, run.start[index] - run.ready[index]),
            (OVERHEAD, run.overhead_end[index] - run.start[index]),
        ]
        spans += [(phase.limiter, lasted) for phase, lasted in lasting_phases(run.phases[index], run.end[index])]
        for cause, lasted in spans:
            if lasted > 0.0:
                seconds[cause] = seconds.get(cause, 0.0) + lasted
    return dict(sorted(seconds.items(), key=lambda item: (-item[1], item[0])))


def lasting_phases(phases: Sequence[Phase], end_s: float) -> list[tuple[Phase, float]]:
    """Each phase with the seconds that it lasted, for a task that ended at `end_s`."""
    ends = [phase.start_s for phase in phases[1:]] + [end_s]
    return [(phase, until - phase.start_s) for phase, until in zip(phases, ends, strict=False)]
