"""The generator: deterministic, exact in its daily counts, and as bursty as asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.datafiles import data_folder
from stowplan.errors import InputError
from stowplan.traces.arrivals import arrivals_in_windows
from stowplan.traces.conversations import Habits, with_conversations
from stowplan.traces.reading import load_trace, read_trace
from stowplan.traces.rows import FAILURES
from stowplan.traces.stats import gap_variation, prefix_reuse, session_statistics
from stowplan.traces.synthesis import load_parameters, synthesise
from stowplan.traces.trace import Trace
from stowplan.traces.writing import write_log

FILE = data_folder("traces") / "burstgpt-like.toml"


def test_a_full_log_has_the_size_of_the_real_one_and_says_what_it_is() -> None:
    log = synthesise(load_parameters(FILE))
    assert len(log.arrival_s) == 1_429_737
    assert log.trace.dropped[FAILURES] == pytest.approx(25_400, rel=0.02)
    assert log.trace.origin.startswith("synthetic")
    daily = np.bincount((log.arrival_s // 86400).astype(np.int64))
    expected = np.sum([stream.daily for stream in load_parameters(FILE).streams], axis=0)
    assert daily.tolist() == expected.astype(np.int64).tolist()
    assert log.arrival_s.tolist() == np.floor(log.arrival_s).tolist()
    again = load_trace("burstgpt-like")
    assert again.arrival_s.tobytes() == log.trace.arrival_s.tobytes()
    assert again.prompt_tokens.tobytes() == log.trace.prompt_tokens.tobytes()


def test_size_and_days_can_be_chosen() -> None:
    parameters = load_parameters(FILE)
    log = synthesise(parameters, seed=3, requests=5000, days=9)
    assert len(log.arrival_s) == 5000
    assert log.arrival_s[-1] < 9 * 86400
    assert synthesise(parameters, seed=4, requests=5000, days=9).arrival_s.tolist() != log.arrival_s.tolist()
    for wrong in ({"requests": 0}, {"requests": 10**12}, {"days": 0}, {"days": 62}):
        with pytest.raises(InputError):
            synthesise(parameters, **wrong)


def test_a_log_is_written_with_the_columns_of_burstgpt_and_read_back(tmp_path: Path) -> None:
    log = synthesise(load_parameters(FILE), requests=3000, days=30)
    write_log(log, tmp_path / "log.csv.gz")
    again = read_trace(tmp_path / "log.csv.gz")
    assert again.arrival_s.tolist() == log.trace.arrival_s.tolist()
    assert again.output_tokens.tolist() == log.trace.output_tokens.tolist()
    assert again.dropped == log.trace.dropped
    assert "synthetic" in again.origin
    write_log(log, tmp_path / "twice.csv.gz")
    assert (tmp_path / "twice.csv.gz").read_bytes() == (tmp_path / "log.csv.gz").read_bytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "BurstGPT-like"', ""),
        ("[streams.conversation.gap_shape]\nvalue = 0.78", "[streams.conversation.gap_shape]\nvalue = 0"),
        ("[longest_prompt]\nvalue = 31400", "[longest_prompt]\nvalue = nan"),
        ("[streams.api.failure_share]", "[streams.api.other]"),
        ('log_type = "API log"', 'log_type = "API log"\nmodels = 3'),
    ],
)
def test_damaged_parameters_get_one_sentence(tmp_path: Path, old: str, new: str) -> None:
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "p.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=r"p\.toml") as caught:
        load_parameters(tmp_path / "p.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0, 4.0])
def test_gaps_vary_as_the_shape_says(shape: float) -> None:
    random = np.random.default_rng(0)
    one = np.array([shape])
    arrivals = arrivals_in_windows(random, np.zeros(1), np.full(1, 1000.0), np.array([200_000]), one)
    assert gap_variation(arrivals) == pytest.approx(shape**-0.5, rel=0.03)
    weibull = arrivals_in_windows(
        random, np.zeros(1), np.full(1, 1000.0), np.array([200_000]), np.ones(1), np.ones(1, dtype=np.bool_)
    )
    assert gap_variation(weibull) == pytest.approx(1.0, rel=0.03)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.floats(0.01, 5.0), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_every_window_gets_its_count(counts: list[int], shape: float, seed: int) -> None:
    starts = np.arange(len(counts), dtype=np.float64) * 10.0
    arrivals = arrivals_in_windows(
        np.random.default_rng(seed), starts, np.full_like(starts, 10.0), np.array(counts), np.full_like(starts, shape)
    )
    assert np.bincount((arrivals // 10.0).astype(np.int64), minlength=len(counts)).tolist() == counts
    assert bool((np.diff(arrivals) >= 0).all())


def flat(count: int, seed: int) -> Trace:
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(5.0, count))
    return Trace("flat", arrival - arrival[0], random.integers(1, 400, count), random.integers(1, 400, count))


def test_conversations_have_the_turns_and_gaps_asked_for() -> None:
    habits = Habits(turns=4.0, gap_s=100.0)
    trace = with_conversations(flat(20_000, 1), habits, seed=2)
    assert trace.session is not None
    assert trace.prefix is not None
    found = session_statistics(trace.session, trace.arrival_s)
    assert found.turns.mean == pytest.approx(4.0, rel=0.1)
    assert found.gap_s is not None
    assert found.gap_s.mean == pytest.approx(100.0, rel=0.3)
    assert prefix_reuse(trace.prefix, trace.prompt_tokens).hit_tokens_share > 0.3
    with pytest.raises(InputError, match="begin alike"):
        with_conversations(trace)


@given(st.integers(1, 80), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_a_turn_begins_like_the_one_before_and_nothing_else_is_alike(count: int, seed: int) -> None:
    habits = Habits(turns=3.0, gap_s=20.0, instructions=2, instruction_tokens=32, block_tokens=16)
    trace = with_conversations(flat(count, seed), habits, seed=seed)
    assert trace.session is not None
    assert trace.prefix is not None
    chains: dict[int, tuple[int, ...]] = {}
    last: dict[int, int] = {}
    known: dict[int, int] = {}
    for request in range(count):
        blocks = trace.prefix.of(request).tolist()
        assert len(blocks) == trace.prompt_tokens[request] // 16
        conversation = int(trace.session[request])
        shared = min(len(blocks), 2)
        if conversation in last:
            before = trace.prefix.of(last[conversation]).tolist()
            shared = min(len(blocks), len(before))
            assert blocks[:shared] == before[:shared]
        # behind the prompt before comes the answer to it, or something new, but no instruction
        assert all(known.setdefault(value, request) == request for value in blocks[shared:])
        last[conversation] = request
        for place, value in enumerate(blocks):  # equal hashes mean an equal beginning
            assert chains.setdefault(value, tuple(blocks[:place])) == tuple(blocks[:place])
