"""Replay against the step-by-step oracle: the same counts and times under every scheduler."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError, UnknownName
from stowplan.serving.limits import Limits
from stowplan.serving.replay import Replay, State, list_schedulers, replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import ChunkTerm, DecodePiece, StepTime
from tests.serving.naive_engine import NaiveEngine

TICK = 2.0**-20
"""All times are whole multiples of it, so that no sum rounds and ties are real ties."""


def _ticks(low: int, high: int) -> st.SearchStrategy[float]:
    return st.integers(low, high).map(lambda n: n * TICK)


@st.composite
def step_times(draw: st.DrawFn) -> StepTime:
    """Step times with jumps, several pieces and windows; decode pieces meet where they change."""
    counts = draw(st.sampled_from([(1, 2), (1, 9, 10, 26), (1, 5, 21)]))  # powers of two apart: exact slopes
    body = tuple(zip(counts, sorted(draw(_ticks(1000, 200000)) for _ in counts), strict=True))
    pieces, sequence, token = list[DecodePiece](), draw(_ticks(0, 4000)), draw(_ticks(0, 50))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 60), max_size=2)))]
    for start in starts:
        if start:
            steeper = draw(_ticks(0, 400))
            sequence, token = sequence - steeper * start, token + steeper
        pieces.append(DecodePiece(float(start), sequence, token))
    piece = st.tuples(_ticks(0, 20), _ticks(0, 100), _ticks(-50, 100))
    term = st.builds(ChunkTerm, st.none() | st.integers(1, 40), st.lists(piece, min_size=1, max_size=3).map(tuple))
    terms = tuple(draw(st.lists(term, max_size=2)))
    return StepTime(body, ((0, 0.0), (1, draw(_ticks(0, 5000)))), tuple(pieces), terms)


@st.composite
def traces(draw: st.DrawFn) -> Requests:
    count = draw(st.integers(1, 16))
    largest = draw(st.sampled_from([3, 20, 60]))
    gap = draw(st.sampled_from([0, 3000, 300000, 10**7]))
    gaps = [draw(_ticks(0, gap)) for _ in range(count)]
    lengths = st.integers(1, largest)
    prompts, outputs = ([draw(lengths) for _ in range(count)] for _ in range(2))
    keys = [draw(st.integers(-3, 3)) for _ in range(count)]
    return Requests.of(np.cumsum(gaps), prompts, outputs, priority=keys)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    running = draw(st.integers(1, 12))
    return Limits(
        kv_blocks=draw(st.integers(1, 60)),
        block_tokens=draw(st.sampled_from([1, 3, 4, 16])),
        max_running=running,
        max_batched_tokens=running + draw(st.integers(0, 100)),
        watermark=draw(st.sampled_from([0.0, 0.01, 0.3])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        swap_blocks=draw(st.sampled_from([0, 5, 100])),
        swap_s_per_block=draw(_ticks(0, 1000)),
    )


def _oracle(requests: Requests, step_time: StepTime, limit: Limits, scheduler: str) -> NaiveEngine:
    keys = [0] * len(requests)
    if "shortest" in scheduler:
        keys = requests.output_tokens.tolist()
    elif "priority" in scheduler:
        assert requests.priority is not None
        keys = requests.priority.tolist()
    columns = (requests.arrival_s.tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), keys)
    engine = NaiveEngine(list(zip(*columns, strict=True)), step_time, limit, chunked="chunked" in scheduler)
    engine.run()
    return engine


def _assert_equal(found: Replay, oracle: NaiveEngine) -> None:
    for row, expected in enumerate(oracle.all):
        if expected.finished is None:
            assert found.state[row] == State.TOO_LONG
            assert math.isnan(found.started_s[row]) and math.isnan(found.finished_s[row])
            continue
        assert found.state[row] == State.FINISHED
        assert found.started_s[row] == pytest.approx(expected.started, abs=1e-6)
        assert found.first_token_s[row] == pytest.approx(expected.first, abs=1e-6)
        assert found.finished_s[row] == pytest.approx(expected.finished, abs=1e-6)
        assert found.preemptions[row] == expected.preemptions
    assert (found.passes, found.swaps, found.peak_blocks) == (oracle.passes, oracle.swaps, oracle.peak)


def _assert_conserved(found: Replay) -> None:
    assert sum(found.counts.values()) == len(found.requests)
    assert found.leaked_blocks == 0
    assert 0 <= found.peak_blocks <= found.kv_blocks
    done = found.state == State.FINISHED
    assert (found.started_s[done] >= found.requests.arrival_s[done]).all()
    assert (found.first_token_s[done] > found.started_s[done]).all()
    assert (found.finished_s[done] >= found.first_token_s[done]).all()


@pytest.mark.parametrize("scheduler", [name for name in list_schedulers() if name != "static"])
@settings(max_examples=60)
@given(requests=traces(), step_time=step_times(), limit=limits())
def test_equals_the_oracle(scheduler: str, requests: Requests, step_time: StepTime, limit: Limits) -> None:
    found = replay(requests, step_time, limit, scheduler)
    _assert_conserved(found)
    _assert_equal(found, _oracle(requests, step_time, limit, scheduler))
