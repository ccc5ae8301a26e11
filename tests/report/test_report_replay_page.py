"""Pages of replays: sound HTML that fetches nothing, the numbers of the answer, and charts of what happened."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.report.test_report_whatif import read

from stowplan.figures import Figures
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.report.replay_page import busy_by_resource, replay_page
from stowplan.serving.answers import Answers, Objective, e2e_s, summarise, tpot_s, ttft_s
from stowplan.serving.from_plan import Engine
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay
from stowplan.serving.policies import Caching
from stowplan.serving.requests import Requests
from stowplan.serving.service import Service
from stowplan.serving.step_time import DecodePiece, StepTime
from stowplan.serving.tiers import Tier
from stowplan.systems.base import Setup
from stowplan.traces.conversations import with_conversations
from stowplan.traces.reading import load_trace
from stowplan.traces.trace import Trace
from stowplan.units import format_seconds

STEP_TIME = StepTime(
    body=((1, 0.01), (2, 0.0101), (512, 0.07), (2048, 0.26)),
    logits=((0, 0.0), (1, 2e-4), (128, 1e-3)),
    decode=(DecodePiece(0.0, 1e-5, 1.5e-7),),
    chunk=(),
    busy=(("gpu0.hbm", ((1, 0.01), (128, 0.02), (2048, 0.02))), ("gpu0.compute", ((1, 0.0), (128, 0.0), (2048, 0.24)))),
)
TIERS = (Tier("host", 500, {"gpu0.h2d": 1e-4}, 1e-4), Tier("disk", 4000, {"disk.read": 3e-4}, 4e-4, 1e-4))
SERVICE = Service(
    Engine(STEP_TIME, Limits(kv_blocks=1500, max_running=64, max_batched_tokens=2048), 24_000, 131072.0),
    "chunked",
    Caching(TIERS),
)
SETUP = Setup(load_machine("rtx-4090-desktop-128"), load_model("llama-3.1-8b", "q4_k_m"), Figures({}))
OBJECTIVE = Objective(ttft_s=1.0)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return with_conversations(load_trace("burstgpt-1-first-400"), seed=2).scaled_rate(6.0)


@pytest.fixture(scope="module")
def done(trace: Trace) -> Replay:
    return SERVICE.replay(Requests.from_trace(trace))


@pytest.fixture(scope="module")
def answers(done: Replay) -> Answers:
    return summarise(done, OBJECTIVE)


@pytest.fixture(scope="module")
def page(trace: Trace, done: Replay, answers: Answers) -> str:
    return replay_page(trace, SETUP, SERVICE.engine, done, answers, OBJECTIVE)


def text_of(page: str) -> str:
    return " ".join(read(page).text)


def charts_of(page: str) -> dict[str, list[dict[str, Any]]]:
    found = re.findall(r'<script type="application/json" data-chart="([a-z]+)">(.*?)</script>', page)
    return {name: json.loads(data)[0] for name, data in found}


def test_the_page_is_sound_and_the_same_for_the_same_replay(
    page: str, trace: Trace, done: Replay, answers: Answers
) -> None:
    read(page)
    assert page == replay_page(trace, SETUP, SERVICE.engine, done, answers, OBJECTIVE)
    assert not re.search(r"@import|url\(", page[: page.index("data-chart")])


def test_the_page_has_the_numbers_of_the_answer(page: str, trace: Trace, done: Replay, answers: Answers) -> None:
    text = text_of(page)
    for found in (answers.queue, answers.ttft, answers.tpot, answers.e2e):
        assert found is not None
        for value in (found.mean, *found.percentiles.values(), found.largest):
            assert format_seconds(value) in text
    assert answers.attainment is not None and answers.hit_rate is not None
    for told in (
        f"{trace.name}: {len(trace):,} requests",
        trace.origin,
        f"{answers.requests_per_s:.3g} requests/s",
        f"{answers.attainment:.1%} of the requests meet the objective",
        f"{answers.counts['finished']:,} finished",
        f"Busy {answers.busy:.0%} of the time with {done.passes:,} steps",
        "room for 24,000 tokens",
        f"{answers.preempted:,} requests were preempted",
        f"{answers.hit_rate:.1%} of the prompts' tokens did not have to be computed",
    ):
        assert told in text
    cache = done.engines[0].cache
    assert cache is not None
    for use in cache.tiers:
        assert f"{use.hit_tokens:,}" in text
    assert f"{cache.tiers[1].written_blocks:,}" in text and f"{cache.tiers[2].dropped_blocks:,}" in text


def test_charts_show_what_happened(page: str, trace: Trace, done: Replay) -> None:
    charts = charts_of(page)
    assert set(charts) == {"latencies", "load", "steps", "tiers"}
    for curve, values in zip(charts["latencies"], (ttft_s(done), tpot_s(done), e2e_s(done)), strict=True):
        known = values[np.isfinite(values)]
        assert curve["x"] == sorted(curve["x"]) and (curve["y"][0], curve["y"][-1]) == (0.0, 1.0)
        assert curve["x"][-1] == pytest.approx(known.max())
        assert np.interp(0.5, curve["y"], curve["x"]) == pytest.approx(np.median(known), rel=1e-6)
    running, waiting = charts["load"]
    assert min(running["y"]) >= 0 and min(waiting["y"]) >= 0
    assert (running["y"][-1], waiting["y"][-1]) == (0, 0)
    assert max(running["y"]) >= SERVICE.engine.limits.max_running / 2
    assert sum(charts["steps"][0]["y"]) == done.passes
    assert [curve["name"] for curve in charts["tiers"]] == ["running", "GPU, kept", "host", "disk"]
    for curve, blocks in zip(charts["tiers"][2:], (500, 4000), strict=True):
        assert 0 < max(curve["y"]) <= blocks * 16
    on_gpu = np.array(charts["tiers"][0]["y"]) + np.array(charts["tiers"][1]["y"])
    assert on_gpu.max() <= 24_000 and on_gpu.min() >= 0


def test_resources_share_the_time_in_steps(done: Replay) -> None:
    shares = busy_by_resource(done, SERVICE.engine)
    assert set(shares) == {"gpu0.hbm", "gpu0.compute", "attention"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert busy_by_resource(done, replace(SERVICE.engine, step_time=replace(STEP_TIME, busy=()))) == {}


def page_of(service: Service, trace: Trace) -> str:
    found = service.replay(Requests.from_trace(trace))
    return replay_page(trace, SETUP, service.engine, found, summarise(found), None)


def test_several_machines_and_no_cache(trace: Trace) -> None:
    page = page_of(replace(SERVICE, engines=3), trace)
    assert "3 machines, busy" in text_of(page)
    assert "tiers" in charts_of(page)
    plain = page_of(replace(SERVICE, caching=None), trace)
    assert set(charts_of(plain)) == {"latencies", "load", "steps"}
    assert "Where prompts were found" not in text_of(plain)


def test_nothing_fits_and_still_there_is_a_page(trace: Trace) -> None:
    tiny = replace(SERVICE, engine=replace(SERVICE.engine, limits=Limits(kv_blocks=1, max_running=1)))
    page = page_of(
        tiny,
        trace.take(np.flatnonzero(trace.prompt_tokens > 400), trace.arrival_s[trace.prompt_tokens > 400], "long ones"),
    )
    text = text_of(page)
    assert "too long" in text and "No prompt was looked up" in text


def test_names_of_others_are_shown_and_not_run(trace: Trace) -> None:
    hostile = replace(trace, name="<script>alert(1)</script>", origin="</title><b>")
    page = page_of(SERVICE, hostile)
    assert "<script>alert(1)" not in page and "<b>" not in page
    assert hostile.name in text_of(page)


def test_all_at_once_is_said_in_words() -> None:
    trace = Trace("burst", np.zeros(3), np.full(3, 50), np.full(3, 10))
    text = text_of(page_of(SERVICE, trace))
    assert "3 requests, all at once" in text and "inf" not in text
