from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import DoesNotFit, InputError
from stowplan.planner.batching_costs import (
    Limits,
    Requests,
    StaticCost,
    batch_time,
    fixed_seconds,
    padded_time,
)
from stowplan.planner.batching_run import micro_batches, run_batches

SECONDS = st.floats(0.0, 10.0)
LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=8)


@st.composite
def costs(draw: st.DrawFn) -> StaticCost:
    return StaticCost(
        step_s=tuple(draw(st.lists(SECONDS, min_size=8, max_size=8))),
        context_s=draw(st.floats(0.0, 1e-2)),
        pass_s=draw(SECONDS),
        token_s=draw(st.floats(0.0, 1e-1)),
        pair_s=draw(st.floats(0.0, 1e-3)),
        micro_batch=draw(st.integers(1, 64)),
    )


def requests_of(lengths: list[tuple[int, int]]) -> Requests:
    return Requests.of([p for p, _ in lengths], [g for _, g in lengths])


def by_hand(cost: StaticCost, lengths: list[tuple[int, int]]) -> float:
    """Seconds of a batch, token by token."""
    tokens = sum(p for p, _ in lengths)
    passes = (tokens + cost.micro_batch - 1) // cost.micro_batch
    seconds = passes * cost.pass_s + tokens * cost.token_s
    seconds += cost.pair_s * sum(position for p, _ in lengths for position in range(1, p + 1))
    for step in range(max(g for _, g in lengths)):
        running = [p + step for p, g in lengths if g > step]
        seconds += cost.step_s[len(running) - 1] + cost.context_s * sum(running)
    return seconds


@given(costs(), LENGTHS)
def test_closed_form_and_run_agree_with_a_count_by_hand(cost: StaticCost, lengths: list[tuple[int, int]]) -> None:
    requests = requests_of(lengths)
    expected = by_hand(cost, lengths)
    assert batch_time(cost, requests.prompt, requests.output).seconds == pytest.approx(expected, abs=1e-9)
    (run,) = run_batches([range(len(lengths))], requests, cost)
    assert run.end_s == pytest.approx(expected, abs=1e-9)
    assert max(run.finish_s) == pytest.approx(run.end_s)


@given(costs(), LENGTHS)
def test_padding_never_takes_less_than_none(cost: StaticCost, lengths: list[tuple[int, int]]) -> None:
    rising = StaticCost(
        tuple(np.maximum.accumulate(cost.step_s)), cost.context_s, cost.pass_s, cost.token_s, cost.pair_s
    )
    requests = requests_of(lengths)
    plain = batch_time(rising, requests.prompt, requests.output).seconds
    assert padded_time(rising, requests.prompt, requests.output).seconds >= plain - 1e-9


@given(costs(), LENGTHS)
def test_fixed_seconds_are_in_every_grouping(cost: StaticCost, lengths: list[tuple[int, int]]) -> None:
    requests = requests_of(lengths)
    free = StaticCost((0.0,) * 8, cost.context_s, 0.0, cost.token_s, cost.pair_s, cost.micro_batch)
    together = run_batches([range(len(lengths))], requests, free)[-1].end_s
    alone = run_batches([[i] for i in range(len(lengths))], requests, free)[-1].end_s
    assert fixed_seconds(cost, requests) == pytest.approx(together, abs=1e-9)
    assert together == pytest.approx(alone, abs=1e-9)


@given(LENGTHS, st.integers(1, 64))
def test_micro_batches_hold_every_prompt_token_once(lengths: list[tuple[int, int]], tokens: int) -> None:
    requests = requests_of(lengths)
    passes = list(micro_batches(range(len(lengths)), requests.prompt, tokens))
    sizes = [sum(piece.last - piece.first for piece in pieces) for pieces in passes]
    assert sizes[:-1] == [tokens] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= tokens
    for number, (prompt, _) in enumerate(lengths):
        mine = [piece for pieces in passes for piece in pieces if piece.request == number]
        assert [piece.first for piece in mine] == [0, *(piece.last for piece in mine[:-1])]
        assert mine[-1].last == prompt


def test_pieces_make_a_convex_step() -> None:
    cost = StaticCost.of_pieces([(1.0, 0.0), (0.0, 0.5)], 4)
    assert cost.step_s == (1.0, 1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("coefficients", "named"),
    [
        ({"step_s": (1.0, -1.0)}, "step_s"),
        ({"step_s": (1.0,), "context_s": float("nan")}, "context_s"),
        ({"step_s": ()}, "at least one decode step"),
        ({"step_s": (1.0,), "micro_batch": 0}, "micro-batch"),
    ],
)
def test_wrong_coefficients_are_named(coefficients: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        StaticCost(**coefficients)  # type: ignore[arg-type]


def test_wrong_requests_and_limits_are_named() -> None:
    with pytest.raises(InputError, match="request 1: 0 prompt"):
        Requests.of([3, 0], [1, 1])
    with pytest.raises(InputError, match="at least one"):
        Requests.of([], [])
    with pytest.raises(InputError, match="2 prompts and 1 outputs"):
        Requests.of([1, 2], [1])
    with pytest.raises(DoesNotFit, match="request 1 needs a cache of 12 tokens and there is room for 11"):
        Requests.of([1, 6], [1, 6]).check(Limits(11, 4))
    with pytest.raises(InputError, match="at least one request"):
        Requests.of([1], [1]).check(Limits(11, 0))
