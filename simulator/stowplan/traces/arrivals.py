"""Bursty arrivals: renewal processes whose number of arrivals in every window is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stowplan.traces.trace import Floats, Integers


def arrivals_in_windows(
    random: np.random.Generator,
    starts_s: Floats,
    widths_s: Floats,
    counts: Integers,
    shapes: Floats,
    weibull: NDArray[np.bool_] | None = None,
) -> Floats:
    """Arrivals whose gaps are Gamma (or Weibull) distributed, scaled so that every window has its count.

    One more gap than arrivals is drawn per window and all are scaled to its width, as a Gamma process is when its
    count is known: shape 1 is Poisson, the coefficient of variation of Gamma gaps is ``1 / sqrt(shape)``.

    Args:
        random: source of the draws.
        starts_s, widths_s: float64[w], the windows.
        counts: int64[w], arrivals per window.
        shapes: float64[w], shape of each window's gaps, above 0.
        weibull: bool[w], windows with Weibull instead of Gamma gaps.

    Returns:
        float64[sum of counts], rising within every window and before its end.
    """
    drawn = counts + 1
    window = np.repeat(np.arange(len(counts)), drawn)
    gaps = random.standard_gamma(shapes[window])
    if weibull is not None and bool(weibull.any()):
        other = weibull[window]
        gaps[other] = random.weibull(shapes[window[other]])
    ends = np.cumsum(drawn)
    reached = np.cumsum(gaps)
    before = np.concatenate(([0.0], reached))[ends - drawn]
    total = np.maximum(reached[ends - 1] - before, np.finfo(np.float64).tiny)
    share = (reached - before[window]) / total[window]
    last = np.nextafter(starts_s + widths_s, starts_s)
    times = np.clip(starts_s[window] + widths_s[window] * share, starts_s[window], last[window])
    inner = np.ones(len(gaps), dtype=np.bool_)
    inner[ends - 1] = False
    return np.asarray(times[inner])
