"""How much a service carries: what is found keeps the objective, and a little more does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.serving.answers import Objective, summarise
from stowplan.serving.capacity import Attempt, fewest_engines, highest_rate
from stowplan.serving.disaggregated import Handover
from stowplan.serving.from_plan import Engine
from stowplan.serving.limits import Limits
from stowplan.serving.requests import Requests
from stowplan.serving.service import Service
from stowplan.serving.step_time import DecodePiece, StepTime
from stowplan.traces.trace import Trace

STEP_TIME = StepTime(((1, 0.02), (2, 0.0201), (64, 0.03)), ((0, 0.0), (1, 0.0)), (DecodePiece(0.0, 1e-4, 1e-6),), ())
ENGINE = Engine(STEP_TIME, Limits(kv_blocks=4000, max_running=16, max_batched_tokens=64), 64_000)
SERVICE = Service(ENGINE, "chunked")


def steady(count: int = 200, gap: float = 0.5) -> Trace:
    return Trace("steady", np.arange(count, dtype=np.float64) * gap, np.full(count, 100), np.full(count, 20))


def attainment(service: Service, trace: Trace, objective: Objective) -> float:
    found = summarise(service.replay(Requests.from_trace(trace)), objective).attainment
    assert found is not None
    return found


@pytest.mark.parametrize("objective", [Objective(ttft_s=0.5), Objective(tpot_s=0.0225), Objective(e2e_s=1.5)])
@pytest.mark.parametrize("gap", [0.01, 0.5, 100.0])
def test_the_highest_rate_keeps_the_objective_and_more_does_not(objective: Objective, gap: float) -> None:
    trace = steady(gap=gap)
    found = highest_rate(SERVICE, trace, objective)
    assert found.engines == 1
    assert found.answers.attainment is not None and found.answers.attainment >= 0.99
    assert attainment(SERVICE, trace.scaled_rate(found.rate), objective) == found.answers.attainment
    assert attainment(SERVICE, trace.scaled_rate(1.02 * found.rate), objective) < 0.99
    assert any(found.rate < rate <= 1.01 * found.rate and met < 0.99 for rate, _, met in found.tried)


def test_every_replay_is_told_and_kept() -> None:
    told: list[Attempt] = []
    found = highest_rate(SERVICE, steady(), Objective(ttft_s=0.5), tolerance=0.1, progress=told.append)
    assert [each.rate for each in told] == [rate for rate, *_ in found.tried]
    assert [each.last for each in told] == [None, *(met for *_, met in found.tried[:-1])]
    assert len(told) < len(highest_rate(SERVICE, steady(), Objective(ttft_s=0.5), tolerance=1e-4).tried)


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.01, 1e-4])
def test_the_replays_that_are_left_are_known_once_the_rate_lies_between_two(tolerance: float) -> None:
    told: list[Attempt] = []
    highest_rate(SERVICE, steady(), Objective(ttft_s=0.5), tolerance=tolerance, progress=told.append)
    known = [each.left for each in told if each.left is not None]
    assert known == list(reversed(range(len(known))))
    assert tolerance > 0.1 or len(known) > 2


def test_the_replays_that_are_left_are_known_once_enough_engines_are() -> None:
    told: list[Attempt] = []
    trace = Trace("t", np.linspace(0.0, 0.16, 80), np.full(80, 150), np.full(80, 20))
    found = fewest_engines(SERVICE, trace, Objective(ttft_s=0.5), progress=told.append)
    assert found.engines > 3
    assert [each.engines for each in told] == [count for _, count, _ in found.tried]
    known = [each.left for each in told if each.left is not None]
    assert known and known[0] >= len(known) - 1 and known[-1] == 0


def test_whoever_watches_sees_each_replay_begin() -> None:
    seen: list[Callable[[], float]] = []
    found = highest_rate(SERVICE, steady(), Objective(ttft_s=0.5), tolerance=0.5, watch=seen.append)
    assert len(seen) == len(found.tried)
    assert all(share() == 1.0 for share in seen)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 1000), st.sampled_from([0.005, 0.02, 0.1]), st.sampled_from([0.9, 0.99, 1.0]))
def test_the_fewest_engines_are_those_of_trying_all(seed: int, gap: float, share: float) -> None:
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(gap, 80))
    trace = Trace("t", arrival - arrival[0], random.integers(1, 200, 80), random.integers(1, 40, 80))
    objective = Objective(ttft_s=0.5, tpot_s=0.05)
    kept = [attainment(replace(SERVICE, engines=count), trace, objective) >= share for count in range(1, 17)]
    if not any(kept):
        return
    found = fewest_engines(SERVICE, trace, objective, share=share)
    assert kept[found.engines - 1]
    assert found.engines == 1 or not kept[found.engines - 2]
    if kept == sorted(kept):  # no count keeps it where a larger one does not
        assert found.engines == kept.index(True) + 1
    assert found.rate == trace.rate


def test_an_objective_beyond_reach_is_one_sentence_after_few_replays() -> None:
    told: list[Attempt] = []
    with pytest.raises(InputError, match="however slowly they come"):
        highest_rate(SERVICE, steady(), Objective(ttft_s=1e-3), progress=told.append)
    assert len(told) < 25
    with pytest.raises(InputError, match="8 engines miss the objective"):
        fewest_engines(SERVICE, steady(), Objective(ttft_s=1e-3), most=8)


def test_an_objective_that_is_always_kept_has_no_highest_rate() -> None:
    with pytest.raises(InputError, match="even where all 200 requests arrive at once"):
        highest_rate(SERVICE, steady(), Objective(e2e_s=1e6))


def test_requests_that_all_arrive_at_once_have_no_rate_but_need_engines() -> None:
    trace = Trace("burst", np.zeros(60), np.full(60, 50), np.full(60, 10))
    with pytest.raises(InputError, match="no rate to search"):
        highest_rate(SERVICE, trace, Objective(ttft_s=1.0))
    found = fewest_engines(SERVICE, trace, Objective(ttft_s=0.4))
    assert found.engines > 1 and math.isinf(found.rate)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, math.nan])
def test_shares_out_of_range_are_told(share: float) -> None:
    for search in (highest_rate, fewest_engines):
        with pytest.raises(InputError, match="share"):
            search(SERVICE, steady(), Objective(ttft_s=1.0), share=share)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, math.nan])
def test_tolerances_out_of_range_are_told(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        highest_rate(SERVICE, steady(), Objective(ttft_s=1.0), tolerance=tolerance)


def test_engines_apart_for_prompts_cannot_be_counted() -> None:
    apart = Service(ENGINE, "chunked", prompt_engines=1, handover=Handover(1e-6))
    with pytest.raises(InputError, match="prompts have engines of their own"):
        fewest_engines(apart, steady(), Objective(ttft_s=1.0))
    assert highest_rate(apart, steady(), Objective(ttft_s=0.5)).engines == 2
