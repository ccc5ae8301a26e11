"""What must hold of the prefix cache alone, whatever comes and goes, under every eviction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.test_serving_prefix import blocks_of, families
from tests.serving.test_serving_replay import STEP_TIME

from stowplan.serving.chains import Chains
from stowplan.serving.eviction import EvictionName
from stowplan.serving.limits import Limits
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.requests import Requests
from stowplan.serving.tables import StepTables

BLOCK = 4
TABLES = StepTables(STEP_TIME, 400, Limits(kv_blocks=100, block_tokens=BLOCK, max_running=8, max_batched_tokens=64))


def _chains(requests: Requests) -> Chains:
    assert requests.prefix is not None
    return Chains.from_blocks(requests.prefix, requests.prompt_tokens, BLOCK, requests.output_tokens, requests.session)


def _there(cache: PrefixCache, chains: Chains) -> list[int]:
    """Blocks of every segment on the GPU, told by look-ups of prompts that end with it, and of those behind."""
    return [size - missing for size, missing in zip(chains.sizes, cache._missing, strict=True)]


@pytest.mark.parametrize("eviction", ["lru", "cost"])
@settings(deadline=None, max_examples=150)
@given(data=st.data(), requests=families(2 * BLOCK))
def test_no_end_stays_without_its_beginning(eviction: EvictionName, data: st.DataObject, requests: Requests) -> None:
    chains = _chains(requests)
    cache = PrefixCache(chains, TABLES, (), eviction)
    running: list[int] = []
    for moment in range(data.draw(st.integers(1, 40))):
        request = data.draw(st.integers(0, len(requests) - 1))
        action = data.draw(st.sampled_from(["come", "come", "go", "go", "shrink"]))
        if action == "come" and request not in running:
            length = int(requests.prompt_tokens[request])
            found = cache.look_up(request, length)
            if data.draw(st.booleans()):
                assert cache.admit(request, length, 1000, float(moment), 1000) == (found.tokens, found.pinned)
            else:
                cache.take(request, length, found, float(moment), 1000)
            running.append(request)
        elif action == "go" and running:
            others = {segment for other in running[1:] for segment in chains.of(other)}
            kept = sum(chains.sizes[segment] for segment in chains.of(running[0]) if segment in others)
            assert cache.release(running.pop(0)) == kept
        else:
            cache.shrink(data.draw(st.integers(0, 30)), float(moment))
        there = _there(cache, chains)
        held = {segment for other in running for segment in chains.of(other)}
        assert cache.loose_blocks == sum(blocks for segment, blocks in enumerate(there) if segment not in held)
        for segment in range(1, len(there)):
            assert segment not in held or there[segment] == chains.sizes[segment]
            assert not there[segment] or there[chains.parent[segment]] == chains.sizes[chains.parent[segment]]


def test_blocks_that_were_not_computed_are_not_there() -> None:
    chains = Chains.from_blocks(blocks_of([[1, 2, 3], [1, 2]], BLOCK), np.array([13, 9]), BLOCK)
    cache = PrefixCache(chains, TABLES)
    assert cache.admit(0, 13, 100, 0.0, 100) == (0, 0)
    assert cache.release(0, computed=1) == 0
    assert cache.loose_blocks == 1
    assert cache.look_up(1, 9).tokens == BLOCK
    assert cache.admit(1, 9, 2, 0.0, 100) is None, "three blocks do not fit into two, whatever is shared"
    assert cache.admit(1, 9, 3, 0.0, 100) == (BLOCK, 0)
    assert cache.admit(0, 13, 100, 0.0, 100) == (2 * BLOCK, 2)
    assert cache.release(0, computed=0) == 2, "what others hold stays"
    assert cache.loose_blocks == 0


def test_a_sequence_that_was_detached_shares_nothing_in_this_cache_alone() -> None:
    chains = Chains.from_blocks(blocks_of([[1, 2], [1, 2]], BLOCK), np.array([9, 9]), BLOCK)
    cache, other = PrefixCache(chains, TABLES), PrefixCache(chains, TABLES)
    for each in (cache, other):
        each.admit(0, 9, 100, 0.0, 100)
        each.release(0)
    cache.detach(1)
    assert cache.look_up(1, 9).tokens == 0
    assert other.look_up(1, 9).tokens == 2 * BLOCK
    assert cache.look_up(0, 9).tokens == 2 * BLOCK
    assert cache.admit(1, 9, 100, 0.0, 100) == (0, 0)
    assert cache.release(1) == 0
    assert cache.loose_blocks == 2
