"""Prefix cache and tiers against an oracle that keeps every block, and what must hold for any trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.naive_cache import NaiveCachingEngine
from tests.serving.test_serving_replay import STEP_TIME, assert_conserved, assert_equal, limits, step_times

from stowplan.serving.limits import Limits
from stowplan.serving.policies import Caching
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import StepTime
from stowplan.serving.tiers import Tier
from stowplan.traces.trace import Blocks

TICK = 2.0**-20


def blocks_of(chains: list[list[int]], tokens: int) -> Blocks:
    offsets = np.concatenate(([0], np.cumsum([len(chain) for chain in chains])))
    return Blocks(offsets, np.array([key for chain in chains for key in chain], dtype=np.int64), tokens)


@st.composite
def families(draw: st.DrawFn, unit: int) -> Requests:
    """Prompts that branch off one another's beginnings, or go on behind another's answer."""
    count = draw(st.integers(1, 14))
    longest = draw(st.sampled_from([8, 30]))
    chains: list[list[int]] = []
    prompts: list[int] = []
    outputs: list[int] = []
    session: list[int] = []
    fresh = 0
    for _ in range(count):
        before = draw(st.integers(-1, len(chains) - 1))
        chain = [] if before < 0 else chains[before]
        if before >= 0 and draw(st.booleans()):
            prompts.append(max(1, prompts[before] + outputs[before] + draw(st.integers(-3, unit + 2))))
            kept, blocks = chain[: prompts[-1] // unit], prompts[-1] // unit
            session.append(session[before])
        else:
            kept = chain[: draw(st.integers(0, len(chain)))]
            blocks = len(kept) + draw(st.integers(0, 4))
            prompts.append(max(1, blocks * unit + draw(st.integers(0, unit + 2))))
            session.append(draw(st.integers(-1, 2)))
        chains.append([*kept, *range(fresh, fresh + blocks - len(kept))])
        fresh += blocks
        outputs.append(draw(st.integers(1, longest)))
    gap = draw(st.sampled_from([0, 300000, 10**7]))
    arrivals = np.cumsum([draw(st.integers(0, gap)) * TICK for _ in range(count)])
    return Requests.of(arrivals, prompts, outputs, prefix=blocks_of(chains, unit), session=session)


def _naive(
    requests: Requests, step_time: StepTime, limit: Limits, *, chunked: bool, host: int = 0
) -> NaiveCachingEngine:
    engine = NaiveCachingEngine(requests, step_time, limit, chunked=chunked, host=host)
    engine.run()
    return engine


@pytest.mark.parametrize("scheduler", ["continuous", "chunked"])
@settings(max_examples=100)
@given(data=st.data(), step_time=step_times(), limit=limits())
def test_equals_the_oracle(scheduler: str, data: st.DataObject, step_time: StepTime, limit: Limits) -> None:
    requests = data.draw(families(limit.block_tokens * data.draw(st.sampled_from([1, 2, 3]))))
    found = replay(requests, step_time, limit, scheduler, Caching())
    oracle = _naive(requests, step_time, limit, chunked=scheduler == "chunked")
    assert_conserved(found)
    assert_equal(found, oracle)
    use = found.engines[0].cache
    assert use is None or use.tiers[0].hit_tokens == oracle.hits[0]


@pytest.mark.parametrize("scheduler", ["continuous", "chunked"])
@settings(max_examples=100)
@given(data=st.data(), limit=limits(), host=st.sampled_from([112, 120]))
def test_equals_the_oracle_with_host_memory(scheduler: str, data: st.DataObject, limit: Limits, host: int) -> None:
    """Loads cost nothing, so that they are always worth while; computing does. Host memory holds any one segment."""
    requests = data.draw(families(limit.block_tokens * data.draw(st.sampled_from([1, 2]))))
    steady = StepTime(((1, 1000 * TICK), (2, 2000 * TICK)), ((0, 0.0), (1, 0.0)), STEP_TIME.decode[:1], ())
    tier = Tier("host", host, {"h2d": 0.0}, 0.0)
    found = replay(requests, steady, limit, scheduler, Caching((tier,)))
    oracle = _naive(requests, steady, limit, chunked=scheduler == "chunked", host=host)
    assert_conserved(found)
    assert_equal(found, oracle)
    use = found.engines[0].cache
    assert use is not None
    assert [tier.hit_tokens for tier in use.tiers] == oracle.hits
    assert use.tiers[1].peak_blocks <= host


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("scheduler", ["continuous", "chunked"])
def test_equals_the_oracle_under_pressure(scheduler: str, seed: int) -> None:
    """Long enough for the lane to be left and entered again, with evictions and loads all along."""
    random = np.random.default_rng(seed)
    chains: list[list[int]] = []
    for fresh in range(150):
        parent = chains[random.integers(len(chains))] if chains and random.random() < 0.7 else []
        kept = parent[: int(random.integers(0, len(parent) + 1))] if random.random() < 0.3 else parent
        chains.append([*kept, *(1000 * fresh + j for j in range(int(random.integers(0, 6))))][:40])
    requests = Requests.of(
        np.cumsum(random.gamma(0.3, 0.1, 150)),
        [32 * len(chain) + int(random.integers(1, 60)) for chain in chains],
        random.integers(1, 120, 150),
        prefix=blocks_of(chains, 32),
    )
    limit = Limits(kv_blocks=160, max_running=16, max_batched_tokens=512, watermark=0.0)
    tier = Tier("host", 150, {"h2d": 0.0}, 0.0)
    found = replay(requests, STEP_TIME, limit, scheduler, Caching((tier,)))
    oracle = _naive(requests, STEP_TIME, limit, chunked=scheduler == "chunked", host=150)
    assert_conserved(found)
    assert found.preemptions.sum() > 3
    use = found.engines[0].cache
    assert use is not None
    assert use.tiers[0].hit_tokens > 0
    assert use.tiers[1].hit_tokens > 0
    assert [tier.hit_tokens for tier in use.tiers] == oracle.hits
    assert_equal(found, oracle)


def test_a_step_stores_its_tokens_before_prompts_look_for_theirs() -> None:
    """Blocks that may go are taken by the sequences that decode in the step, and are not found in it any more."""
    chains = [[1, 2, 3], [6, 7, 8, 9], [6]]
    requests = Requests.of([0.0, 0.0, 0.0], [6, 9, 4], [9, 6, 13], prefix=blocks_of(chains, 2))
    limit = Limits(9, 2, max_running=5, max_batched_tokens=22, watermark=0.1, preemption="swap", swap_blocks=5)
    found = replay(requests, STEP_TIME, limit, "chunked", Caching())
    oracle = _naive(requests, STEP_TIME, limit, chunked=True)
    assert_equal(found, oracle)
    use = found.engines[0].cache
    assert use is not None
    assert use.tiers[0].hit_tokens == oracle.hits[0] == 0
