"""Runs a task graph: an event simulation in which running work flows like a fluid.

A task is ready when all it waits for has ended, and starts when its allocation fits. It first spends its overhead,
which uses no resource; then its work flows at a relative speed in (0, 1] of what it would reach alone, max-min fair
among the tasks that flow at that moment. Speeds change only when a task begins or stops flowing.

Memory is granted to ready tasks in the order in which they became ready, then by index; a task that does not fit
does not hold up later ones that do, because it may be waiting for exactly what they free.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from math import inf

from stowplan.engine.graph import Graph, successors
from stowplan.engine.run import Phase, Run
from stowplan.engine.sharing import Demand, Share, demand_of, fair_shares
from stowplan.errors import SimulationError

# Tasks whose remaining work is below this share of the whole end together; the rounding of one step is far smaller.
_FINISHED = 1e-12
# Sizes are sums of floats: a tier may be passed by this share of its capacity before it counts as full.
_MEMORY_SLACK = 1e-12
# Sets of at most this many flowing tasks recur from layer to layer, so their shares are worth keeping.
_LARGEST_KEPT_SET = 16


def simulate(graph: Graph) -> Run:
    """Run the graph to its end. Deterministic: ties go to the lower index.

    Every event ends a task or its overhead, so there are at most two per task. An event costs time and memory in
    proportion to the tasks that flow at that moment, which streams keep few.

    Raises:
        SimulationError: the graph can never finish because a tier never has room for the tasks that are left (names
            them and the tier), a task frees more than is held, or the time overflows.
    """
    return _Simulation(graph).run()


class _Simulation:
    """State of one run; a method per kind of event."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        count = len(graph.tasks)
        self.demands = [demand_of(task.work, graph.rates) for task in graph.tasks]
        if sum(task.work.overhead_s for task in graph.tasks) + sum(d.alone_s for d in self.demands) == inf:
            raise SimulationError("the step takes longer than a number can say; check the amounts and rates")
        classes: dict[Demand, int] = {}
        # Two tasks are alike for sharing when their fractions are, whatever their lengths.
        self.alike = [
            classes.setdefault(Demand(0.0, demand.limiter, demand.fractions), len(classes)) for demand in self.demands
        ]
        self.known_shares: dict[tuple[int, ...], list[Share]] = {}
        self.followers = successors(graph)
        self.open_count = [len(waits_for) for waits_for in graph.predecessors]

        self.now = 0.0
        self.unfinished = count
        self.latent: list[tuple[float, int]] = []
        self.flowing: list[int] = []
        self.flow_changed = False
        self.waiting: list[int] = []
        self.left = [demand.alone_s for demand in self.demands]
        self.speed = [0.0] * count
        self.ready = [0.0] * count
        self.start = [0.0] * count
        self.overhead_end = [0.0] * count
        self.end = [0.0] * count
        self.phases: list[list[Phase]] = [[] for _ in range(count)]
        self.held = {tier: graph.resident.get(tier, 0.0) for tier in graph.memory}
        self.memory_curve = {tier: [(0.0, held)] for tier, held in self.held.items()}

    def run(self) -> Run:
        self._admit([index for index, count in enumerate(self.open_count) if count == 0])
        while self.unfinished:
            if not self.latent and not self.flowing:
                raise self._stuck()
            ended = self._advance()
            if ended:
                self._admit(self._finish(ended))
        graph = self.graph
        phases = tuple(map(tuple, self.phases))
        delivered = self._delivered()
        return Run(
            graph=graph,
            makespan=self.now,
            ready=tuple(self.ready),
            start=tuple(self.start),
            overhead_end=tuple(self.overhead_end),
            end=tuple(self.end),
            phases=phases,
            delivered=delivered,
            busy_s={name: amount / graph.rates[name] for name, amount in delivered.items()},
            memory_peak={tier: max(held for _, held in curve) for tier, curve in self.memory_curve.items()},
            memory_curve={tier: tuple(curve) for tier, curve in self.memory_curve.items()},
        )

    def _advance(self) -> list[int]:
        """Move to the next event; tasks past their overhead begin to flow. Returns the tasks that ended, ascending."""
        if self.flow_changed:
            self._share()
        flowing, left, speed = self.flowing, self.left, self.speed
        step = inf
        for index in flowing:
            step = min(step, left[index] / speed[index])
        moment = self.now + step
        if self.latent and self.latent[0][0] <= moment:
            moment = self.latent[0][0]
            step = min(step, moment - self.now)
        self.now = moment

        ended: list[int] = []
        still_flowing: list[int] = []
        for index in flowing:
            remaining = left[index] - speed[index] * step
            left[index] = remaining
            over = remaining <= _FINISHED * self.demands[index].alone_s
            (ended if over else still_flowing).append(index)
        if ended:
            self.flowing = still_flowing
            self.flow_changed = True
        while self.latent and self.latent[0][0] <= moment:
            _, index = heapq.heappop(self.latent)
            self.overhead_end[index] = moment
            if self.demands[index].alone_s > 0.0:
                self.flowing.append(index)
                self.flow_changed = True
            else:
                ended.append(index)
        ended.sort()
        return ended

    def _share(self) -> None:
        """Give every flowing task its speed, and note the change."""
        self.flow_changed = False
        flowing, now = self.flowing, self.now
        if len(flowing) == 1:
            shares = [Share(1.0, self.demands[flowing[0]].limiter)]
        elif len(flowing) > _LARGEST_KEPT_SET:
            shares = fair_shares([self.demands[index] for index in flowing])
        else:
            key = tuple([self.alike[index] for index in flowing])
            if key not in self.known_shares:
                self.known_shares[key] = fair_shares([self.demands[index] for index in flowing])
            shares = self.known_shares[key]
        for index, (speed, limiter) in zip(flowing, shares, strict=True):
            history = self.phases[index]
            if not history or history[-1].speed != speed or history[-1].limiter != limiter:
                self.speed[index] = speed
                history.append(Phase(now, speed, limiter))

    def _finish(self, ended: Iterable[int]) -> list[int]:
        """Give memory back and return the tasks that became ready, ascending."""
        ready = []
        for index in ended:
            self.end[index] = self.now
            self.unfinished -= 1
            for tier, size in self.graph.tasks[index].frees.items():
                held = self.held[tier] - size
                if held < -_MEMORY_SLACK * self.graph.memory[tier]:
                    raise SimulationError(
                        f"task '{self.graph.tasks[index].name}' frees {size:.0f} bytes on '{tier}', "
                        f"which holds {self.held[tier]:.0f}"
                    )
                self._hold(tier, max(held, 0.0))
            for follower in self.followers[index]:
                self.open_count[follower] -= 1
                if self.open_count[follower] == 0:
                    ready.append(follower)
        ready.sort()
        return ready

    def _admit(self, newly_ready: Iterable[int]) -> None:
        """Start what fits, first come first served."""
        for index in newly_ready:
            self.ready[index] = self.now
            if self.graph.tasks[index].allocates:
                self.waiting.append(index)
            else:
                self._start(index)
        if self.waiting:
            still_waiting = []
            for index in self.waiting:
                if self._lacking_tier(index) is None:
                    self._start(index)
                else:
                    still_waiting.append(index)
            self.waiting = still_waiting

    def _start(self, index: int) -> None:
        task = self.graph.tasks[index]
        for tier, size in task.allocates.items():
            self._hold(tier, self.held[tier] + size)
        self.start[index] = self.now
        if task.work.overhead_s == 0.0 and self.demands[index].alone_s > 0.0:
            self.overhead_end[index] = self.now
            self.flowing.append(index)
            self.flow_changed = True
        else:
            heapq.heappush(self.latent, (self.now + task.work.overhead_s, index))

    def _hold(self, tier: str, held: float) -> None:
        self.held[tier] = held
        self.memory_curve[tier].append((self.now, held))

    def _delivered(self) -> dict[str, float]:
        """Amount that each resource gave, by the progress that was integrated for each task."""
        delivered: dict[str, float] = {}
        for index, task in enumerate(self.graph.tasks):
            alone_s = self.demands[index].alone_s
            if alone_s > 0.0:
                done = (alone_s - self.left[index]) / alone_s
                for name, amount in task.work.amounts.items():
                    delivered[name] = delivered.get(name, 0.0) + amount * done
        return dict(sorted(delivered.items()))

    def _lacking_tier(self, index: int) -> str | None:
        """The first tier without room for the task's allocation."""
        for tier, size in self.graph.tasks[index].allocates.items():
            capacity = self.graph.memory[tier]
            if self.held[tier] + size > capacity + _MEMORY_SLACK * capacity:
                return tier
        return None

    def _stuck(self) -> SimulationError:
        """Nothing runs, so nothing will ever free memory: whoever waits waits for ever."""
        first = self.waiting[0]
        tier = self._lacking_tier(first) or ""
        task = self.graph.tasks[first]
        names = ", ".join(f"'{self.graph.tasks[index].name}'" for index in self.waiting[:5])
        more = f" and {len(self.waiting) - 5} more" if len(self.waiting) > 5 else ""
        behind = self.unfinished - len(self.waiting)
        return SimulationError(
            f"the step can never finish: '{tier}' holds {self.held[tier]:.0f} of {self.graph.memory[tier]:.0f} bytes, "
            f"'{task.name}' needs {task.allocates[tier]:.0f} more, and nothing that runs will free any; "
            f"stuck: {names}{more}" + (f", and {behind} tasks behind them" if behind else "")
        )
