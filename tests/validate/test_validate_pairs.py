"""Pairs: the same question answered in two ways, and whether the better way was predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.validate import examples

from stowplan.validate.pairs import pairs_of, winners, wrong_choices
from stowplan.validate.rows import Row

ROW = replace(examples.ROW, question="decode of 1 from 0", predicted=10.0)


def other(**changes: object) -> Row:
    return replace(ROW, **{"id": "b", "record": "b", "run": "-ngl 20"} | changes)  # type: ignore[arg-type]


def test_the_faster_measured_run_is_the_better_one() -> None:
    (pair,) = pairs_of([ROW, other(measured=20.0, predicted=15.0)])
    assert (pair.better.id, pair.gain, pair.predicted_gain, pair.predicted) == ("b", 2.0, 1.5, True)
    (wrong,) = pairs_of([ROW, other(measured=20.0, predicted=9.0)])
    assert not wrong.predicted


def test_of_latencies_the_smaller_is_better() -> None:
    first = replace(ROW, figure="ttft")
    (pair,) = pairs_of([first, other(figure="ttft", measured=20.0, predicted=15.0)])
    assert (pair.better.id, pair.gain, pair.predicted_gain) == ("a", 2.0, 1.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"measured": 10.9},
        {"measured": 20.0, "question": "decode of 1 from 4096"},
        {"measured": 20.0, "figure": "prefill"},
        {"measured": 20.0, "run": "-ngl 10"},
    ],
    ids=["too close", "another question", "another figure", "the same run again"],
)
def test_what_is_no_pair(changes: dict[str, object]) -> None:
    assert pairs_of([ROW, other(**changes)]) == []


def test_the_same_flags_of_two_engines_are_a_pair() -> None:
    (pair,) = pairs_of([ROW, other(measured=20.0, run="-ngl 10", system="ik_llama.cpp")])
    assert pair.group == "ik_llama.cpp against llama.cpp decode"


def test_memory_is_no_choice() -> None:
    assert pairs_of([replace(ROW, figure="memory"), other(figure="memory", measured=20.0)]) == []


def test_a_published_ratio_is_a_pair_by_itself() -> None:
    faster = replace(ROW, figure="speed-up", measured=2.0, predicted=1.5)
    slower = replace(faster, measured=0.5, predicted=1.5)
    close = replace(faster, measured=1.05, predicted=3.0)
    found = pairs_of([faster, slower, close])
    assert [pair.predicted for pair in found] == [True, False]
    assert [pair.gain for pair in found] == [2.0, 2.0]


def test_points_of_the_same_two_records_share_one_vote() -> None:
    rows = []
    for depth in range(9):
        rows += [replace(ROW, question=f"{depth}"), other(question=f"{depth}", measured=20.0, predicted=15.0)]
    rows += [
        replace(ROW, id="c", record="c", run="-ngl 30", question="x"),
        other(question="x", measured=20.0, predicted=5),
    ]
    found = winners("all", pairs_of(rows))
    assert (found.pairs, found.choices, found.share) == (10, 2, 0.5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), min_size=2, max_size=8))
def test_perfect_predictions_win_every_pair_and_inverted_ones_none(values: list[tuple[float, float]]) -> None:
    rows = [
        other(id=str(i), record=str(i), run=str(i), measured=measured, predicted=measured)
        for i, (measured, _) in enumerate(values)
    ]
    found = pairs_of(rows)
    assert all(pair.predicted for pair in found)
    assert not any(pair.predicted for pair in pairs_of([replace(r, predicted=1.0 / r.measured) for r in rows]))
    assert all(pair.gain > 1.1 for pair in found)


def test_wrong_choices_are_named_once_and_the_largest_first() -> None:
    rows = [replace(ROW, question=str(n)) for n in range(3)]
    rows += [other(question=str(n), measured=20.0 + n, predicted=5.0) for n in range(3)]
    rows += [other(id="c", record="c", run="-ngl 30", question="2", measured=90.0, predicted=1.0)]
    found = wrong_choices(pairs_of(rows))
    assert [(pair.better.id, pair.worse.id) for pair in found] == [("c", "a"), ("c", "b"), ("b", "a")]
    assert found[2].gain == pytest.approx(2.2)
