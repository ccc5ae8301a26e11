"""The robust fit: planted truths come back from noisy samples with outliers, and what cannot be known is said."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan_calibrate.fitting.robust import fit

SIZES = [2.0**power for power in range(8, 30)] * 4
START = {"latency": 1e-5, "rate": 1e10}
BOUNDS = {"latency": (1e-8, 1e-2), "rate": (1e6, 1e13)}


def line(parameters: Mapping[str, float], sizes: Sequence[float]) -> list[float]:
    return [parameters["latency"] + size / parameters["rate"] for size in sizes]


def measured(latency: float, rate: float, noise: float, seed: int, outliers: int = 0) -> list[float]:
    source = random.Random(seed)
    seconds = [value * source.lognormvariate(0.0, noise) for value in line({"latency": latency, "rate": rate}, SIZES)]
    for position in source.sample(range(len(seconds)), outliers):
        seconds[position] *= source.choice([0.2, 5.0, 12.0])
    return seconds


@settings(deadline=None, max_examples=25)
@given(
    latency=st.floats(1e-6, 1e-4), rate=st.floats(1e9, 3e12), noise=st.floats(0.005, 0.05), seed=st.integers(0, 1000)
)
def test_planted_latency_and_rate_come_back(latency: float, rate: float, noise: float, seed: int) -> None:
    found = fit(line, SIZES, measured(latency, rate, noise, seed, outliers=6), START, BOUNDS)
    assert found.parameters["latency"] == pytest.approx(latency, rel=max(0.03, 2.5 * noise))
    assert found.parameters["rate"] == pytest.approx(rate, rel=max(0.03, 2.5 * noise))
    assert found.spread < 2.5 * noise


def test_outliers_are_named_and_do_not_matter() -> None:
    clean = measured(8e-6, 2e10, 0.02, 3)
    dirty = list(clean)
    for position in (5, 20, 60):
        dirty[position] *= 7.0
    found = fit(line, SIZES, dirty, START, BOUNDS)
    assert set(found.rejected) >= {5, 20, 60}
    assert found.samples == len(SIZES) - len(found.rejected)
    reference = fit(line, SIZES, clean, START, BOUNDS)
    for name in START:
        assert found.parameters[name] == pytest.approx(reference.parameters[name], rel=0.02)


def test_confidence_covers_the_truth() -> None:
    covered = 0
    for seed in range(60):
        low, high = fit(line, SIZES, measured(8e-6, 2e10, 0.03, seed), START, BOUNDS).interval("rate")
        covered += low <= 2e10 <= high
    assert covered >= 51  # 95 % intervals: 57 expected, below 51 once in ten thousand


def test_undetermined_parameter_has_infinite_error() -> None:
    found = fit(
        lambda parameters, sizes: [1e-5 + size / parameters["rate"] + 0.0 * parameters["idle"] for size in sizes],
        SIZES,
        measured(1e-5, 2e10, 0.02, 1),
        {"rate": 1e10, "idle": 1.0},
        {"rate": (1e6, 1e13), "idle": (1e-3, 1e3)},
    )
    assert math.isinf(found.standard_errors["idle"])
    assert 0.0 < found.standard_errors["rate"] < 0.05 * found.parameters["rate"]


def test_parameter_on_its_bound_is_not_given_confidence() -> None:
    bounds = {**BOUNDS, "rate": (1e6, 1e10)}
    found = fit(line, SIZES, measured(8e-6, 2e10, 0.02, 1), {"latency": 1e-5, "rate": 9e9}, bounds)
    assert found.parameters["rate"] == pytest.approx(1e10, rel=1e-3)
    assert found.standard_errors["rate"] == 0.0


def test_same_samples_same_fit() -> None:
    seconds = measured(8e-6, 2e10, 0.05, 9, outliers=4)
    assert fit(line, SIZES, seconds, START, BOUNDS) == fit(line, SIZES, seconds, START, BOUNDS)


@pytest.mark.parametrize(
    ("sizes", "seconds", "start", "message"),
    [
        ([1.0, 2.0], [1.0], START, "one measurement per sample"),
        ([1.0, 2.0], [1.0, 2.0], START, "more than 2 measurements"),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 2.0], START, "measurement 1 is nan"),
        ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0], START, "measurement 1 is 0.0"),
        ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], {"latency": 1.0, "rate": 1e10}, "outside its bounds"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    sizes: list[float], seconds: list[float], start: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(line, sizes, seconds, start, BOUNDS)


def test_model_that_breaks_is_named() -> None:
    with pytest.raises(InputError, match="not positive and finite"):
        fit(lambda _, sizes: [-1.0 for _ in sizes], SIZES, measured(8e-6, 2e10, 0.02, 1), START, BOUNDS)
