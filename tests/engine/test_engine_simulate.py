"""Invariants of simulated runs over random graphs, and small graphs whose times are known."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import (
    Graph,
    GraphBuilder,
    Run,
    Task,
    blame,
    critical_path,
    lower_bound,
    serial_bound,
    simulate,
)
from stowplan.errors import SimulationError
from stowplan.work import Work

RATES = {"cpu": 16.0, "gpu": 1.0, "link": 25e9, "ram": 60e9}
PROPERTY = settings(deadline=None, max_examples=120)

AMOUNTS = st.dictionaries(st.sampled_from(sorted(RATES)), st.just(0.0) | st.floats(1e-9, 2.0), max_size=3).map(
    lambda seconds: {name: share * RATES[name] for name, share in seconds.items()}
)
WORKS = st.builds(Work, AMOUNTS, st.sampled_from([0.0, 0.0, 1e-3, 0.5]))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs; a tier is taken and given back by some tasks, and always has room for the largest."""
    builder = GraphBuilder(RATES, {"vram": 10.0} if draw(st.booleans()) else {"vram": 1e9}, {"vram": 2.0})
    for index in range(draw(st.integers(0, 14))):
        size = draw(st.sampled_from([0.0, 0.0, 3.0, 8.0]))
        builder.add(
            f"task {index}",
            draw(WORKS),
            stream=draw(st.sampled_from([None, "copy", "compute"])),
            after=draw(st.lists(st.integers(0, index - 1), max_size=2)) if index else (),
            allocates={"vram": size} if size else {},
            frees={"vram": size} if size else {},
        )
    return builder.build()


def with_tasks(graph: Graph, tasks: list[Task]) -> Graph:
    return Graph(tasks, graph.rates, graph.memory, graph.resident)


def scaled(graph: Graph, factor: float) -> Graph:
    return with_tasks(
        graph,
        [Task(t.name, t.work * factor, t.stream, t.after, t.kind, t.allocates, t.frees) for t in graph.tasks],
    )


def speed_at(run: Run, index: int, moment: float) -> float:
    if not run.phases[index] or not run.phases[index][0].start_s <= moment < run.end[index]:
        return 0.0
    return [phase.speed for phase in run.phases[index] if phase.start_s <= moment][-1]


@PROPERTY
@given(graphs())
def test_the_makespan_lies_between_its_bounds(graph: Graph) -> None:
    makespan = simulate(graph).makespan
    assert lower_bound(graph) <= makespan * (1 + 1e-9)
    assert makespan <= serial_bound(graph) * (1 + 1e-9)


@PROPERTY
@given(graphs())
def test_every_amount_is_delivered_once(graph: Graph) -> None:
    run = simulate(graph)
    asked = sum((task.work for task in graph.tasks), start=Work.zero).amounts
    assert run.delivered == pytest.approx(dict(asked), rel=1e-9)
    for name, busy in run.busy_s.items():
        assert math.isclose(busy, asked[name] / graph.rates[name], rel_tol=1e-9)
        assert run.utilisation[name] <= 1 + 1e-9


@PROPERTY
@given(graphs())
def test_the_phases_of_a_task_add_up_to_its_work(graph: Graph) -> None:
    run = simulate(graph)
    for index, task in enumerate(graph.tasks):
        ends = [phase.start_s for phase in run.phases[index][1:]] + [run.end[index]]
        progress_s = sum(
            phase.speed * (until - phase.start_s) for phase, until in zip(run.phases[index], ends, strict=False)
        )
        # Differences of clock readings are only as fine as the clock, which runs to the makespan.
        assert progress_s == pytest.approx(
            Work(task.work.amounts).alone_s(graph.rates), rel=1e-9, abs=1e-12 * run.makespan
        )


