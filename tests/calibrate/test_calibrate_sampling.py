"""When sampling stops, which samples count, and what a figure is: planted truths under noise of other programs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan_calibrate.sampling import (
    Limits,
    Sampled,
    Taken,
    is_throttled,
    keep,
    lower_quartile,
    relative_half_width,
    sample,
    timed,
    undisturbed,
)


class Clock:
    """A clock that moves by what runs take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def runner(clock: Clock, seconds: Iterator[float], running: float = 1.0) -> Taken:
    taken = next(seconds)
    clock.now += taken
    return Taken(taken, running)


def endless(rng: random.Random, truth: float, spread: float, spikes: float = 0.0) -> Iterator[float]:
    while True:
        value = truth * math.exp(rng.gauss(0.0, spread))
        yield value * rng.uniform(1.5, 20.0) if rng.random() < spikes else value


@pytest.mark.parametrize("spikes", [0.0, 0.2, 0.4])
def test_figure_recovers_the_planted_time_under_spikes(spikes: float) -> None:
    clock, values = Clock(), endless(random.Random(7), 1e-3, 0.01, spikes)
    found = sample(lambda: runner(clock, values), Limits(budget_s=1.0, least_s=0.1), clock=clock)
    assert found.figure == pytest.approx(1e-3, rel=0.03)
    assert len(found.kept) <= len(found.seconds)


def test_more_samples_are_taken_of_what_scatters_more() -> None:
    counts = []
    for spread in (0.002, 0.05):
        clock, values = Clock(), endless(random.Random(1), 1e-3, spread)
        limits = Limits(budget_s=10.0, least_s=0.0, precision=0.01)
        found = sample(lambda clock=clock, values=values: runner(clock, values), limits, clock=clock)  # type: ignore[misc]
        assert found.stopped == "precise"
        assert found.half_width <= 0.01
        counts.append(len(found.seconds))
    assert counts[0] < counts[1]


def test_budget_ends_what_never_gets_precise_but_the_least_samples_are_taken() -> None:
    clock, values = Clock(), endless(random.Random(2), 1.0, 0.5)
    found = sample(lambda: runner(clock, values), Limits(budget_s=0.1, least=3, warm_up=1), clock=clock)
    assert found.stopped == "budget"
    assert len(found.seconds) == 3


def test_most_samples_end_a_run() -> None:
    clock, values = Clock(), endless(random.Random(2), 1e-6, 0.5)
    found = sample(lambda: runner(clock, values), Limits(budget_s=99.0, most=20), clock=clock)
    assert (found.stopped, len(found.seconds)) == ("most", 20)


def test_warm_up_is_not_recorded() -> None:
    clock, values = Clock(), iter([50.0, *([1.0] * 100)])
    found = sample(lambda: runner(clock, values), Limits(budget_s=60.0, most=5), clock=clock)
    assert found.seconds == (1.0,) * 5


def test_every_sample_is_kept_in_the_record_and_outliers_do_not_count() -> None:
    found = Sampled((1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 40.0))
    assert 40.0 in found.seconds
    assert 40.0 not in found.kept
    assert found.figure == pytest.approx(0.99, abs=0.01)


def test_disturbed_samples_are_left_out_or_corrected() -> None:
    seconds, running = (1.0, 2.0, 1.0, 4.0, 1.02), (1.0, 0.5, 1.0, 0.25, 0.99)
    assert undisturbed(seconds, running) == (1.0, 1.0, 1.02)
    assert undisturbed((2.0, 4.0), (0.5, 0.25)) == (1.0, 1.0)  # too few quiet ones: the thread's own time
    assert Sampled(seconds, running=running).disturbed == 2


def test_sensors_are_read_before_and_after() -> None:
    readings = iter([{"sm clock": 1.9e9, "power": 90.0}, {"sm clock": 1.2e9, "power": 250.0, "new": 1.0}])
    clock, values = Clock(), iter([1.0] * 9)
    found = sample(lambda: runner(clock, values), Limits(budget_s=3.0), sense=lambda: next(readings), clock=clock)
    assert found.sensors == {"sm clock": (1.9e9, 1.2e9), "power": (90.0, 250.0)}
    assert found.throttled


def test_a_slowing_run_is_throttled_and_a_noisy_one_is_not() -> None:
    slowing = [1.0 + 0.02 * i for i in range(12)]
    assert is_throttled(slowing, {})
    noisy = [1.0, 1.4, 0.8, 1.3, 0.9, 1.5, 1.2, 0.7, 1.4, 1.3, 1.2, 1.6]
    assert not is_throttled(noisy, {})
    assert not is_throttled([1.0] * 30, {"host clock": (3e9, 2.95e9)})


def test_timed_measures_a_call() -> None:
    taken = timed(lambda: sum(range(200_000)))()
    assert taken.seconds > 0.0
    assert 0.0 <= taken.running <= 1.0


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=60))
def test_figure_lies_among_the_faster_half(values: list[float]) -> None:
    kept = sorted(keep(values))
    assert kept
    assert kept[0] <= lower_quartile(kept) <= kept[len(kept) // 2]


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60), st.floats(0.01, 100.0))
def test_relative_width_does_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    width = relative_half_width(values)
    assert relative_half_width([value * factor for value in values]) == pytest.approx(width, rel=1e-6, abs=1e-9)
    assert width >= 0.0
