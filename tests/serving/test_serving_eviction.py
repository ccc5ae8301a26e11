"""Which segment goes first: against plain sums, and ends always before beginnings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.serving.eviction import EvictionName, GreedyDual, LeastRecentlyUsed, make_shelf

steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "take", "evict"]), st.integers(0, 9), st.integers(0, 6)), max_size=80
)


@settings(deadline=None, max_examples=200)
@given(steps)
def test_greedy_dual_equals_its_definition(steps: list[tuple[str, int, int]]) -> None:
    """A segment's priority is its worth on top of the priority of what went last, by Cao and Irani."""
    policy = GreedyDual()
    priorities: dict[int, tuple[int, int]] = {}
    level = 0
    for count, (action, segment, worth) in enumerate(steps):
        if action == "add" and segment not in priorities:
            policy.put(segment, (), float(worth))
            priorities[segment] = level + worth, count
        elif action == "take" and segment in priorities:
            policy.take(segment)
            del priorities[segment]
        elif action == "evict" and priorities:
            least = min(priorities, key=lambda name: priorities[name])
            assert policy.first() == least
            level = priorities.pop(least)[0]
            assert policy.take_first() == (least, ())
        assert len(policy) == len(priorities)


@settings(deadline=None, max_examples=100)
@given(steps)
def test_least_recently_used_equals_a_list(steps: list[tuple[str, int, int]]) -> None:
    policy, order = LeastRecentlyUsed(), list[int]()
    for action, segment, worth in steps:
        if action == "add" and segment not in order:
            policy.put(segment, (), float(worth))
            order.append(segment)
        elif action == "take" and segment in order:
            policy.take(segment)
            order.remove(segment)
        elif action == "evict" and order:
            assert policy.first() == order[0]
            assert policy.take_first() == (order.pop(0), ())
        assert len(policy) == len(order)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["lru", "cost"]),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=12),
)
def test_the_end_of_a_prompt_goes_before_its_beginning(name: EvictionName, prompts: list[tuple[int, int, int]]) -> None:
    """Prompts of some segments are released end first, each with one worth; some segments go in between."""
    policy = make_shelf(name)
    held: dict[int, tuple[int, int]] = {}
    gone: dict[int, list[int]] = {}
    number = 0

    def evict() -> None:
        segment, _ = policy.take_first()
        prompt, position = held.pop(segment)
        gone.setdefault(prompt, []).append(position)

    for prompt, (length, worth, evictions) in enumerate(prompts):
        for position in reversed(range(length)):
            policy.put(number, (), float(worth))
            held[number] = prompt, position
            number += 1
        for _ in range(min(evictions, len(held))):
            evict()
    while held:
        evict()
    for positions in gone.values():
        assert positions == sorted(positions, reverse=True)


def test_segments_that_come_and_go_leave_nothing_behind() -> None:
    policy = GreedyDual()
    policy.put(0, (), 1.0)
    for _ in range(20_000):
        policy.put(1, (), 5.0)
        policy.take(1)
    assert len(policy) == 1
    assert len(policy._heap) < 2000
    assert policy.first() == 0


@pytest.mark.parametrize(("name", "expected"), [("lru", LeastRecentlyUsed), ("cost", GreedyDual)])
def test_policies_have_names(name: EvictionName, expected: type) -> None:
    assert type(make_shelf(name)) is expected