@PROPERTY
@given(graphs())
def test_no_resource_is_ever_above_its_rate(graph: Graph) -> None:
    run = simulate(graph)
    for moment in {phase.start_s for phases in run.phases for phase in phases}:
        used = dict.fromkeys(graph.rates, 0.0)
        for index, task in enumerate(graph.tasks):
            speed = speed_at(run, index, moment)
            fluid_s = Work(task.work.amounts).alone_s(graph.rates)
            for name, amount in task.work.amounts.items():
                used[name] += speed * amount / fluid_s if speed else 0.0
        for name, rate in graph.rates.items():
            assert used[name] <= rate * (1 + 1e-9)


@PROPERTY
@given(graphs())
def test_memory_stays_within_its_capacity_and_is_given_back(graph: Graph) -> None:
    run = simulate(graph)
    for tier, curve in run.memory_curve.items():
        assert all(0.0 <= held <= graph.memory[tier] for _, held in curve)
        assert [at for at, _ in curve] == sorted(at for at, _ in curve)
        assert curve[-1][1] == graph.resident[tier]
        assert run.memory_peak[tier] == max(held for _, held in curve)
    # Recounted from the tasks alone: what is held in the middle of each task that takes any time.
    for moment in {(begins + ends) / 2 for begins, ends in zip(run.start, run.end, strict=True)}:
        held = graph.resident["vram"] + sum(
            task.allocates.get("vram", 0.0)
            for index, task in enumerate(graph.tasks)
            if run.start[index] < moment < run.end[index]
        )
        assert held <= graph.memory["vram"]


@PROPERTY
@given(graphs())
def test_tasks_wait_for_their_dependencies_and_streams(graph: Graph) -> None:
    run = simulate(graph)
    last_end: dict[str, float] = {}
    for index, task in enumerate(graph.tasks):
        assert run.ready[index] <= run.start[index] <= run.overhead_end[index] <= run.end[index]
        assert run.start[index] >= max((run.end[other] for other in task.after), default=0.0)
        alone_s = task.work.alone_s(graph.rates)
        assert run.end[index] - run.start[index] >= alone_s * (1 - 1e-9) - 1e-12
        if task.stream is not None:
            assert run.start[index] >= last_end.get(task.stream, 0.0)
            last_end[task.stream] = run.end[index]


@PROPERTY
@given(graphs())
def test_the_same_graph_gives_the_same_run(graph: Graph) -> None:
    again = with_tasks(graph, list(graph.tasks))
    first, second = simulate(graph), simulate(again)
    assert (first.start, first.end, first.phases) == (second.start, second.end, second.phases)
    assert (first.delivered, first.memory_curve) == (second.delivered, second.memory_curve)
    assert simulate(graph) == first


