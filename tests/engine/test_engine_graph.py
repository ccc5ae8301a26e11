"""What a task graph refuses, and what it derives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import Graph, GraphBuilder, Task
from stowplan.errors import SimulationError
from stowplan.work import Work

RATES = {"gpu": 1.0}


def test_streams_and_dependencies_make_the_predecessors() -> None:
    builder = GraphBuilder(RATES)
    first = builder.add("first", stream="s")
    loose = builder.add("loose")
    builder.add("second", stream="s", after=[loose, first, loose])
    builder.add("third", stream="s", after=loose)
    assert builder.build().predecessors == ((), (), (0, 1), (1, 2))


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_order_puts_every_task_after_its_predecessors(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    rank = data.draw(st.permutations(range(count)))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    after: dict[int, set[int]] = {index: set() for index in range(count)}
    for one, other in data.draw(st.lists(pairs, max_size=20)):
        if rank[one] < rank[other]:
            after[other].add(one)
    graph = Graph([Task(str(index), Work.zero, after=tuple(after[index])) for index in range(count)], RATES)
    place = {index: position for position, index in enumerate(graph.order)}
    assert sorted(place) == list(range(count))
    assert all(place[other] < place[index] for index in range(count) for other in graph.predecessors[index])


def test_circles_are_refused_and_named() -> None:
    tasks = [
        Task("alone", Work.zero),
        Task("egg", Work.zero, after=(2,)),
        Task("hen", Work.zero, after=(1, 0)),
        Task("behind", Work.zero, after=(2,)),
    ]
    with pytest.raises(SimulationError, match=r"circle: 'egg' after 'hen' after 'egg'$"):
        Graph(tasks, RATES)
    with pytest.raises(SimulationError, match=r"circle: 'self' after 'self'$"):
        Graph([Task("self", Work.zero, after=(0,))], RATES)


def test_a_circle_through_the_order_of_a_stream_is_refused() -> None:
    tasks = [Task("head", Work.zero, stream="s", after=(1,)), Task("tail", Work.zero, stream="s")]
    with pytest.raises(SimulationError, match="circle"):
        Graph(tasks, RATES)


def test_long_circles_are_named_in_part() -> None:
    ring = [Task(str(index), Work.zero, after=((index + 1) % 20,)) for index in range(20)]
    with pytest.raises(SimulationError, match="and 13 more"):
        Graph(ring, RATES)


@pytest.mark.parametrize("index", [-1, 1, 7])
def test_indices_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(SimulationError, match=f"'lost' waits for task {index}"):
        Graph([Task("lost", Work.zero, after=(index,))], RATES)


def test_unknown_resources_and_tiers_are_refused() -> None:
    with pytest.raises(SimulationError, match="'copy' works on 'link', which the machine lacks; known: gpu"):
        Graph([Task("copy", Work({"link": 1.0}))], RATES)
    for task in (Task("hold", Work.zero, allocates={"hbm": 1.0}), Task("hold", Work.zero, frees={"hbm": 1.0})):
        with pytest.raises(SimulationError, match=r"'hold' on 'hbm', a memory tier.* known: vram"):
            Graph([task], RATES, {"vram": 1.0})
    with pytest.raises(SimulationError, match="residents on 'hbm'"):
        Graph([], RATES, {"vram": 1.0}, {"hbm": 1.0})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_numbers_out_of_range_are_refused_with_their_value(value: float) -> None:
    with pytest.raises(SimulationError, match=f"rate.*{value}"):
        Graph([], {"gpu": value})
    with pytest.raises(SimulationError, match=f"capacity.*{value}"):
        Graph([], RATES, {"vram": value})
    with pytest.raises(SimulationError, match=f"size.*{value}"):
        Graph([], RATES, {"vram": 1.0}, {"vram": value})
    with pytest.raises(SimulationError, match=f"'hold'.*size.*{value}"):
        Graph([Task("hold", Work.zero, allocates={"vram": value})], RATES, {"vram": 1.0})


def test_residents_larger_than_their_tier_are_refused() -> None:
    with pytest.raises(SimulationError, match="vram: 5 bytes are resident, but the tier holds 4"):
        Graph([], RATES, {"vram": 4.0}, {"vram": 5.0})


def test_names_of_causes_are_not_resources() -> None:
    with pytest.raises(SimulationError, match="'overhead'"):
        Graph([], {"overhead": 1.0})
