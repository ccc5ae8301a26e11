"""Traces are validated; slices, scalings and resampling keep what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.traces.conversations import Habits, with_conversations
from stowplan.traces.trace import Blocks, Trace

QUICK = settings(deadline=None, max_examples=60)


def made(count: int, seed: int, *, ties: bool = False) -> Trace:
    """A random trace with sessions and prefix blocks."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1.0, count)
    arrival = np.cumsum(np.floor(gaps) if ties else gaps)
    counts = random.integers(0, 5, count)
    return Trace(
        "made",
        arrival - arrival[0],
        random.integers(1, 500, count),
        random.integers(1, 500, count),
        session=random.integers(-1, 4, count),
        prefix=Blocks(np.concatenate(([0], np.cumsum(counts))), random.integers(0, 20, counts.sum()), 16),
    )


traces = st.builds(made, st.integers(1, 60), st.integers(0, 10**6), ties=st.booleans())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arrival_s": np.array([])}, "no request"),
        ({"arrival_s": np.array([0.0, np.nan])}, "finite"),
        ({"arrival_s": np.array([0.0, 1e300])}, "finite"),
        ({"arrival_s": np.array([1.0, 2.0])}, "start at 0"),
        ({"arrival_s": np.array([0.0, -1.0])}, "never decrease"),
        ({"prompt_tokens": np.array([0, 1])}, "prompt_tokens"),
        ({"output_tokens": np.array([1, 10**10])}, "output_tokens"),
        ({"output_tokens": np.array([1])}, "1 entries"),
        ({"session": np.array([1, 2, 3])}, "3 entries in session"),
        ({"prefix": Blocks(np.array([0, 0]), np.array([], dtype=np.int64), 16)}, "1 entries in prefix"),
    ],
)
def test_wrong_traces_are_refused(change: dict[str, object], said: str) -> None:
    fields: dict[str, object] = {
        "arrival_s": np.array([0.0, 1.0]),
        "prompt_tokens": np.array([1, 2]),
        "output_tokens": np.array([3, 4]),
    }
    with pytest.raises(InputError, match=said):
        Trace("wrong", **(fields | change))  # type: ignore[arg-type]


def test_blocks_are_checked() -> None:
    with pytest.raises(InputError, match="offsets"):
        Blocks(np.array([0, 2, 1]), np.array([1]), 16)
    with pytest.raises(InputError, match="at least 1"):
        Blocks(np.array([0, 1]), np.array([1]), 0)


def test_arrays_cannot_be_written_but_those_of_the_caller_can() -> None:
    arrival = np.array([0.0, 1.0])
    trace = Trace("kept", arrival, np.array([1, 2]), np.array([1, 2]))
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 5.0
    arrival[1] = 2.0


@given(traces, st.floats(0, 30), st.floats(0, 30))
@QUICK
def test_a_slice_holds_the_arrivals_between_its_ends(trace: Trace, start: float, length: float) -> None:
    inside = [row for row in range(len(trace)) if start <= trace.arrival_s[row] < start + length]
    if not inside:
        with pytest.raises(InputError, match="no request is left"):
            trace.slice(start, start + length)
        return
    part = trace.slice(start, start + length)
    assert part.prompt_tokens.tolist() == trace.prompt_tokens[inside].tolist()
    assert part.arrival_s == pytest.approx(trace.arrival_s[inside] - trace.arrival_s[inside[0]])
    assert part.prefix is not None
    assert trace.prefix is not None
    for position, row in enumerate(inside):
        assert part.prefix.of(position).tolist() == trace.prefix.of(row).tolist()


@given(traces, st.integers(1, 80))
@QUICK
def test_the_head_is_a_prefix(trace: Trace, count: int) -> None:
    part = trace.head(count)
    assert len(part) == min(count, len(trace))
    assert part.arrival_s.tolist() == trace.arrival_s[:count].tolist()


