"""Scheduling one step ahead, against an engine that is stepped one step at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.naive_ahead import NaiveAheadCachingEngine, NaiveAheadEngine
from tests.serving.test_serving_prefix import families
from tests.serving.test_serving_replay import assert_conserved, assert_equal, limits, step_times, traces

from stowplan.errors import InputError
from stowplan.serving.answers import ttft_s
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import State
from stowplan.serving.policies import Caching, keys_of, policy_of
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import ChunkTerm, DecodePiece, StepTime

STEP_TIME = StepTime(
    body=((1, 0.010), (64, 0.012), (2048, 0.100)),
    logits=((0, 0.0), (1, 0.0005), (64, 0.001)),
    decode=(DecodePiece(0.0, 1e-5, 2e-7),),
    chunk=(ChunkTerm(None, None, ((1e-8, 1e-7, 0.0, 0.0),)),),
)
ROOMY = Limits(kv_blocks=10_000, max_running=8, max_batched_tokens=256, watermark=0.0)


@pytest.mark.parametrize("scheduler", ["continuous", "chunked", "shortest", "priority-chunked"])
@settings(max_examples=60)
@given(
    requests=traces(),
    step_time=step_times(),
    limit=limits(),
    patience=st.none() | st.floats(0.01, 2.0),
    room=st.none() | st.integers(1, 4),
)
def test_equals_an_engine_that_plans_each_step_during_the_one_before(
    scheduler: str, requests: Requests, step_time: StepTime, limit: Limits, patience: float | None, room: int | None
) -> None:
    limit = replace(limit, patience_s=patience, max_waiting=room)
    found = replay(requests, step_time, limit, scheduler, ahead=True)
    columns = [requests.arrival_s.tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist()]
    rows = list(zip(*columns, keys_of(requests, policy_of(scheduler, limit, None).key), strict=True))
    oracle = NaiveAheadEngine(rows, step_time, limit, chunked="chunked" in scheduler)
    oracle.run()
    assert_conserved(found)
    assert_equal(found, oracle)


@settings(max_examples=60)
@given(data=st.data(), step_time=step_times(), limit=limits())
def test_a_prefix_cache_is_looked_up_when_a_step_begins(
    data: st.DataObject, step_time: StepTime, limit: Limits
) -> None:
    requests = data.draw(families(limit.block_tokens))
    found = replay(requests, step_time, limit, "chunked", Caching(), ahead=True)
    oracle = NaiveAheadCachingEngine(requests, step_time, limit, chunked=True)
    oracle.run()
    assert_conserved(found)
    assert_equal(found, oracle)
    use = found.engines[0].cache
    assert use is None or use.tiers[0].hit_tokens == oracle.hits[0]


def test_an_arrival_in_a_busy_engine_waits_for_two_steps_and_an_idle_one_takes_it_at_once() -> None:
    requests = Requests.of([0.0, 1.0], [1, 1], [1000, 2])
    late = ttft_s(replay(requests, STEP_TIME, ROOMY, "chunked", ahead=True))
    soon = ttft_s(replay(requests, STEP_TIME, ROOMY, "chunked"))
    assert late[0] == soon[0]
    one_step = STEP_TIME.seconds(1, 90)
    assert late[1] - soon[1] == pytest.approx(one_step, rel=0.05)


def test_clients_that_give_up_are_counted() -> None:
    limits = Limits(kv_blocks=100, max_running=1, max_batched_tokens=64, watermark=0.0, patience_s=1.0)
    done = replay(Requests.of([0.0, 0.1, 0.2], [10, 10, 10], [60, 60, 60]), STEP_TIME, limits, "chunked", ahead=True)
    assert done.counts["finished"] == 1
    assert done.counts["timed_out"] == 2
    assert done.state[0] == State.FINISHED
    assert done.leaked_blocks == 0


def test_a_client_may_stop_waiting_in_the_step_before_which_its_preempted_request_comes_back() -> None:
    """The one gives up at 0.55 s and makes room for the other, which was due to go in the same step."""
    steady = StepTime(((1, 0.125), (64, 0.125)), ((0, 0.0), (1, 0.0)), (DecodePiece(0.0, 0.0, 0.0),), ())
    limits = Limits(8, 1, max_running=4, max_batched_tokens=64, watermark=0.0, patience_s=0.55)
    done = replay(Requests.of([0.0, 0.0], [1, 1], [6, 8]), steady, limits, "continuous", ahead=True)
    assert done.preemptions.tolist() == [0, 1]
    assert done.state.tolist() == [State.TIMED_OUT] * 2


@pytest.mark.parametrize("scheduler", ["static", "fair"])
def test_schedulers_that_fill_no_step_ahead_are_refused(scheduler: str) -> None:
    with pytest.raises(InputError, match="ahead"):
        replay(Requests.of([0.0], [1], [1]), STEP_TIME, ROOMY, scheduler, ahead=True)
