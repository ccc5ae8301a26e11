"""How often something is measured, which samples count, and how well their median is known.

The rule, the same for every measurement: after `warm_up` unrecorded runs the sample is taken again until the 95 %
confidence interval of the median is narrower than `precision` to each side, but at least `least` and at most `most`
times and not beyond the time budget. A sample is an outlier where it lies more than `REJECT` robust standard deviations
(1.4826 times the median absolute deviation) from the median; outliers are kept in the record and left out of the
figures. A run is called throttled where its last third is slower than its first third by more than `THROTTLE` or where
the clock that the sensors tell falls by that much.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

REJECT = 5.0
THROTTLE = 0.07
_MAD_TO_SD = 1.4826
_Z95 = 1.959963984540054
_MEDIAN_PENALTY = math.sqrt(math.pi / 2)
"""How much wider the confidence interval of a median is than that of a mean, for normal samples."""
_TREND_NEEDS = 9


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Attributes:
        budget_s: seconds after which no further sample is taken.
        precision: half-width of the median's 95 % confidence interval, relative, that is small enough.
        least, most: samples at least (whatever the budget) and at most.
        warm_up: runs before the first sample.
    """

    budget_s: float = 2.0
    precision: float = 0.01
    least: int = 3
    most: int = 200
    warm_up: int = 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """All samples of one measurement.

    Attributes:
        seconds: every sample in the order taken, outliers included.
        sensors: readings by name (clock, power ...) before and after, where the machine tells any.
        stopped: why sampling ended: precise, budget or most.
    """

    seconds: tuple[float, ...]
    sensors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    stopped: str = "precise"

    @property
    def kept(self) -> tuple[float, ...]:
        """Samples without outliers."""
        return keep(self.seconds)

    @property
    def median(self) -> float:
        """Median of the kept samples in seconds."""
        return statistics.median(self.kept)

    @property
    def half_width(self) -> float:
        """Half-width of the median's 95 % confidence interval, relative to the median."""
        return relative_half_width(self.kept)

    @property
    def throttled(self) -> bool:
        """Whether the run slowed down while it was measured."""
        return is_throttled(self.seconds, self.sensors)


def robust_sd(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    return _MAD_TO_SD * statistics.median(abs(value - middle) for value in values)


def keep(seconds: Sequence[float]) -> tuple[float, ...]:
    """Samples within `REJECT` robust standard deviations of the median; all of them where most are equal."""
    spread = robust_sd(seconds)
    if spread == 0.0:
        return tuple(seconds)
    middle = statistics.median(seconds)
    return tuple(value for value in seconds if abs(value - middle) <= REJECT * spread)


def relative_half_width(kept: Sequence[float]) -> float:
    """Half-width of the median's 95 % confidence interval over the median; infinite for fewer than two samples."""
    if len(kept) < 2:
        return math.inf
    middle = statistics.median(kept)
    deviation = max(robust_sd(kept), statistics.stdev(kept) / 3)  # the second guards against ties of a coarse clock
    return _Z95 * _MEDIAN_PENALTY * deviation / math.sqrt(len(kept)) / middle if middle > 0 else math.inf


def is_throttled(seconds: Sequence[float], sensors: Mapping[str, tuple[float, float]]) -> bool:
    """Whether the samples drift upwards or a clock fell while they were taken."""
    fallen = any(
        before > 0 and after < (1 - THROTTLE) * before
        for name, (before, after) in sensors.items()
        if name.endswith("clock")
    )
    if len(seconds) < _TREND_NEEDS:
        return fallen
    third = len(seconds) // 3
    first, last = statistics.median(seconds[:third]), statistics.median(seconds[-third:])
    steady = robust_sd(seconds[:third]) < THROTTLE * first / 2  # scatter of that size is noise, not a trend
    return fallen or (steady and last > (1 + THROTTLE) * first)


def sample(
    run: Callable[[], float],
    limits: Limits,
    *,
    sense: Callable[[], Mapping[str, float]] = dict,
    clock: Callable[[], float] = time.monotonic,
) -> Sampled:
    """Samples of `run`, which does the work once and returns the seconds that count.

    Args:
        run: takes its own time, with the monotonic clock or with a device's events.
        limits: when to stop.
        sense: clocks, power and the like, read before and after.
        clock: what the time budget is measured with.
    """
    began = clock()
    for _ in range(limits.warm_up):
        run()
        if clock() - began > limits.budget_s:
            break
    before = sense()
    seconds: list[float] = []
    while True:
        seconds.append(run())
        if len(seconds) < limits.least:
            continue
        if len(seconds) >= 5 and relative_half_width(keep(seconds)) <= limits.precision:
            stopped = "precise"
            break
        if len(seconds) >= limits.most:
            stopped = "most"
            break
        if clock() - began > limits.budget_s:
            stopped = "budget"
            break
    after = sense()
    sensors = {name: (before[name], after[name]) for name in sorted(before.keys() & after.keys())}
    return Sampled(tuple(seconds), sensors, stopped)


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A run for `sample` that times a Python call."""

    def run() -> float:
        began = clock()
        work()
        return clock() - began

    return run