@PROPERTY
@given(graphs(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_scaling_by_a_power_of_two_scales_every_time_exactly(graph: Graph, factor: float) -> None:
    run, slow = simulate(graph), simulate(scaled(graph, factor))
    assert slow.end == tuple(end * factor for end in run.end)


@PROPERTY
@given(graphs(), st.floats(0.01, 100.0))
def test_scaling_scales_the_makespan_where_memory_is_ample(graph: Graph, factor: float) -> None:
    # With scarce memory, rounding can swap two requests for it that come at the same moment.
    ample = Graph(graph.tasks, graph.rates, {"vram": 1e9}, graph.resident)
    expected = simulate(ample).makespan * factor
    assert math.isclose(simulate(scaled(ample, factor)).makespan, expected, rel_tol=1e-9, abs_tol=1e-300)


@PROPERTY
@given(graphs())
def test_blame_accounts_for_the_whole_makespan(graph: Graph) -> None:
    run = simulate(graph)
    causes = blame(run)
    assert sum(causes.values()) == pytest.approx(run.makespan, rel=1e-9, abs=1e-300)
    path = critical_path(run)
    assert all(one in graph.predecessors[other] for one, other in pairwise(path))
    if path:
        assert run.end[path[-1]] == run.makespan
        assert run.ready[path[0]] == 0.0
    for one, other in pairwise(path):
        assert run.end[one] == run.ready[other]


# Faster resources may slow a general graph: under fair sharing, relief on one resource lets a task press harder on
# another. The two kinds of graph below are those in which that cannot happen.
@PROPERTY
@given(
    st.lists(st.tuples(st.sampled_from(sorted(RATES)), st.floats(0.0, 2.0), st.sampled_from([0.0, 0.5])), max_size=8),
    st.sampled_from(sorted(RATES)),
    st.floats(1.0, 10.0),
)
def test_a_faster_resource_never_slows_independent_tasks_of_one_resource_each(
    pieces: list[tuple[str, float, float]], faster: str, factor: float
) -> None:
    tasks = [Task(name, Work({name: share * RATES[name]}, delay)) for name, share, delay in pieces]
    before = simulate(Graph(tasks, RATES)).makespan
    after = simulate(Graph(tasks, {**RATES, faster: RATES[faster] * factor})).makespan
    assert after <= before * (1 + 1e-9)


@PROPERTY
@given(st.lists(WORKS, max_size=8), st.sampled_from(sorted(RATES)), st.floats(1.0, 10.0))
def test_a_chain_takes_the_sum_of_its_tasks_and_gains_from_speed(works: list[Work], faster: str, factor: float) -> None:
    tasks = [Task("link", work, stream="only") for work in works]
    before, after = Graph(tasks, RATES), Graph(tasks, {**RATES, faster: RATES[faster] * factor})
    assert math.isclose(simulate(before).makespan, serial_bound(before), rel_tol=1e-9, abs_tol=1e-300)
    assert lower_bound(before) == pytest.approx(serial_bound(before))
    assert simulate(after).makespan <= simulate(before).makespan * (1 + 1e-9)


def test_two_copies_share_a_link_and_the_longer_finishes_alone() -> None:
    graph = Graph([Task("short", Work({"link": 25e9})), Task("long", Work({"link": 50e9}))], RATES)
    run = simulate(graph)
    assert run.end == (2.0, 3.0)
    assert [(phase.start_s, phase.speed) for phase in run.phases[1]] == [(0.0, 0.5), (2.0, 1.0)]
    assert run.bottleneck == "link"
    assert run.utilisation == {"link": 1.0}
    assert blame(run) == {"link": 3.0}


def test_the_overhead_uses_no_resource() -> None:
    graph = Graph([Task("late", Work({"gpu": 1.0}, 1.0)), Task("now", Work({"gpu": 1.0}))], RATES)
    run = simulate(graph)
    assert run.end == (2.0, 1.0)
    assert run.overhead_end == (1.0, 0.0)
    assert blame(run) == {"gpu": 1.0, "overhead": 1.0}


def test_tasks_without_work_pass_in_no_time() -> None:
    builder = GraphBuilder(RATES)
    first = builder.add("start")
    middle = builder.add("wait", Work({}, 0.25), after=first)
    builder.add("end", after=[first, middle])
    run = simulate(builder.build())
    assert run.end == (0.0, 0.25, 0.25)
    assert run.bottleneck is None
    assert simulate(Graph([], RATES)).makespan == 0.0
    assert critical_path(simulate(Graph([], RATES))) == ()


def test_prefetch_waits_for_the_buffer_that_compute_frees() -> None:
    builder = GraphBuilder(RATES, {"vram": 2.0})
    for layer in range(3):
        copied = builder.add(f"copy {layer}", Work({"link": 25e9}), stream="copy", allocates={"vram": 1.0})
        builder.add(f"layer {layer}", Work({"gpu": 2.0}), stream="gpu", after=copied, frees={"vram": 1.0})
    run = simulate(builder.build())
    assert run.start == (0.0, 1.0, 1.0, 3.0, 3.0, 5.0)
    assert run.ready[4] == 2.0
    assert run.makespan == 7.0
    assert run.memory_peak == {"vram": 2.0}
    assert blame(run) == {"gpu": 6.0, "link": 1.0}


def test_waiting_for_memory_is_blamed_on_the_path() -> None:
    builder = GraphBuilder(RATES, {"vram": 1.0})
    builder.add("first", Work({"gpu": 2.0}), allocates={"vram": 1.0}, frees={"vram": 1.0})
    builder.add("second", Work({"link": 25e9}), allocates={"vram": 1.0})
    assert blame(simulate(builder.build())) == {"memory wait": 2.0, "link": 1.0}


def test_a_small_request_passes_a_large_one_that_does_not_fit() -> None:
    builder = GraphBuilder(RATES, {"vram": 4.0}, {"vram": 3.0})
    builder.add("large", Work({"link": 25e9}), allocates={"vram": 4.0})
    builder.add("small", Work({"gpu": 1.0}), allocates={"vram": 1.0}, frees={"vram": 4.0})
    assert simulate(builder.build()).start == (1.0, 0.0)


def test_memory_goes_to_whoever_was_ready_first() -> None:
    builder = GraphBuilder(RATES, {"vram": 1.0}, {"vram": 1.0})
    holder = builder.add("delay", Work({}, 1.0))
    builder.add("later", Work({"gpu": 1.0}), after=holder, allocates={"vram": 1.0}, frees={"vram": 1.0})
    builder.add("earlier", Work({"gpu": 1.0}), allocates={"vram": 1.0}, frees={"vram": 1.0})
    builder.add("holder", Work({}, 2.0), frees={"vram": 1.0})
    assert simulate(builder.build()).start == (0.0, 3.0, 2.0, 0.0)


def test_a_step_that_can_never_finish_names_the_stuck_tasks_and_the_tier() -> None:
    builder = GraphBuilder(RATES, {"vram": 10.0, "ram": 10.0}, {"vram": 6.0})
    stuck = builder.add("load experts", Work({"link": 1.0}), allocates={"ram": 1.0, "vram": 5.0})
    builder.add("matmul", Work({"gpu": 1.0}), after=stuck)
    with pytest.raises(SimulationError, match=r"'vram' holds 6 of 10 bytes.*'load experts'.* 5 more.* 1 tasks? behind"):
        simulate(builder.build())


def test_freeing_more_than_is_held_is_refused() -> None:
    graph = Graph([Task("free", Work.zero, frees={"vram": 5.0})], RATES, {"vram": 9.0}, {"vram": 3.0})
    with pytest.raises(SimulationError, match="'free' frees 5 bytes on 'vram', which holds 3"):
        simulate(graph)


def test_sums_that_round_do_not_block_memory() -> None:
    assert 0.1 + 0.2 > 0.3
    parts = [Task(f"{size}", Work({}, 1.0), allocates={"vram": size}) for size in (0.1, 0.2)]
    assert simulate(Graph(parts, RATES, {"vram": 0.3})).makespan == 1.0


def test_far_apart_magnitudes_end() -> None:
    tasks = [
        Task("tiny", Work({"gpu": 1e-15}), stream="s"),
        Task("huge", Work({"gpu": 1e15})),
        *(Task("dust", Work({"gpu": 1e-300}, 1e-30), stream="s") for _ in range(50)),
    ]
    assert simulate(Graph(tasks, RATES)).makespan == pytest.approx(1e15)


def test_a_step_longer_than_any_number_is_refused() -> None:
    tasks = [Task("age", Work({"gpu": 1.7e308}), stream="s") for _ in range(2)]
    with pytest.raises(SimulationError, match="longer than a number can say"):
        simulate(Graph(tasks, RATES))


def test_eight_hundred_tasks_take_milliseconds() -> None:
    builder = GraphBuilder(RATES)
    for layer in range(80):
        for part in range(10):
            work = Work({"gpu": 1e-4, "link": 1e6 * (part + 1), "ram": 1e6}, 5e-6)
            builder.add(f"{layer}.{part}", work, stream=f"stream {part % 4}")
    graph, taken = builder.build(), []
    for _ in range(3):
        began = time.process_time()
        simulate(graph)
        taken.append(time.process_time() - began)
    # Around 20 ms of an idle core; the margin is for a busy machine.
    assert min(taken) < 0.3
