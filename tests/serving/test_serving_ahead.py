"""Scheduling one step ahead, against an engine that is stepped one step at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.serving.answers import ttft_s
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import State
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


def stepped(requests: Requests, limits: Limits) -> tuple[list[float], list[float]]:
    """First and last token of every request when each step is planned at the start of the one before it."""
    arrival, prompt, output = (
        column.tolist() for column in (requests.arrival_s, requests.prompt_tokens, requests.output_tokens)
    )
    first, last = [0.0] * len(arrival), [0.0] * len(arrival)
    waiting = list(range(len(arrival)))
    begun: list[tuple[int, int]] = []
    decoding: list[tuple[int, int, int]] = []
    now, before = 0.0, -1.0
    while waiting or begun or decoding:
        if not (begun or decoding) and arrival[waiting[0]] > before:  # idle: the next step is planned at once
            now = before = max(now, arrival[waiting[0]])
        seen, before = before, now
        budget = limits.max_batched_tokens - len(decoding)
        chunks: list[tuple[int, int, int, bool]] = []
        while budget > 0 and len(decoding) + len(begun) <= limits.max_running:
            if begun:
                request, done = begun[0]
            elif (
                waiting
                and arrival[waiting[0]] <= seen
                and len(decoding) + len([c for c in chunks if c[3]]) < limits.max_running
            ):
                request, done = waiting.pop(0), 0
            else:
                break
            tokens = min(budget, prompt[request] - done)
            budget -= tokens
            ends = done + tokens == prompt[request]
            chunks.append((request, tokens, done, ends))
            begun = [] if ends else [(request, done + tokens)]
            if not ends:
                break
        ending = sum(ends for *_, ends in chunks)
        context = sum(cached for _, cached, _ in decoding)
        now += STEP_TIME.seconds(
            len(decoding), context, [(tokens, done) for _, tokens, done, _ in chunks], len(decoding) + ending
        )
        decoding = [(request, cached + 1, left - 1) for request, cached, left in decoding]
        for request, _, left in decoding:
            if left == 0:
                last[request] = now
        decoding = [each for each in decoding if each[2]]
        for request, _, _, ends in chunks:
            if ends:
                first[request] = now
                if output[request] > 1:
                    decoding.append((request, prompt[request], output[request] - 1))
                else:
                    last[request] = now
    return first, last


@st.composite
def loads(draw: st.DrawFn) -> Requests:
    count = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.floats(0.0, 0.3), min_size=count, max_size=count))
    prompts = draw(st.lists(st.integers(1, 700), min_size=count, max_size=count))
    outputs = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    return Requests.of(np.cumsum(gaps), prompts, outputs)


@settings(deadline=None, max_examples=40)
@given(loads())
def test_equals_an_engine_that_plans_each_step_during_the_one_before(requests: Requests) -> None:
    done = replay(requests, STEP_TIME, ROOMY, "chunked", ahead=True)
    first, last = stepped(requests, ROOMY)
    assert done.first_token_s == pytest.approx(first, abs=1e-9)
    assert done.finished_s == pytest.approx(last, abs=1e-9)
    assert done.leaked_blocks == 0


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
