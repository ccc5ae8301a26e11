"""What is said of a wrong prediction follows from its shares, and the worst ones are the worst."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.validate import examples

from stowplan.validate.explain import dominant_term, open_points, worst

ROW = replace(
    examples.ROW,
    id="a/1",
    predicted=10.0,
    measured=20.0,
    shares=(("host.dram", 0.8), ("gpu0.hbm", 0.17), ("overhead", 0.03)),
)


def test_the_largest_term_is_what_would_have_to_differ() -> None:
    # Measured in half the predicted time: 0.8 of it must shrink by 0.5, to 0.3: 0.8 / 0.3 times faster.
    assert "host memory 80%, GPU0 memory 17%; host memory 2.67x faster alone would explain it" in dominant_term(ROW)
    # Measured in twice the time: 0.8 grows to 1.8.
    slower = dominant_term(replace(ROW, measured=5.0))
    assert "host memory 2.25x slower alone would explain it" in slower


def test_a_term_too_small_to_explain_it_is_said_to_be() -> None:
    small = replace(ROW, shares=(("host.cores", 0.4), ("gpu0.compute", 0.35), ("gpu0.h2d", 0.25)))
    assert "no speed of CPU cores alone explains it" in dominant_term(small)


def test_latencies_count_the_other_way() -> None:
    latency = replace(ROW, figure="ttft", measured=5.0)
    assert dominant_term(latency) == dominant_term(ROW)


def test_nothing_is_said_without_shares() -> None:
    assert dominant_term(replace(ROW, shares=())) == ""


def test_notes_and_assumptions_are_told_together() -> None:
    told = open_points(replace(ROW, note="Odd: two sockets.", assumed=("cpu: not stated", "-fa 1: not stated")))
    assert told == "Odd: two sockets. assumed: cpu: not stated; -fa 1: not stated"


def test_the_worst_are_sorted_by_factor_and_name_a_record_once() -> None:
    rows = [
        replace(ROW, predicted=30.0),  # 1.5 times
        replace(ROW, id="a/2", predicted=4.0),  # a fifth
        replace(ROW, id="b/1", record="b", predicted=60.0),  # 3 times
        replace(ROW, id="c", record="c", predicted=21.0),
    ]
    assert [row.id for row in worst(rows)] == ["a/2", "b/1", "c"]
    assert len(worst(rows, 1)) == 1


@pytest.mark.parametrize(("predicted", "word"), [(10.0, "faster"), (40.0, "slower")])
def test_direction(predicted: float, word: str) -> None:
    assert word in dominant_term(replace(ROW, predicted=predicted))
