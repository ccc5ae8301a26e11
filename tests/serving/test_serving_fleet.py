"""Several engines: against engines that are stepped side by side, and what must hold for any trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.naive_ahead import NaiveAheadEngine, stepped_pair
from tests.serving.naive_engine import NaiveEngine
from tests.serving.test_serving_prefix import blocks_of, families
from tests.serving.test_serving_replay import (
    STEP_TIME,
    TICK,
    assert_conserved,
    assert_equal,
    limits,
    realistic,
    step_times,
    traces,
)

from stowplan.errors import InputError
from stowplan.serving.disaggregated import Handover, Stage, replay_disaggregated
from stowplan.serving.fleet import Migration, replay_fleet
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import State
from stowplan.serving.policies import Caching
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.routers import RouterName
from stowplan.serving.step_time import DecodePiece, StepTime


def _side_by_side(
    requests: Requests, step_time: StepTime, limit: Limits, kind: type[NaiveEngine], *, chunked: bool, engines: int
) -> NaiveEngine:
    """Engines that are stepped one by one, the least loaded of which takes a request; returned as if they were one."""
    columns = (requests.arrival_s, requests.prompt_tokens, requests.output_tokens)
    everyone = [(*row, 0) for row in zip(*(column.tolist() for column in columns), strict=True)]
    fleet = [kind([], step_time, limit, chunked=chunked) for _ in range(engines)]
    whole = kind(everyone, step_time, limit, chunked=chunked)
    for s in whole.coming:
        for engine in fleet:
            while engine.now < s.arrival and engine.busy:
                engine.step()
        load = [len(e.coming) + len(e.waiting) + len(e.running) + len(e.swapped) for e in fleet]
        fleet[load.index(min(load))].coming.append(s)
    for engine in fleet:
        engine.run()
        whole.timed_out += engine.timed_out
        whole.refused += engine.refused
        whole.passes += engine.passes
        whole.swaps += engine.swaps
    whole.peak = fleet[0].peak
    return whole


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("scheduler", ["continuous", "chunked"])
@settings(max_examples=40)
@given(
    requests=traces(),
    step_time=step_times(),
    limit=limits(),
    engines=st.integers(2, 4),
    patience=st.none() | st.floats(0.01, 2.0),
)
def test_the_least_loaded_engine_takes_a_request(
    scheduler: str,
    ahead: bool,
    requests: Requests,
    step_time: StepTime,
    limit: Limits,
    engines: int,
    patience: float | None,
) -> None:
    limit = replace(limit, patience_s=patience)
    found = replay_fleet(requests, step_time, limit, scheduler, engines=engines, ahead=ahead)
    assert_conserved(found)
    kind = NaiveAheadEngine if ahead else NaiveEngine
    expected = _side_by_side(requests, step_time, limit, kind, chunked=scheduler == "chunked", engines=engines)
    assert_equal(found, expected)


@pytest.mark.parametrize("ahead", [False, True])
@settings(max_examples=20)
@given(requests=families(8), router=st.sampled_from(["prefix", "least-loaded", "round-robin"]))
def test_a_fleet_of_one_is_the_engine_to_the_last_bit(ahead: bool, requests: Requests, router: RouterName) -> None:
    limit, caching = Limits(kv_blocks=40, block_tokens=4, max_running=6, max_batched_tokens=32), Caching()
    options: dict[str, Any] = {"caching": caching, "ahead": ahead}
    one = replay_fleet(requests, STEP_TIME, limit, "chunked", engines=1, router=router, **options)
    alone = replay(requests, STEP_TIME, limit, "chunked", **options)
    for column in ("state", "started_s", "first_token_s", "finished_s", "reused_tokens", "engine"):
        np.testing.assert_array_equal(getattr(one, column), getattr(alone, column))


@pytest.mark.parametrize("ahead", [False, True])
@settings(max_examples=60)
@given(requests=traces(), step_time=step_times(), limit=limits(), engines=st.integers(2, 4))
def test_in_turn_every_engine_serves_its_own_share(
    ahead: bool, requests: Requests, step_time: StepTime, limit: Limits, engines: int
) -> None:
    found = replay_fleet(requests, step_time, limit, "chunked", engines=engines, router="round-robin", ahead=ahead)
    assert_conserved(found)
    runnable = np.flatnonzero(found.state != State.TOO_LONG)
    for number in range(engines):
        share = runnable[number::engines]
        if len(share):
            alone = replay(requests.take(share), step_time, limit, "chunked", ahead=ahead)
            assert found.finished_s[share] == pytest.approx(alone.finished_s, abs=1e-6)


@settings(max_examples=40)
@given(data=st.data(), limit=limits(), engines=st.integers(2, 4), router=st.sampled_from(["prefix", "least-loaded"]))
def test_nothing_is_lost_with_caches_and_migration(
    data: st.DataObject, limit: Limits, engines: int, router: str
) -> None:
    requests = data.draw(families(limit.block_tokens * 2))
    migration = Migration(data.draw(st.sampled_from([1e-3, 0.05, 1.0])), 1e-4, 0.01)
    found = replay_fleet(
        requests,
        STEP_TIME,
        replace(limit, patience_s=data.draw(st.none() | st.floats(0.01, 2.0))),
        "chunked",
        engines=engines,
        router="prefix" if router == "prefix" else "least-loaded",
        migration=migration,
        caching=Caching(),
        ahead=data.draw(st.booleans()),
    )
    assert_conserved(found)


def test_the_prefix_router_finds_the_engine_that_knows_the_prompt() -> None:
    """Four conversations in turn: the router by prefix keeps each on one engine, the blind one scatters them."""
    chains = [[100 * (i % 4) + j for j in range(1 + i // 4)] for i in range(40)]
    requests = Requests.of(
        np.arange(40) * 0.5, [64 * len(chain) + 10 for chain in chains], [8] * 40, prefix=blocks_of(chains, 64)
    )
    reused = {}
    for router in ("prefix", "round-robin"):
        found = replay_fleet(
            requests,
            STEP_TIME,
            Limits(kv_blocks=4000),
            "chunked",
            engines=3,
            router="prefix" if router == "prefix" else "round-robin",
            caching=Caching(),
        )
        reused[router] = int(found.reused_tokens.sum())
    assert reused["prefix"] == sum(64 * (len(chain) - 1) for chain in chains)
    assert reused["round-robin"] < 0.8 * reused["prefix"]


def test_migration_relieves_a_crowded_engine() -> None:
    """In turn, one engine gets all the long answers and runs out of blocks while the other idles."""
    count = 24
    requests = Requests.of(np.zeros(count), [400] * count, [600 if i % 2 == 0 else 4 for i in range(count)])
    limit = Limits(kv_blocks=400, max_running=16)
    still, moved = (
        replay_fleet(requests, STEP_TIME, limit, "chunked", engines=2, router="round-robin", migration=migration)
        for migration in (None, Migration(0.5, 1e-5, 0.025))
    )
    assert_conserved(moved)
    assert moved.finished_s.max() < 0.8 * still.finished_s.max()
    assert set(moved.engine.tolist()) == {0, 1}


def test_the_only_sequence_goes_where_the_rest_of_the_room_is_kept_for_one_that_moves_here() -> None:
    requests = Requests.of([0.0, 0.1, 0.1], [9, 10, 13], [15, 12, 3])
    limit = Limits(30, 1, max_running=5, max_batched_tokens=84, watermark=0.0)
    found = replay_fleet(requests, STEP_TIME, limit, "chunked", engines=2, migration=Migration(0.02, 1e-4, 0.01))
    assert_conserved(found)
    assert found.preemptions.any()
    assert (found.state == State.FINISHED).all()


@settings(max_examples=60)
@given(
    requests=traces(),
    step_time=step_times(),
    limit=limits(),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ahead=st.tuples(st.booleans(), st.booleans()),
    copy=st.sampled_from([0.0, 1e-4, 0.3]),
)
def test_disaggregated_engines_lose_nothing(
    requests: Requests,
    step_time: StepTime,
    limit: Limits,
    sizes: tuple[int, int],
    ahead: tuple[bool, bool],
    copy: float,
) -> None:
    prompts, decodes = (Stage(count, step_time, limit, ahead=early) for count, early in zip(sizes, ahead, strict=True))
    found = replay_disaggregated(requests, prompts, decodes, Handover(copy))
    assert_conserved(found)
    several = (requests.output_tokens > 1) & (found.state == State.FINISHED)
    wait = found.finished_s - found.first_token_s
    assert (wait[several] >= copy * requests.prompt_tokens[several] - 1e-9).all()
    assert (found.engine[several] >= sizes[0]).all()


@pytest.mark.parametrize("ahead", [False, True])
def test_roomy_prompt_engines_answer_as_if_they_were_alone(ahead: bool) -> None:
    """With room for everyone, first tokens come as from an engine that only processes prompts."""
    requests = realistic(200, 3.0)
    limit = Limits(kv_blocks=10**5)
    stage = Stage(1, STEP_TIME, limit, ahead=ahead)
    found = replay_disaggregated(requests, stage, stage, Handover(1e-6))
    prompts = replay(replace(requests, output_tokens=np.ones(200, dtype=np.int64)), STEP_TIME, limit, ahead=ahead)
    assert found.first_token_s == pytest.approx(prompts.finished_s, abs=1e-6)


@settings(max_examples=60)
@given(
    requests=traces(),
    step_time=step_times(),
    running=st.integers(1, 6),
    budget=st.integers(0, 100),
    copy=st.sampled_from([0.0, 64 * TICK, 4096 * TICK]),
    latency=st.sampled_from([0.0, 1000 * TICK]),
)
def test_prompts_apart_equal_engines_that_are_stepped_one_step_ahead(
    requests: Requests, step_time: StepTime, running: int, budget: int, copy: float, latency: float
) -> None:
    limit = Limits(kv_blocks=10**4, max_running=running, max_batched_tokens=running + budget)
    stage = Stage(1, step_time, limit, ahead=True)
    found = replay_disaggregated(requests, stage, stage, Handover(copy, latency))
    first, last = stepped_pair(requests, step_time, limit, copy, latency)
    assert found.first_token_s == pytest.approx(first, abs=1e-6)
    assert found.finished_s == pytest.approx(last, abs=1e-6)


def test_copies_that_take_no_time_join_an_idle_engine_together() -> None:
    """The decode engine runs dry just when one cache has waited a step for it and the next one comes."""
    arrival = [0.0] * 11 + [9041 * TICK, 9048 * TICK]
    requests = Requests.of(arrival, [1] * 13, [1] * 9 + [3, 2, 2, 1])
    still = (DecodePiece(0.0, 0.0, 0.0),)
    step_time = StepTime(((1, 1000 * TICK), (2, 1000 * TICK)), ((0, 0.0), (1, 277 * TICK)), still, ())
    limit = Limits(kv_blocks=10**4, max_running=2, max_batched_tokens=2)
    stage = Stage(1, step_time, limit, ahead=True)
    found = replay_disaggregated(requests, stage, stage, Handover(0.0))
    first, last = stepped_pair(requests, step_time, limit, 0.0, 0.0)
    assert found.first_token_s == pytest.approx(first, abs=1e-6)
    assert found.finished_s == pytest.approx(last, abs=1e-6)
    assert found.finished_s[10] == found.finished_s[11]


def test_one_sequence_waits_for_its_copy_and_then_decodes() -> None:
    requests = Requests.of([0.0], [100], [5])
    limit = Limits(kv_blocks=100)
    found = replay_disaggregated(requests, Stage(1, STEP_TIME, limit), Stage(1, STEP_TIME, limit), Handover(1e-3, 0.5))
    prompt = STEP_TIME.seconds(0, 0, [(100, 0)])
    steps = sum(STEP_TIME.seconds(1, 100 + i) for i in range(4))
    assert found.first_token_s[0] == pytest.approx(prompt)
    assert found.finished_s[0] == pytest.approx(prompt + 0.5 + 0.1 + steps)


def test_what_a_fleet_cannot_do_is_refused() -> None:
    requests, limit = realistic(3, 1.0), Limits(kv_blocks=100)
    with pytest.raises(InputError, match="engines: 0"):
        replay_fleet(requests, STEP_TIME, limit, "chunked", engines=0)
    with pytest.raises(InputError, match="static"):
        replay_fleet(requests, STEP_TIME, limit, "static", engines=2)
    with pytest.raises(InputError, match="prompt engines: 0"):
        replay_disaggregated(requests, Stage(0, STEP_TIME, limit), Stage(1, STEP_TIME, limit), Handover(0.0))
    with pytest.raises(InputError, match="time-outs"):
        patient = replace(limit, patience_s=1.0)
        replay_disaggregated(requests, Stage(1, STEP_TIME, patient), Stage(1, STEP_TIME, limit), Handover(0.0))
