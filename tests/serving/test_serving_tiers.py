"""Places below the GPU: against an oracle that keeps sets of blocks, and what must hold under any eviction."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.serving.eviction import EvictionName
from stowplan.serving.tiers import Hierarchy, Tier

_LONGEST = 8
"""Blocks of a segment in these tests."""


def place(hierarchy: Hierarchy, segment: int, start: int, end: int, now: float) -> None:
    """Blocks of a segment leave the GPU."""
    hierarchy.coming.append((segment, start, end, now))
    if len(hierarchy.coming) > hierarchy.most:
        hierarchy.put_away()


class NaiveTiers:
    """Sets of blocks; the segment whose use is the longest ago goes as a whole, its last range first."""

    def __init__(self, capacities: list[int]) -> None:
        self.capacities = capacities
        self.levels: list[dict[int, set[int]]] = [{} for _ in capacities]

    def find(self, segment: int, start: int) -> tuple[int, int]:
        for level, held in enumerate(self.levels):
            end = start
            while end in held.get(segment, set()):
                end += 1
            if end > start:
                return level, end
        return -1, start

    def read(self, level: int, segment: int) -> None:
        self.levels[level][segment] = self.levels[level].pop(segment)

    def put(self, level: int, segment: int, blocks: set[int]) -> None:
        if level == len(self.levels) or not self.capacities[level]:
            return
        held = self.levels[level]
        if blocks <= held.get(segment, set()) or len(blocks | held.get(segment, set())) > self.capacities[level]:
            return
        held[segment] = held.pop(segment, set()) | blocks
        while sum(map(len, held.values())) > self.capacities[level]:
            going = next(iter(held))
            blocks = held.pop(going)
            while blocks:
                run = {max(blocks)}
                while min(run) - 1 in blocks:
                    run.add(min(run) - 1)
                blocks -= run
                self.put(level + 1, going, run)


actions = st.lists(
    st.tuples(st.sampled_from(["put", "put", "read"]), st.integers(0, 5), st.integers(0, 7), st.integers(1, 4)),
    max_size=60,
)


def _blocks(hierarchy: Hierarchy, segment: int) -> set[tuple[int, int]]:
    """(nearest tier, block) of everything that is found of a segment."""
    found = {(hierarchy.find(segment, block)[0], block) for block in range(_LONGEST)}
    return {(level, block) for level, block in found if level >= 0}


@settings(deadline=None, max_examples=150)
@given(actions=actions, capacities=st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_least_recently_used_equals_sets_of_blocks(
    actions: list[tuple[str, int, int, int]], capacities: list[int]
) -> None:
    tiers = [Tier(f"t{i}", blocks, {"link": 0.0}, 0.0) for i, blocks in enumerate(capacities)]
    hierarchy, naive = Hierarchy(tiers, "lru", [1.0] * 6), NaiveTiers(capacities)
    for action, segment, start, count in actions:
        end = min(start + count, _LONGEST)
        if action == "put":
            place(hierarchy, segment, start, end, 0.0)
            naive.put(0, segment, set(range(start, end)))
        else:
            level, until = hierarchy.find(segment, start)
            assert (level, until) == naive.find(segment, start)
            if level >= 0:
                hierarchy.read(level, segment, until - start)
                naive.read(level, segment)
        assert hierarchy.held == [sum(map(len, held.values())) for held in naive.levels]
        assert [hierarchy.copies(name) for name in range(6)] == [
            sum(name in held for held in naive.levels) for name in range(6)
        ]
    for segment in range(6):
        for block in range(_LONGEST):
            assert hierarchy.find(segment, block) == naive.find(segment, block)


@settings(deadline=None, max_examples=150)
@given(
    actions=actions,
    capacities=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    eviction=st.sampled_from(["lru", "cost"]),
    write_s=st.sampled_from([0.0, 0.3, 2.0]),
    worths=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=6, max_size=6),
)
def test_tiers_hold_what_was_written_and_no_more_than_they_may(
    actions: list[tuple[str, int, int, int]],
    capacities: list[int],
    eviction: EvictionName,
    write_s: float,
    worths: list[float],
) -> None:
    hierarchy = Hierarchy(
        [Tier(f"t{i}", n, {"link": 0.0}, write_s) for i, n in enumerate(capacities)], eviction, worths
    )
    given_away: set[tuple[int, int]] = set()
    for now, (action, segment, start, count) in enumerate(actions):
        end = min(start + count, _LONGEST)
        if action == "put":
            place(hierarchy, segment, start, end, now * 0.5)
            given_away |= {(segment, block) for block in range(start, end)}
        else:
            level, until = hierarchy.find(segment, start)
            assert all((segment, block) in given_away for block in range(start, until))
            if level >= 0:
                hierarchy.read(level, segment, until - start)
        for held, tier, traffic in zip(hierarchy.held, hierarchy.tiers, hierarchy.traffic, strict=True):
            assert 0 <= held <= traffic.peak <= tier.blocks
            assert held == traffic.written - traffic.evicted
            assert traffic.busy_s == pytest.approx(traffic.written * write_s)
    for segment in range(6):
        assert {(segment, block) for _, block in _blocks(hierarchy, segment)} <= given_away


def test_a_writer_that_is_too_far_behind_drops_what_comes() -> None:
    hierarchy = Hierarchy([Tier("disk", 100, {"disk": 0.0}, 1.0, patience_s=2.0)], "lru", [1.0] * 6)
    place(hierarchy, 1, 0, 2, 0.0)  # written until 2 s
    place(hierarchy, 2, 0, 2, 0.0)  # may wait for 2 s, and is written until 4 s
    place(hierarchy, 3, 0, 2, 0.0)  # would wait for 4 s
    assert hierarchy.find(3, 0) == (-1, 0)
    place(hierarchy, 3, 0, 3, 2.0)  # waits for 2 s
    place(hierarchy, 1, 0, 2, 2.0)  # is there: nothing to write, and nothing to drop
    (traffic,) = hierarchy.traffic
    assert (traffic.written, traffic.dropped, traffic.busy_s) == (7, 2, 7.0)
    assert hierarchy.find(3, 1) == (0, 3)


def test_what_leaves_a_tier_goes_to_the_next_and_then_nowhere() -> None:
    hierarchy = Hierarchy([Tier("host", 2, {"h": 0.0}, 0.0), Tier("disk", 3, {"d": 0.0}, 0.0)], "lru", [1.0] * 6)
    for segment in range(4):
        place(hierarchy, segment, 0, 2, 0.0)
    assert hierarchy.held == [2, 2]
    assert hierarchy.find(3, 0) == (0, 2) and hierarchy.find(2, 1) == (1, 2)
    assert hierarchy.find(1, 0) == hierarchy.find(0, 0) == (-1, 0)
    assert [hierarchy.copies(name) for name in range(6)] == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": -1},
        {"read": {}},
        {"read": {"link": -1.0}},
        {"write_s_per_block": math.nan},
        {"latency_s": math.inf},
        {"patience_s": -1.0},
    ],
)
def test_a_tier_out_of_its_range_is_refused(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"name": "host", "blocks": 1, "read": {"link": 0.0}, "write_s_per_block": 0.0}
    with pytest.raises(InputError, match="tier 'host'"):
        Tier(**(good | wrong))  # type: ignore[arg-type]


def test_what_is_larger_than_a_tier_or_comes_while_it_writes_is_dropped_and_counted() -> None:
    hierarchy = Hierarchy([Tier("disk", 10, {"d": 0.0}, 1.0, patience_s=3.5)], "lru", [1.0] * 6)
    place(hierarchy, 0, 0, 4, 0.0)
    place(hierarchy, 5, 0, 11, 0.0)
    assert hierarchy.held == [4] and hierarchy.traffic[0].dropped == 11
    place(hierarchy, 0, 4, 7, 0.0)
    assert hierarchy.held == [4] and hierarchy.traffic[0].dropped == 14, "the writer has four seconds of work left"
    place(hierarchy, 0, 4, 7, 1.0)
    assert hierarchy.held == [7] and hierarchy.traffic[0].dropped == 14
