"""Bounds on the makespan of a graph that need no simulation; they hold whatever the order of the tasks."""

from __future__ import annotations

from stowplan.engine.graph import Graph


def lower_bound(graph: Graph) -> float:
    """Seconds below which no schedule can go.

    The larger of the work of the busiest resource over its rate, and the longest chain (along dependencies and
    streams) of the tasks' times alone. Memory limits are ignored.
    """
    total: dict[str, float] = {}
    for task in graph.tasks:
        for name, amount in task.work.amounts.items():
            total[name] = total.get(name, 0.0) + amount
    busiest_s = max((amount / graph.rates[name] for name, amount in total.items()), default=0.0)
    earliest_end = [0.0] * len(graph.tasks)
    for index in graph.order:
        begins = max((earliest_end[other] for other in graph.predecessors[index]), default=0.0)
        earliest_end[index] = begins + graph.tasks[index].work.alone_s(graph.rates)
    return max(busiest_s, max(earliest_end, default=0.0))


def serial_bound(graph: Graph) -> float:
    """Seconds of all tasks one after another, which sharing never exceeds.

    Holds with memory limits too: while tasks are left some task runs, and those that run progress together at no less
    than the speed of one alone.
    """
    return sum(task.work.alone_s(graph.rates) for task in graph.tasks)
