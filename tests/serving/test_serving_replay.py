"""Replay against the step-by-step oracle: the same counts and times under every scheduler."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.naive_engine import NaiveEngine
from tests.serving.naive_fair import NaiveFairEngine

from stowplan.errors import InputError, UnknownName
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay, State
from stowplan.serving.policies import list_schedulers
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import ChunkTerm, DecodePiece, FewTokens, StepTime

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
    piece = st.tuples(_ticks(0, 20), _ticks(0, 100), _ticks(-50, 100), _ticks(0, 200))
    window = st.none() | st.integers(1, 40)
    term = st.builds(ChunkTerm, window, window, st.lists(piece, min_size=1, max_size=3).map(tuple))
    terms = tuple(draw(st.lists(term, max_size=2)))
    few = None
    if draw(st.integers(0, 3)) == 0:  # small steps are slower or faster
        here = DecodePiece(0.0, draw(_ticks(0, 4000)), draw(_ticks(0, 100)))
        few = FewTokens(draw(st.sampled_from([2, 3, 8, 20])), (here,), tuple(draw(st.lists(term, max_size=1))))
    return StepTime(body, ((0, 0.0), (1, draw(_ticks(0, 5000)))), tuple(pieces), terms, few=few)


@st.composite
def traces(draw: st.DrawFn) -> Requests:
    count = draw(st.integers(1, 16))
    largest = draw(st.sampled_from([3, 20, 60]))
    gap = draw(st.sampled_from([0, 3000, 300000, 10**7]))
    gaps = [draw(_ticks(0, gap)) for _ in range(count)]
    lengths = st.integers(1, largest)
    prompts, outputs = ([draw(lengths) for _ in range(count)] for _ in range(2))
    keys = [draw(st.integers(-3, 3)) for _ in range(count)]
    return Requests.of(np.cumsum(gaps), prompts, outputs, priority=keys, client=keys)


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
    rows = list(zip(*columns, strict=True))
    if scheduler == "fair":
        assert requests.client is not None
        clients = [(*row[:3], client) for row, client in zip(rows, requests.client.tolist(), strict=True)]
        engine: NaiveEngine = NaiveFairEngine(clients, step_time, limit, chunked=False)
    else:
        engine = NaiveEngine(rows, step_time, limit, chunked="chunked" in scheduler)
    engine.run()
    return engine


def assert_equal(found: Replay, oracle: NaiveEngine) -> None:
    for row, expected in enumerate(oracle.all):
        if expected in oracle.timed_out:
            assert found.state[row] == State.TIMED_OUT
            assert found.made_tokens[row] == expected.made
            assert math.isnan(found.finished_s[row])
            continue
        if expected.finished is None:
            assert found.state[row] == (State.REFUSED if expected in oracle.refused else State.TOO_LONG)
            assert math.isnan(found.started_s[row]) and math.isnan(found.finished_s[row])
            continue
        assert found.state[row] == State.FINISHED
        assert found.started_s[row] == pytest.approx(expected.started, abs=1e-6)
        assert found.first_token_s[row] == pytest.approx(expected.first, abs=1e-6)
        assert found.finished_s[row] == pytest.approx(expected.finished, abs=1e-6)
        assert found.preemptions[row] == expected.preemptions
    assert (found.passes, found.swaps, found.engines[0].peak_blocks) == (oracle.passes, oracle.swaps, oracle.peak)


def assert_conserved(found: Replay) -> None:
    done = found.state == State.FINISHED
    assert sum(found.counts.values()) == len(found.requests)
    assert found.leaked_blocks == 0
    assert (found.made_tokens[found.state == State.FINISHED] == found.requests.output_tokens[done]).all()
    assert (found.made_tokens[~done] < found.requests.output_tokens[~done]).all()
    assert (found.made_tokens[np.isin(found.state, (State.REFUSED, State.TOO_LONG))] == 0).all()
    assert 0 <= found.peak_share <= 1
    assert (found.started_s[done] >= found.requests.arrival_s[done]).all()
    assert (found.first_token_s[done] > found.started_s[done]).all()
    assert (found.finished_s[done] >= found.first_token_s[done]).all()


@pytest.mark.parametrize("scheduler", [name for name in list_schedulers() if name != "static"])
@settings(max_examples=60)
@given(requests=traces(), step_time=step_times(), limit=limits())
def test_equals_the_oracle(scheduler: str, requests: Requests, step_time: StepTime, limit: Limits) -> None:
    found = replay(requests, step_time, limit, scheduler)
    assert_conserved(found)
    assert_equal(found, _oracle(requests, step_time, limit, scheduler))


@pytest.mark.parametrize("scheduler", ["continuous", "chunked", "shortest", "priority-chunked"])
@settings(max_examples=100)
@given(
    requests=traces(),
    step_time=step_times(),
    limit=limits(),
    room=st.none() | st.integers(1, 6),
    patience=st.none() | _ticks(1, 3 * 10**6),
)
def test_equals_the_oracle_where_clients_turn_away(
    scheduler: str, requests: Requests, step_time: StepTime, limit: Limits, room: int | None, patience: float | None
) -> None:
    limit = replace(limit, max_waiting=room, patience_s=patience)
    found = replay(requests, step_time, limit, scheduler)
    assert_conserved(found)
    assert_equal(found, _oracle(requests, step_time, limit, scheduler))


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_fairness_keeps_a_light_client_from_waiting_behind_a_heavy_one(preemption: str) -> None:
    heavy, light = np.zeros(60), np.arange(1.0, 21.0)
    order = np.argsort(np.concatenate((heavy, light)), kind="stable")
    client = np.concatenate((np.zeros(60, dtype=int), np.ones(20, dtype=int)))[order]
    arrival = np.concatenate((heavy, light))[order]
    requests = Requests.of(arrival, np.where(client, 100, 600), np.where(client, 40, 500), client=client)
    limit = Limits(
        kv_blocks=700,
        max_running=16,
        preemption="swap" if preemption == "swap" else "recompute",
        swap_blocks=2000,
        swap_s_per_block=1e-5,
    )
    found, unfair = replay(requests, STEP_TIME, limit, "fair"), replay(requests, STEP_TIME, limit)
    assert_conserved(found)
    assert_equal(found, _oracle(requests, STEP_TIME, limit, "fair"))
    waits, others = (r.first_token_s - r.requests.arrival_s for r in (found, unfair))
    assert found.preemptions.sum() > 0
    assert (found.swaps > 0) == (preemption == "swap")
    assert np.median(waits[client == 1]) < 0.2 * np.median(others[client == 1])


def test_a_sequence_that_came_back_late_and_was_dropped_keeps_its_turn() -> None:
    """Sequence 5 is copied away and comes back before 4, so that 4 is dropped first and still goes first."""
    limit = Limits(20, 1, 6, 6, watermark=0.0, preemption="swap", swap_blocks=5)
    steady = StepTime(((1, 0.5), (2, 0.5)), ((0, 0.0), (1, 0.0)), (DecodePiece(0.0, 0.0, 0.0),), ())
    found = replay(Requests.of([0.0] * 6, [1] * 6, [5, 5, 5, 12, 7, 10]), steady, limit)
    assert found.preemptions.tolist() == [0, 0, 0, 0, 2, 2]
    assert found.finished_s[4] < found.finished_s[5]


@settings(max_examples=60)
@given(requests=traces(), step_time=step_times(), limit=limits())
def test_static_batches_equal_a_step_by_step_run(requests: Requests, step_time: StepTime, limit: Limits) -> None:
    found = replay(requests, step_time, limit, "static")
    assert_conserved(found)
    rows = [row for row in range(len(requests)) if found.state[row] == State.FINISHED]
    prompt, output, arrival = requests.prompt_tokens, requests.output_tokens, requests.arrival_s
    now = 0.0
    while rows:
        now = max(now, float(arrival[rows[0]]))
        members: list[int] = []
        for row in rows:
            tried = [*members, row]
            padded, answer = max(int(prompt[r]) for r in tried), max(int(output[r]) for r in tried)
            blocks = len(tried) * math.ceil((padded + answer - 1) / limit.block_tokens)
            fits = len(tried) * padded <= limit.max_batched_tokens and blocks <= limit.kv_blocks - limit.reserve
            if arrival[row] > now or len(tried) > limit.max_running or (members and not fits):
                break
            members = tried
        rows = rows[len(members) :]
        count, padded = len(members), max(int(prompt[r]) for r in members)
        assert all(found.started_s[r] == pytest.approx(now, abs=1e-6) for r in members)
        now += step_time.seconds(0, 0, [(padded, 0)] * count)
        assert all(found.first_token_s[r] == pytest.approx(now, abs=1e-6) for r in members)
        for step in range(max(int(output[r]) for r in members) - 1):
            now += step_time.seconds(count, count * (padded + step))
        assert all(found.finished_s[r] == pytest.approx(now, abs=1e-6) for r in members)


STEP_TIME = StepTime(
    body=((1, 0.012), (128, 0.013), (512, 0.03), (8192, 0.45)),
    logits=((0, 0.0), (256, 0.001)),
    decode=(DecodePiece(0.0, 1e-6, 4e-8), DecodePiece(300.0, -5e-6, 6e-8)),
    chunk=(ChunkTerm(None, None, ((2e-10, 1e-9, 0.0, 0.0), (0.0, 4e-8, 0.0, 0.0))),),
)


def realistic(count: int, rate: float) -> Requests:
    """Bursty arrivals and long-tailed lengths."""
    random = np.random.default_rng(7)
    arrival = np.cumsum(random.gamma(0.25, 4.0 / rate, count))
    prompt = np.clip(random.lognormal(5.9, 1.0, count), 1, 8000).astype(int)
    output = np.clip(random.lognormal(5.2, 0.8, count), 1, 4000).astype(int)
    return Requests.of(arrival, prompt, output)


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("scheduler", ["continuous", "chunked", "shortest"])
def test_equals_the_oracle_in_a_preemption_storm(scheduler: str, preemption: str) -> None:
    requests = realistic(60, 20.0)
    limit = Limits(
        kv_blocks=600,
        max_running=32,
        max_batched_tokens=2048,
        watermark=0.0,
        preemption="swap" if preemption == "swap" else "recompute",
        swap_blocks=200,
        swap_s_per_block=1e-4,
    )
    found = replay(requests, STEP_TIME, limit, scheduler)
    assert found.preemptions.sum() > 10
    assert (found.swaps > 0) == (preemption == "swap")
    assert_conserved(found)
    assert_equal(found, _oracle(requests, STEP_TIME, limit, scheduler))


@pytest.mark.parametrize("scheduler", list_schedulers())
def test_conserves_on_a_long_trace_and_repeats_to_the_bit(scheduler: str) -> None:
    requests = realistic(1500, 8.0)
    requests = Requests.of(
        requests.arrival_s, requests.prompt_tokens, requests.output_tokens, priority=np.arange(1500) % 3
    )
    limit = Limits(kv_blocks=1200, max_batched_tokens=2048)
    found, again = (replay(requests, STEP_TIME, limit, scheduler) for _ in range(2))
    assert_conserved(found)
    assert found.finished_s.tobytes() == again.finished_s.tobytes()


def test_too_long_requests_are_counted_and_hold_nobody_up() -> None:
    requests = Requests.of([0.0, 0.0, 1.0], [16, 1000, 16], [4, 1, 4])
    found = replay(requests, STEP_TIME, Limits(kv_blocks=10, watermark=0.0))
    assert found.counts == {"finished": 2, "too_long": 1, "refused": 0, "timed_out": 0}
    assert found.state.tolist() == [State.FINISHED, State.TOO_LONG, State.FINISHED]


def test_an_empty_trace_replays() -> None:
    found = replay(Requests.of([], [], []), STEP_TIME, Limits(kv_blocks=10))
    assert found.counts == {"finished": 0, "too_long": 0, "refused": 0, "timed_out": 0}


def test_shortest_first_lowers_the_mean_and_priority_is_obeyed() -> None:
    arrival, prompt, output = [0.0] * 40, [100] * 40, [400 - 10 * i for i in range(40)]
    limit = Limits(kv_blocks=4000, max_running=2)
    first = replay(Requests.of(arrival, prompt, output), STEP_TIME, limit, "continuous")
    short = replay(Requests.of(arrival, prompt, output), STEP_TIME, limit, "shortest")
    assert short.finished_s.mean() < 0.9 * first.finished_s.mean()
    ranked = Requests.of(arrival, prompt, output, priority=range(40, 0, -1))
    urgent = replay(ranked, STEP_TIME, limit, "priority")
    assert (np.diff(urgent.started_s) <= 0).all()


def test_chunked_prefill_keeps_decodes_going() -> None:
    requests = Requests.of([0.0, 0.5], [100, 7000], [200, 10])
    limit = Limits(kv_blocks=2000, max_batched_tokens=8192)
    whole = replay(requests, STEP_TIME, limit, "continuous")
    chunks = replay(requests, STEP_TIME, Limits(kv_blocks=2000, max_batched_tokens=256), "chunked")
    assert chunks.first_token_s[1] > whole.first_token_s[1]
    assert chunks.passes < 200 + 10 + 7000 // 255 + 2


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (([0.0, 2.0, 1.0], [1, 1, 1], [1, 1, 1]), "arrival_s: row 2: 1.0 s is negative, not finite or earlier"),
        (([0.0, math.nan], [1, 1], [1, 1]), "arrival_s: row 1"),
        (([-1.0], [1], [1]), "arrival_s: row 0"),
        (([0.0, 1.0], [1, 0], [1, 1]), "prompt_tokens: row 1: 0 is not a whole number from 1"),
        (([0.0], [1], [2**40]), "output_tokens: row 0"),
        (([0.0], [1.5], [1]), "prompt_tokens: row 0: 1.5 is not a whole number"),
        (([0.0], [1, 2], [1]), r"prompt_tokens: has shape \(2,\)"),
        (([0.0], ["x"], [1]), "prompt_tokens: holds"),
        (([[0.0]], [1], [1]), "arrival_s: has 2 dimensions"),
    ],
)
def test_bad_columns_get_a_sentence(columns: tuple[list[float], list[int], list[int]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Requests.of(*columns)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kv_blocks": 0}, "kv_blocks: 0 is less than 1"),
        ({"max_running": 0}, "max_running"),
        ({"max_batched_tokens": 10}, "must hold one token of every running sequence"),
        ({"watermark": 1.0}, "watermark"),
        ({"watermark": math.nan}, "watermark"),
        ({"swap_s_per_block": math.inf}, "swap_s_per_block"),
        ({"preemption": "abort"}, "neither recompute nor swap"),
    ],
)
def test_bad_limits_get_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Limits(**{"kv_blocks": 100, **change})


def test_unknown_schedulers_and_missing_priorities_get_a_sentence() -> None:
    requests = Requests.of([0.0], [1], [1])
    with pytest.raises(UnknownName, match="nearest: continuous"):
        replay(requests, STEP_TIME, Limits(kv_blocks=10), "continous")
    with pytest.raises(InputError, match="priority: is missing"):
        replay(requests, STEP_TIME, Limits(kv_blocks=10), "priority")
