"""Segments of prompts against their definition: blocks belong together where exactly the same requests have them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.serving.chains import Chains
from stowplan.traces.trace import Blocks

UNIT = 16


def made(chains: list[list[int]], prompts: list[int], block: int = UNIT) -> Chains:
    offsets = np.concatenate(([0], np.cumsum([len(chain) for chain in chains])))
    hashes = np.array([key for chain in chains for key in chain], dtype=np.int64)
    return Chains.from_blocks(Blocks(offsets, hashes, UNIT), np.array(prompts, dtype=np.int64), block)


@st.composite
def tries(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Chains that branch off one another, and prompts some of which end before their last block is full."""
    chains: list[list[int]] = []
    apart = draw(st.sampled_from([1, 3, -7, 10**12]))  # hashes close together, and hashes anywhere
    for _ in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from([[], *chains]))
        kept = parent[: draw(st.integers(0, len(parent)))]
        fresh = sum(map(len, chains))
        chains.append([*kept, *(apart * (fresh + i) for i in range(1, draw(st.integers(0, 5)) + 1))])
    prompts = [max(1, len(chain) * UNIT + draw(st.integers(-UNIT, UNIT))) for chain in chains]
    return chains, prompts


@settings(deadline=None, max_examples=200)
@given(tries(), st.sampled_from([16, 8, 4]))
def test_blocks_are_in_one_segment_where_the_same_requests_have_them(
    trie: tuple[list[list[int]], list[int]], block: int
) -> None:
    chains, prompts = trie
    found = made(chains, prompts, block)
    whole = [chain[: prompt // UNIT] for chain, prompt in zip(chains, prompts, strict=True)]
    users: dict[int, set[int]] = {}
    for request, chain in enumerate(whole):
        for key in chain:
            users.setdefault(key, set()).add(request)
    segment_of: dict[int, int] = {}
    for request, chain in enumerate(whole):
        segments = [segment for segment in found.of(request) for _ in range(found.sizes[segment] * block // UNIT)]
        assert len(segments) == len(chain)
        for key, segment in zip(chain, segments, strict=True):
            assert segment_of.setdefault(key, segment) == segment
    for one, first in segment_of.items():
        for other, second in segment_of.items():
            assert (first == second) == (users[one] == users[other])
    assert len(found.leaf) == len(chains)
    assert sorted(set(segment_of.values())) == list(range(1, len(found.sizes)))
    assert (found.parent[0], found.ends[0], found.sizes[0]) == (0, 0, 0)
    for segment in range(1, len(found.sizes)):
        assert found.ends[segment] == found.ends[found.parent[segment]] + found.sizes[segment]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=8))
def test_hashes_that_are_no_tree_are_told_apart_by_what_comes_before(chains: list[list[int]]) -> None:
    """Two prompts share a block exactly where they are equal up to and with it."""
    found = made(chains, [len(chain) * UNIT + 1 for chain in chains])
    blocks = [[segment for segment in found.of(row) for _ in range(found.sizes[segment])] for row in range(len(chains))]
    for one, first in enumerate(chains):
        assert len(blocks[one]) == len(first)
        for other, second in enumerate(chains):
            alike = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
            alike = min(len(first), len(second)) if alike is None else alike
            common = sum(found.sizes[segment] for segment in {*found.of(one)} & {*found.of(other)})
            assert common == alike
            assert blocks[one][:alike] == blocks[other][:alike]


def test_a_block_after_another_beginning_is_another_block() -> None:
    swapped = made([[1, 2], [2, 1]], [2 * UNIT, 2 * UNIT])
    assert not {*swapped.of(0)} & {*swapped.of(1)}
    crossed = made([[1, 2], [1, 3], [4, 2], [4, 3]], [2 * UNIT] * 4)
    assert len({segment for row in range(4) for segment in crossed.of(row)}) == 6


def test_nothing_is_kept_of_a_block_that_is_not_full() -> None:
    assert list(made([[1, 2]], [UNIT - 1]).of(0)) == []
    assert list(made([[]], [5]).sizes) == [0]


def test_a_block_size_that_does_not_divide_is_told() -> None:
    with pytest.raises(InputError, match="no whole number of cache blocks of 12 tokens"):
        made([[1]], [UNIT], 12)
