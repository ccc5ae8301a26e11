"""How often something is measured, which samples count, and how well the figure is known.

The rule, the same for every measurement:

- A sample in which the work's busiest thread was off its core for more than `DISTURBED` of the time was disturbed by
  another program. Disturbed samples are left out; while fewer than three are undisturbed, the thread's own time on the
  core stands for every sample.
- A sample is an outlier where it lies more than `REJECT` robust standard deviations (1.4826 times the median absolute
  deviation) from the median. Outliers stay in the record and are left out of the figure.
- The figure is the median of the faster half of what is left, the lower quartile: what other programs do only ever adds
  time, so on a quiet machine this is the median within the scatter, and on a busy one still the machine's own time.
- After `warm_up` unrecorded runs samples are taken until the figure's 95 % confidence interval is narrower than
  `precision` to each side, but for at least `least_s` seconds (interference comes in phases), at least `least` and at
  most `most` times, and not beyond the time budget.
- A run is called throttled where its last third is slower than its first third by more than `THROTTLE`, or where the
  clock that the sensors tell falls by that much.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

REJECT = 5.0
DISTURBED = 0.05
_ENOUGH = 3
_SURE = 9
"""Samples below which a small scatter may be luck."""
THROTTLE = 0.07
_MAD_TO_SD = 1.4826
_Z95 = 1.959963984540054
_QUARTILE_PENALTY = 1.363
"""Standard error of a quartile of normal samples, in standard deviations over the root of their number."""
_TREND_NEEDS = 9


class Taken(NamedTuple):
    """One run: its seconds, and the share of them in which its busiest thread was on a core."""

    seconds: float
    running: float = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Attributes:
        budget_s: seconds after which no further sample is taken.
        precision: half-width of the figure's 95 % confidence interval, relative, that is small enough.
        least_s: seconds that samples are taken at least, within the budget.
        least, most: samples at least (whatever the budget) and at most.
        warm_up: runs before the first sample.
    """

    budget_s: float = 2.0
    precision: float = 0.01
    least_s: float = 1.0
    least: int = 3
    most: int = 1000
    warm_up: int = 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """All samples of one measurement.

    Attributes:
        seconds: every sample in the order taken, outliers included.
        running: share of each sample in which the work was on a core; empty where it always was.
        sensors: readings by name (clock, power ...) before and after, where the machine tells any.
        stopped: why sampling ended: precise, budget or most.
    """

    seconds: tuple[float, ...]
    sensors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    stopped: str = "precise"
    running: tuple[float, ...] = ()

    def with_sensors(self, sensors: Mapping[str, tuple[float, float]]) -> Sampled:
        """The same samples with readings."""
        return replace(self, sensors=sensors)

    @property
    def kept(self) -> tuple[float, ...]:
        """Samples without disturbed ones and outliers."""
        return keep(undisturbed(self.seconds, self.running))

    @property
    def disturbed(self) -> int:
        """How many samples other programs disturbed."""
        return sum(share < 1.0 - DISTURBED for share in self.running)

    @property
    def figure(self) -> float:
        """Seconds of one undisturbed run: the median of the faster half of the kept samples."""
        return lower_quartile(self.kept)

    @property
    def half_width(self) -> float:
        """Half-width of the figure's 95 % confidence interval, relative to it."""
        return relative_half_width(self.kept)

    @property
    def noise(self) -> float:
        """How much slower the median is than the figure, relative: what else the machine does meanwhile."""
        return statistics.median(self.kept) / self.figure - 1.0

    @property
    def throttled(self) -> bool:
        """Whether the run slowed down while it was measured."""
        return is_throttled(undisturbed(self.seconds, self.running), self.sensors)


def robust_sd(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    return _MAD_TO_SD * statistics.median(abs(value - middle) for value in values)


def undisturbed(seconds: Sequence[float], running: Sequence[float]) -> tuple[float, ...]:
    """Samples that had their cores to themselves; where those are too few, all of them as time on the core."""
    if not running:
        return tuple(seconds)
    quiet = tuple(value for value, share in zip(seconds, running, strict=True) if share >= 1.0 - DISTURBED)
    if len(quiet) >= _ENOUGH:
        return quiet
    return tuple(value * share for value, share in zip(seconds, running, strict=True))


def keep(seconds: Sequence[float]) -> tuple[float, ...]:
    """Samples within `REJECT` robust standard deviations of the median; all of them where most are equal."""
    spread = robust_sd(seconds)
    if spread == 0.0:
        return tuple(seconds)
    middle = statistics.median(seconds)
    return tuple(value for value in seconds if abs(value - middle) <= REJECT * spread)


def lower_quartile(values: Sequence[float]) -> float:
    """Median of the faster half, the middle value included."""
    return statistics.median(sorted(values)[: (len(values) + 1) // 2])


def relative_half_width(kept: Sequence[float]) -> float:
    """Half-width of the 95 % confidence interval of the lower quartile, over it; infinite for fewer than two samples.

    The scatter is that of the faster half, mirrored: slow samples say little about an undisturbed run.
    """
    if len(kept) < 2:
        return math.inf
    faster = sorted(kept)[: (len(kept) + 1) // 2]
    quartile = statistics.median(faster)
    middle = statistics.median(kept)
    deviation = max(_MAD_TO_SD * statistics.median(middle - value for value in faster), (middle - faster[0]) / 3)
    return _Z95 * _QUARTILE_PENALTY * deviation / math.sqrt(len(kept)) / quartile if quartile > 0 else math.inf


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
    run: Callable[[], Taken],
    limits: Limits,
    *,
    sense: Callable[[], Mapping[str, float]] = dict,
    clock: Callable[[], float] = time.monotonic,
) -> Sampled:
    """Samples of `run`, which does the work once and says how long it took.

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
    running: list[float] = []
    while True:
        taken = run()
        seconds.append(taken.seconds)
        running.append(taken.running)
        if len(seconds) < limits.least:
            continue
        elapsed = clock() - began
        if len(seconds) >= limits.most:
            stopped = "most"
            break
        if elapsed > limits.budget_s:
            stopped = "budget"
            break
        known = keep(undisturbed(seconds, running)) if elapsed >= limits.least_s else ()
        if len(known) >= _SURE and relative_half_width(known) <= limits.precision:
            stopped = "precise"
            break
    after = sense()
    sensors = {name: (before[name], after[name]) for name in sorted(before.keys() & after.keys())}
    return Sampled(tuple(seconds), sensors, stopped, tuple(running) if min(running) < 1.0 else ())


def timed(work: Callable[[], object]) -> Callable[[], Taken]:
    """A run for `sample` that times a Python call; threads that it starts do not count as time on the core."""

    def run() -> Taken:
        began, busy = time.perf_counter(), time.thread_time()
        work()
        seconds, on_core = time.perf_counter() - began, time.thread_time() - busy
        return Taken(seconds, min(1.0, on_core / seconds))

    return run
