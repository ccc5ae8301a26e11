"""Distributions of errors: every record counts once, and quantiles agree with an independent oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.validate import examples

from stowplan.validate.rows import Row
from stowplan.validate.statistics import AIM, errors, grouped, median, quantile, record_weights

ROW = replace(examples.ROW, id="a/1", system="some", run="run -x 1", question="what", predicted=10.0)
VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=30)


def row(ratio: float, record: str = "a", spread: float | None = None) -> Row:
    found = replace(ROW, record=record, id=f"{record}/{ratio}", predicted=10.0 * ratio)
    if spread is None:
        return found
    edge = math.exp(1.2815515655446004 * spread)
    return replace(found, low=found.predicted / edge, high=found.predicted * edge)


@settings(deadline=None)
@given(VALUES)
def test_the_median_of_equal_weights_is_the_usual_one(values: list[float]) -> None:
    assert median(values, [1.0] * len(values)) == pytest.approx(float(np.median(values)), abs=1e-12)


@settings(deadline=None)
@given(VALUES, st.floats(0.01, 1.0))
def test_a_quantile_has_its_share_below_and_no_smaller_value_has(values: list[float], share: float) -> None:
    found = quantile(values, [1.0] * len(values), share)
    below = sum(value <= found for value in values)
    strictly = sum(value < found for value in values)
    assert below >= share * len(values) - 1e-9
    assert strictly < share * len(values) + 1e-9


@settings(deadline=None)
@given(VALUES, st.integers(2, 6))
def test_repeating_the_points_of_a_record_changes_nothing(values: list[float], times: int) -> None:
    rows = [row(math.exp(value), record=f"r{i}") for i, value in enumerate(values)]
    repeated = rows + [rows[0]] * (times - 1)
    once, again = errors("x", rows), errors("x", repeated)
    assert again.n == len(rows) + times - 1
    for name in ("median_abs_error", "p90_abs_error", "median_signed_error"):
        assert getattr(again, name) == pytest.approx(getattr(once, name))


def test_weights_of_a_record_add_up_to_one() -> None:
    rows = [row(1.0, "a"), row(1.1, "a"), row(1.2, "b")]
    assert record_weights(rows) == [0.5, 0.5, 1.0]


def test_signed_and_absolute_errors_by_hand() -> None:
    found = errors("x", [row(0.5, "a"), row(1.1, "b"), row(1.4, "c")], 0.2)
    assert found.median_signed_error == pytest.approx(0.1)
    assert found.median_abs_error == pytest.approx(0.4)
    assert found.p90_abs_error == pytest.approx(0.5)
    assert (found.n, found.records, found.target_median) == (3, 3, 0.2)


def test_coverage_counts_only_rows_with_an_interval() -> None:
    found = errors("x", [row(1.0, "a", 0.1), row(3.0, "b", 0.1), row(9.0, "c")])
    assert found.interval_coverage == pytest.approx(0.5)
    assert found.interval_spread == pytest.approx(0.1)
    assert errors("x", [row(1.0)]).interval_coverage is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.02, 0.8)), min_size=3, max_size=40))
def test_the_wanted_spread_would_hold_what_is_aimed_at(pairs: list[tuple[float, float]]) -> None:
    rows = [row(math.exp(error), f"r{i}", spread) for i, (error, spread) in enumerate(pairs)]
    found = errors("x", rows)
    assert found.interval_spread is not None
    assert found.wanted_spread is not None
    factor = found.wanted_spread / found.interval_spread * (1 + 1e-9)
    widened = [row(r.ratio, r.record, (r.spread or 0.0) * factor) for r in rows]
    if factor > 1e-6:
        assert sum(bool(r.covered) for r in widened) >= AIM * len(rows) - 1e-6


def test_the_interval_score_punishes_width_and_misses_alike() -> None:
    """Against the score written out, and smallest in the mean where intervals hold what they say."""
    inside, outside = row(math.exp(0.05), "a", 0.1), row(math.exp(-0.3), "b", 0.1)
    half = 0.1 * 1.2815515655446004
    assert errors("x", [inside]).interval_score == pytest.approx(2 * half)
    assert errors("x", [outside]).interval_score == pytest.approx(2 * half + 10 * (0.3 - half))
    assert errors("x", [inside, outside]).interval_score == pytest.approx(2 * half + 5 * (0.3 - half))
    assert errors("x", [row(1.0)]).interval_score is None
    errors_made = [0.1 * NormalDist().inv_cdf((i + 0.5) / 400) for i in range(400)]
    scores = {
        spread: errors("x", [row(math.exp(e), f"r{i}", spread) for i, e in enumerate(errors_made)]).interval_score
        or 0.0
        for spread in (0.06, 0.1, 0.16)
    }
    assert scores[0.1] < min(scores[0.06], scores[0.16])


def test_families_are_in_order_and_lose_nothing() -> None:
    rows = [row(1.0), replace(row(1.0), figure="prefill"), replace(row(1.0), system="another")]
    groups = grouped(rows)
    assert list(groups) == ["another partial decode", "some partial decode", "some partial prefill"]
    assert sum(map(len, groups.values())) == len(rows)
