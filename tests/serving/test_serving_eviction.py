"""Which segment goes first: against plain sums, and ends always before beginnings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.serving.eviction import EvictionName, GreedyDual, LeastRecentlyUsed, make_shelf

steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "use", "evict"]), st.integers(0, 9), st.integers(0, 6)), max_size=80
)
NEVER = [0] * 10


@settings(deadline=None, max_examples=200)
@given(steps)
def test_greedy_dual_equals_its_definition(steps: list[tuple[str, int, int]]) -> None:
    """A segment's priority is its worth on top of the priority of what went last, by Cao and Irani."""
    busy, worths = [0] * 10, [0.0] * 10
    policy = GreedyDual(busy, worths)
    priorities: dict[int, tuple[float, int]] = {}
    level = 0.0
    for count, (action, segment, worth) in enumerate(steps):
        if action == "add":
            busy[segment], worths[segment] = 0, float(worth)
            policy.put(segment)
            priorities[segment] = level + worth, count
        elif action == "use":
            busy[segment] = 1
            priorities.pop(segment, None)
        elif action == "evict" and priorities:
            least = min(priorities, key=lambda name: priorities[name])
            assert policy.first() == least
            level = priorities.pop(least)[0]
            policy.drop()


@settings(deadline=None, max_examples=200)
@given(steps)
def test_least_recently_used_equals_a_list(steps: list[tuple[str, int, int]]) -> None:
    busy, order = [0] * 10, list[int]()
    policy = LeastRecentlyUsed(busy)
    for action, segment, _ in steps:
        if action in {"add", "use"} and segment in order:
            order.remove(segment)
        if action == "add":
            busy[segment] = 0
            policy.put(segment)
            order.append(segment)
        elif action == "use":
            busy[segment] = 1
        elif action == "evict" and order:
            assert policy.first() == order[0]
            assert policy.first() == order.pop(0)
            policy.drop()


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["lru", "cost"]),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=12),
)
def test_the_end_of_a_prompt_goes_before_its_beginning(name: EvictionName, prompts: list[tuple[int, int, int]]) -> None:
    """Prompts of some segments are released end first, each with one worth; some segments go in between."""
    worths = [float(worth) for length, worth, _ in prompts for _ in range(length)]
    policy = make_shelf(name, [0] * len(worths), worths)
    held: dict[int, tuple[int, int]] = {}
    gone: dict[int, list[int]] = {}
    number = 0

    def evict() -> None:
        prompt, position = held.pop(policy.first())
        policy.drop()
        gone.setdefault(prompt, []).append(position)

    for prompt, (length, _, evictions) in enumerate(prompts):
        for position in reversed(range(length)):
            policy.put(number)
            held[number] = prompt, position
            number += 1
        for _ in range(min(evictions, len(held))):
            evict()
    while held:
        evict()
    for positions in gone.values():
        assert positions == sorted(positions, reverse=True)


def test_segments_that_are_used_again_and_again_leave_nothing_behind() -> None:
    policy = GreedyDual([0, 0], [1.0, 5.0])
    policy.put(0)
    for _ in range(20_000):
        policy.put(1)
    assert len(policy._heap) < 2000
    assert policy.first() == 0
    often = LeastRecentlyUsed([0, 0])
    for _ in range(20_000):
        often.put(1)
    assert len(often._queue) == 1


@pytest.mark.parametrize(("name", "expected"), [("lru", LeastRecentlyUsed), ("cost", GreedyDual)])
def test_policies_have_names(name: EvictionName, expected: type) -> None:
    assert type(make_shelf(name, NEVER, [0.0] * 10)) is expected