@given(traces, st.floats(0.01, 100))
@QUICK
def test_scaling_reaches_the_rate_and_keeps_the_shape(trace: Trace, factor: float) -> None:
    assert trace.scaled_time(factor).arrival_s == pytest.approx(trace.arrival_s * factor)
    if trace.duration_s == 0.0:
        with pytest.raises(InputError, match="no rate"):
            trace.scaled_rate(factor)
        return
    scaled = trace.scaled_rate(factor)
    assert scaled.rate == pytest.approx(factor)
    assert scaled.arrival_s / scaled.duration_s == pytest.approx(trace.arrival_s / trace.duration_s)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_must_be_positive(wrong: float) -> None:
    for scale in (made(5, 1).scaled_time, made(5, 1).scaled_rate):
        with pytest.raises(InputError, match="above 0"):
            scale(wrong)


@given(traces, st.integers(1, 12), st.integers(0, 1000))
@QUICK
def test_resampling_draws_whole_windows_with_lives_of_their_own(trace: Trace, windows: int, seed: int) -> None:
    if trace.duration_s == 0.0:
        return
    width = trace.duration_s / windows
    drawn = np.random.default_rng(seed).integers(0, windows, windows)
    edges = np.linspace(0.0, trace.duration_s, windows + 1)
    edges[-1] = np.inf
    members = [np.flatnonzero((trace.arrival_s >= edges[each]) & (trace.arrival_s < edges[each + 1])) for each in drawn]
    expected = [int(trace.prompt_tokens[row]) for rows in members for row in rows]
    if not expected:
        with pytest.raises(InputError, match="empty"):
            trace.resampled(windows, seed)
        return
    again = trace.resampled(windows, seed)
    assert sorted(again.prompt_tokens.tolist()) == sorted(expected)
    assert again.duration_s <= windows * width * (1 + 1e-9)
    assert again.arrival_s.tolist() == trace.resampled(windows, seed).arrival_s.tolist()


def test_copies_of_a_window_share_no_session_and_no_block() -> None:
    trace = made(40, 3)
    seed = next(seed for seed in range(50) if len(set(np.random.default_rng(seed).integers(0, 2, 2).tolist())) == 1)
    twice = trace.resampled(2, seed)
    half = len(twice) // 2
    assert twice.session is not None
    assert twice.prefix is not None
    first, second = twice.session[:half], twice.session[half:]
    assert not set(first[first >= 0].tolist()) & set(second[second >= 0].tolist())
    middle = twice.prefix.offsets[half]
    assert not set(twice.prefix.hashes[:middle].tolist()) & set(twice.prefix.hashes[middle:].tolist())


def test_prefixes_follow_the_conversations_that_a_trace_has() -> None:
    trace = Trace(
        "own", np.arange(5.0), np.array([640, 1280, 640, 1300, 640]), np.full(5, 9), session=np.array([7, 7, -1, 7, -1])
    )
    told = with_conversations(trace, Habits(instructions=3, instruction_tokens=64))
    assert told.session is not None and told.prefix is not None
    assert len(set(told.session.tolist())) == 3 and told.session[0] == told.session[1] == told.session[3]
    first, second, _, third, _ = (told.prefix.of(row).tolist() for row in range(5))
    assert second[:10] == first and third[:20] == second
    with pytest.raises(InputError, match="begin alike"):
        with_conversations(told)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_joined_blocks_are_alike_where_all_that_they_hold_and_all_before_is(
    counts: list[int], several: int, seed: int
) -> None:
    """Tokens of two kinds, hashed as a chain by single blocks; a joined block is told by the tokens up to its end."""
    random = np.random.default_rng(seed)
    prompts = [tuple(random.integers(0, 2, count).tolist()) for count in counts]
    names: dict[tuple[int, ...], int] = {}
    hashes = [names.setdefault(prompt[: i + 1], len(names)) for prompt in prompts for i in range(len(prompt))]
    single = Blocks(np.concatenate(([0], np.cumsum(counts))), np.array(hashes, dtype=np.int64), 16)
    joined = single.joined(several)
    assert joined.block_tokens == 16 * several
    for row, prompt in enumerate(prompts):
        ends = range(several, len(prompt) + 1, several)
        assert joined.of(row).tolist() == [names[prompt[:end]] for end in ends]
