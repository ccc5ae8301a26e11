"""The simulator against a second one that shares none of its methods.

Shares come from linear programmes solved lexicographically, time from small fixed steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog  # type: ignore[import-untyped,unused-ignore]

from stowplan.engine import Graph, GraphBuilder, demand_of, fair_shares, simulate
from stowplan.work import Work

RATES = {"a": 1.0, "b": 10.0, "c": 3.0, "d": 1e6}
SETS = st.lists(
    st.dictionaries(st.sampled_from(sorted(RATES)), st.floats(0.05, 2.0), min_size=1, max_size=4).map(
        lambda seconds: {name: share * RATES[name] for name, share in seconds.items()}
    ),
    min_size=1,
    max_size=6,
)
EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def alone_seconds(amounts: dict[str, float]) -> float:
    return max((amount / RATES[name] for name, amount in amounts.items()), default=0.0)


def max_min_by_linear_programmes(tasks: Sequence[dict[str, float]]) -> list[float]:
    """Max-min fair speeds: raise the least speed as far as it goes, fix whoever cannot pass it, and go on."""
    count = len(tasks)
    usage = np.array(
        [[task.get(name, 0.0) / RATES[name] / alone_seconds(task) for task in tasks] for name in sorted(RATES)]
    )
    fixed: dict[int, float] = {}
    while len(fixed) < count:
        free = [index for index in range(count) if index not in fixed]
        # Unknowns: the speeds, then the level that every free speed reaches.
        raised = np.zeros((len(free), count + 1))
        for row, index in enumerate(free):
            raised[row, index], raised[row, count] = -1.0, 1.0
        limits = np.vstack([np.hstack([usage, np.zeros((len(usage), 1))]), raised])
        right = np.concatenate([np.ones(len(usage)), np.zeros(len(free))])
        bounds = [(fixed.get(index, 0.0), fixed.get(index, 1.0)) for index in range(count)] + [(0.0, 1.0)]
        level = -linprog([0.0] * count + [-1.0], A_ub=limits, b_ub=right, bounds=bounds, options=EXACT).fun
        # Others may stay a rounding error below the level, so that it can be met again.
        floor = [(fixed.get(index, level - 1e-12), fixed.get(index, 1.0)) for index in range(count)]
        reach: dict[int, float] = {}
        for index in free:
            aim = np.zeros(count)
            aim[index] = -1.0
            reach[index] = -linprog(aim, A_ub=usage, b_ub=right[: len(usage)] + 1e-12, bounds=floor, options=EXACT).fun
        stopped = max(level + 1e-9, min(reach.values()))
        fixed |= {index: level for index in free if reach[index] <= stopped}
    return [fixed[index] for index in range(count)]


def random_graph(seed: int) -> Graph:
    """Up to seven tasks with streams, dependencies and overheads; each takes around a second."""
    draw = random.Random(seed)
    builder = GraphBuilder(RATES)
    for index in range(draw.randint(3, 7)):
        names = draw.sample(sorted(RATES), draw.randint(0, 3))
        builder.add(
            f"task {index}",
            Work({name: RATES[name] * draw.uniform(0.2, 1.5) for name in names}, draw.choice([0.0, 0.3])),
            stream=draw.choice([None, "x", "y"]),
            after=[other for other in range(index) if draw.random() < 0.25],
        )
    return builder.build()


def ends_by_small_steps(graph: Graph, step: float) -> list[float]:
    """When each task ends, found by moving all of them on in steps of equal length."""
    tasks = graph.tasks
    overhead = [task.work.overhead_s for task in tasks]
    left = [alone_seconds(dict(task.work.amounts)) for task in tasks]
    end: dict[int, float] = {}
    speeds: dict[tuple[int, ...], list[float]] = {}
    ticks = 0
    while len(end) < len(tasks):
        done = set(end)
        open_streams: set[str] = set()
        flowing = []
        for index, task in enumerate(tasks):
            if index in done:
                continue
            first_of_stream = task.stream is None or task.stream not in open_streams
            if task.stream is not None:
                open_streams.add(task.stream)
            if not first_of_stream or not done.issuperset(task.after):
                continue
            if overhead[index] > 1e-9:
                overhead[index] -= step
            elif left[index] > 1e-9:
                flowing.append(index)
            else:
                end[index] = ticks * step
        if flowing and tuple(flowing) not in speeds:
            speeds[tuple(flowing)] = max_min_by_linear_programmes(
                [dict(tasks[index].work.amounts) for index in flowing]
            )
        ticks += 1
        for position, index in enumerate(flowing):
            left[index] -= speeds[tuple(flowing)][position] * step
            if left[index] <= 1e-9:
                end[index] = ticks * step
    return [end[index] for index in range(len(tasks))]


@settings(deadline=None, max_examples=25)
@given(SETS)
def test_shares_match_lexicographic_linear_programmes(amounts: list[dict[str, float]]) -> None:
    shares = fair_shares([demand_of(Work(each), RATES) for each in amounts])
    expected = max_min_by_linear_programmes(amounts)
    assert [share.speed for share in shares] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(25))
def test_whole_graphs_match_small_time_steps(seed: int) -> None:
    graph = random_graph(seed)
    step = 1e-3
    # Each task on a chain may end, and each change of its rivals may come, up to two steps late.
    tolerance = 4 * step * len(graph.tasks)
    assert simulate(graph).end == pytest.approx(ends_by_small_steps(graph, step), abs=tolerance)
