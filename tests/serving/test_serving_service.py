"""A service replays as the function that its parts call for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from stowplan.errors import InputError
from stowplan.serving.disaggregated import Handover, Stage, replay_disaggregated
from stowplan.serving.fleet import Migration, replay_fleet
from stowplan.serving.from_plan import Engine
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay
from stowplan.serving.policies import Caching
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.service import Service
from stowplan.serving.step_time import DecodePiece, StepTime
from stowplan.serving.tiers import Tier
from stowplan.traces.conversations import with_conversations
from stowplan.traces.trace import Trace

STEP_TIME = StepTime(((1, 0.01), (2, 0.0101), (512, 0.06)), ((0, 0.0), (1, 1e-4)), (DecodePiece(0.0, 1e-4, 1e-6),), ())
LIMITS = Limits(kv_blocks=300, max_running=16, max_batched_tokens=256)
ENGINE = Engine(STEP_TIME, LIMITS, 4800)
CACHING = Caching((Tier("host", 200, {"gpu0.h2d": 1e-4}, 1e-4),), "cost")


@pytest.fixture(scope="module")
def requests() -> Requests:
    random = np.random.default_rng(3)
    arrival = np.cumsum(random.exponential(0.03, 150))
    trace = Trace("t", arrival - arrival[0], random.integers(1, 900, 150), random.integers(1, 60, 150))
    return Requests.from_trace(with_conversations(trace, seed=1))


def assert_alike(one: Replay, other: Replay, later_s: float = 0.0) -> None:
    for field in fields(Replay):
        first, second = (getattr(done, field.name) for done in (one, other))
        if field.name in {"first_token_s", "finished_s"}:
            np.testing.assert_array_equal(first, second + later_s)
        elif isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
    assert (one.scheduler, one.passes, one.counts) == (other.scheduler, other.passes, other.counts)
    uses: list[list[Any]] = [[use.cache for use in done.engines] for done in (one, other)]
    assert uses[0] == uses[1]


def test_one_engine(requests: Requests) -> None:
    for scheduler in ("continuous", "shortest-chunked"):
        for caching in (None, CACHING):
            done = Service(ENGINE, scheduler, caching).replay(requests)
            assert_alike(done, replay(requests, STEP_TIME, LIMITS, scheduler, caching))


def test_several_engines(requests: Requests) -> None:
    moves = Migration(0.1, 1e-4, 0.01)
    service = Service(ENGINE, "chunked", CACHING, engines=3, router="prefix", migration=moves)
    options: dict[str, Any] = {"engines": 3, "router": "prefix", "migration": moves, "caching": CACHING}
    assert service.machines == 3
    assert_alike(service.replay(requests), replay_fleet(requests, STEP_TIME, LIMITS, "chunked", **options))


def test_prompts_apart(requests: Requests) -> None:
    service = Service(ENGINE, "chunked", engines=2, prompt_engines=1, handover=Handover(1e-6, 1e-3))
    stages = Stage(1, STEP_TIME, LIMITS), Stage(2, STEP_TIME, LIMITS)
    assert service.machines == 3
    assert_alike(service.replay(requests), replay_disaggregated(requests, *stages, Handover(1e-6, 1e-3)))


def test_prompts_apart_take_no_cache_and_no_migration(requests: Requests) -> None:
    apart = Service(ENGINE, "chunked", prompt_engines=1)
    for wrong in (replace(apart, caching=Caching()), replace(apart, migration=Migration(), engines=2)):
        with pytest.raises(InputError, match="prompt engines"):
            wrong.replay(requests)


def test_one_step_ahead_and_time_outside_the_scheduler(requests: Requests) -> None:
    service = Service(ENGINE, "chunked", CACHING, ahead=True, request_s=0.25)
    alone = replay(requests, STEP_TIME, LIMITS, "chunked", CACHING, ahead=True)
    assert_alike(service.replay(requests), alone, later_s=0.25)
    fleet = replay_fleet(requests, STEP_TIME, LIMITS, "chunked", engines=2, caching=CACHING, ahead=True)
    assert_alike(replace(service, engines=2).replay(requests), fleet, later_s=0.25)
    stage = Stage(1, STEP_TIME, LIMITS, ahead=True)
    apart = replay_disaggregated(requests, stage, stage, Handover(0.0))
    assert_alike(replace(service, caching=None, prompt_engines=1).replay(requests), apart, later_s=0.25)


def test_time_outside_the_scheduler_leaves_out_what_never_came(requests: Requests) -> None:
    impatient = replace(ENGINE, limits=replace(LIMITS, patience_s=0.5))
    done = Service(impatient, "chunked", request_s=0.25).replay(requests)
    assert done.counts["timed_out"] > 0 and done.counts["finished"] > 0
    assert np.isnan(done.finished_s).sum() == done.counts["timed_out"] + done.counts["too_long"]
