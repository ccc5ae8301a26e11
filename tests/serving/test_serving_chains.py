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
    assert len(found) == len(chains)
    assert sorted(set(segment_of.values())) == list(range(len(found.sizes)))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=8))
def test_hashes_of_any_kind_keep_their_identity(chains: list[list[int]]) -> None:
    """Hashes that are no tree: equal hashes are still one thing, in the order and number of the prompt."""
    found = made(chains, [len(chain) * UNIT + 1 for chain in chains])
    for request, chain in enumerate(chains):
        assert sum(found.sizes[segment] for segment in found.of(request)) == len(chain)
    used = {segment for request in range(len(chains)) for segment in found.of(request)}
    assert sum(found.sizes[segment] for segment in used) == len({key for chain in chains for key in chain})


def test_no_tree_falls_back_to_single_blocks() -> None:
    swapped = made([[1, 2], [2, 1]], [2 * UNIT, 2 * UNIT])
    assert {swapped.sizes[segment] for segment in swapped.of(0)} == {1}
    assert list(swapped.of(0)) == list(reversed(swapped.of(1)))


def test_nothing_is_kept_of_a_block_that_is_not_full() -> None:
    assert list(made([[1, 2]], [UNIT - 1]).of(0)) == []
    assert list(made([[]], [5]).sizes) == []


def test_a_block_size_that_does_not_divide_is_told() -> None:
    with pytest.raises(InputError, match="no whole number of cache blocks of 12 tokens"):
        made([[1]], [UNIT], 12)
