"""Tasks of one step, what they wait for, and the machine they run on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType

from stowplan.errors import SimulationError
from stowplan.work import OVERHEAD, Work

MEMORY_WAIT = "memory wait"
_NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that happens: a kernel, a copy, a read.

    Attributes:
        name: what people read in timelines and error sentences; need not be unique.
        work: what it costs.
        stream: in-order queue that it belongs to; tasks of one stream run one after another in the order of the graph.
        after: indices, in the graph's list, of tasks that must end before this one starts.
        kind: compute, copy, disk, ...; a label for pictures.
        allocates: bytes per memory tier that it takes when it starts.
        frees: bytes per memory tier that it gives back when it ends, whoever took them.
    """

    name: str
    work: Work
    stream: str | None = None
    after: tuple[int, ...] = ()
    kind: str = ""
    allocates: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    frees: Mapping[str, float] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A checked task graph.

    Attributes:
        tasks: in the order that breaks every tie.
        rates: amount per second of each resource (positive, finite).
        memory: capacity in bytes of each memory tier.
        resident: bytes held on each tier before the step begins.
        predecessors: per task, the sorted indices that it waits for: `after` and the task before it in its stream.
        order: a topological order of all indices.

    Raises:
        SimulationError: an index out of range, tasks that wait for each other in a circle, an unknown resource or tier,
            a rate, size or capacity that is out of range, or residents larger than their tier.
    """

    tasks: Sequence[Task]
    rates: Mapping[str, float]
    memory: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    resident: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    predecessors: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    order: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tasks = tuple(self.tasks)
        object.__setattr__(self, "tasks", tasks)
        for name in ("rates", "memory", "resident"):
            object.__setattr__(self, name, MappingProxyType(dict(sorted(getattr(self, name).items()))))
        _check_machine(self.rates, self.memory, self.resident)
        for task in tasks:
            _check_task(task, self.rates, self.memory)
        object.__setattr__(self, "predecessors", _predecessors(tasks))
        object.__setattr__(self, "order", _topological_order(tasks, self.predecessors))


class GraphBuilder:
    """Writes a graph task by task; `add` returns the index that later tasks wait for.

    Args:
        rates: amount per second of each resource.
        memory: capacity in bytes of each memory tier.
        resident: bytes held on each tier before the step begins.
    """

    def __init__(
        self,
        rates: Mapping[str, float],
        memory: Mapping[str, float] = _NOTHING,
        resident: Mapping[str, float] = _NOTHING,
    ) -> None:
        self._rates, self._memory, self._resident = rates, memory, resident
        self._tasks: list[Task] = []

    def add(
        self,
        name: str,
        work: Work = Work.zero,
        *,
        stream: str | None = None,
        after: int | Iterable[int] = (),
        kind: str = "",
        allocates: Mapping[str, float] = _NOTHING,
        frees: Mapping[str, float] = _NOTHING,
    ) -> int:
        """Append a task and return its index; the arguments are those of `Task`, and `after` may be one index."""
        waits_for = (after,) if isinstance(after, int) else tuple(after)
        self._tasks.append(Task(name, work, stream, waits_for, kind, allocates, frees))
        return len(self._tasks) - 1

    def build(self) -> Graph:
        """The checked graph of all tasks so far; raises as `Graph`."""
        return Graph(self._tasks, self._rates, self._memory, self._resident)


def _check_machine(rates: Mapping[str, float], memory: Mapping[str, float], resident: Mapping[str, float]) -> None:
    for name, rate in rates.items():
        if not 0.0 < rate < inf:
            raise SimulationError(f"{name}: a rate must be positive and finite, but it is {rate}")
        if name in (OVERHEAD, MEMORY_WAIT):
            raise SimulationError(f"a resource may not be called '{name}', which names a cause of delay")
    for tier, capacity in memory.items():
        if not 0.0 <= capacity < inf:
            raise SimulationError(f"{tier}: a capacity must be finite and not negative, but it is {capacity}")
    for tier, held in resident.items():
        _check_tier("the residents", tier, held, memory)
        if held > memory[tier]:
            raise SimulationError(f"{tier}: {held:.0f} bytes are resident, but the tier holds {memory[tier]:.0f}")


def _check_task(task: Task, rates: Mapping[str, float], memory: Mapping[str, float]) -> None:
    for name in task.work.amounts:
        if name not in rates:
            known = ", ".join(rates) or "none"
            raise SimulationError(f"task '{task.name}' works on '{name}', which the machine lacks; known: {known}")
    for changes in (task.allocates, task.frees):
        for tier, size in changes.items():
            _check_tier(f"task '{task.name}'", tier, size, memory)


def _check_tier(who: str, tier: str, size: float, memory: Mapping[str, float]) -> None:
    if tier not in memory:
        known = ", ".join(memory) or "none"
        raise SimulationError(f"{who} on '{tier}', a memory tier that the machine lacks; known: {known}")
    if not 0.0 <= size < inf:
        raise SimulationError(f"{who} on '{tier}': a size must be finite and not negative, but it is {size}")


def _predecessors(tasks: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    last_of_stream: dict[str, int] = {}
    found: list[tuple[int, ...]] = []
    for index, task in enumerate(tasks):
        for other in task.after:
            if not 0 <= other < len(tasks):
                raise SimulationError(
                    f"task '{task.name}' waits for task {other}, but the graph has tasks 0 to {len(tasks) - 1}"
                )
        waits_for = set(task.after)
        if task.stream is not None:
            if task.stream in last_of_stream:
                waits_for.add(last_of_stream[task.stream])
            last_of_stream[task.stream] = index
        found.append(tuple(sorted(waits_for)))
    return tuple(found)


def successors(graph: Graph) -> list[list[int]]:
    """Per task, the indices that wait for it, ascending."""
    return _inverse(graph.predecessors)


def _inverse(predecessors: Sequence[Sequence[int]]) -> list[list[int]]:
    followers: list[list[int]] = [[] for _ in predecessors]
    for index, waits_for in enumerate(predecessors):
        for other in waits_for:
            followers[other].append(index)
    return followers


def _topological_order(tasks: Sequence[Task], predecessors: Sequence[Sequence[int]]) -> tuple[int, ...]:
    followers = _inverse(predecessors)
    open_count = [len(waits_for) for waits_for in predecessors]
    order = [index for index, count in enumerate(open_count) if count == 0]
    for index in order:  # grows while it is read: the list is the queue
        for follower in followers[index]:
            open_count[follower] -= 1
            if open_count[follower] == 0:
                order.append(follower)
    if len(order) < len(tasks):
        circle = _find_circle(predecessors, open_count)
        names = " after ".join(f"'{tasks[index].name}'" for index in circle[:8])
        more = f" and {len(circle) - 8} more" if len(circle) > 8 else ""
        raise SimulationError(f"tasks wait for each other in a circle: {names}{more}")
    return tuple(order)


def _find_circle(predecessors: Sequence[Sequence[int]], open_count: Sequence[int]) -> list[int]:
    """One circle of indices, its first repeated at the end; every open task has an open predecessor."""
    walked: dict[int, int] = {}
    index = next(index for index, count in enumerate(open_count) if count)
    while index not in walked:
        walked[index] = len(walked)
        index = next(other for other in predecessors[index] if open_count[other])
    return [*list(walked)[walked[index] :], index]
