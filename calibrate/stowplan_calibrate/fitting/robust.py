"""Robust least squares on relative errors: what every fit of a measured time or rate goes through.

Residuals are ``log(model / measured)``, so a kernel of 5 us counts as much as one of 50 ms. The loss is soft L1;
samples beyond `REJECT` robust standard deviations after a first fit are set aside and the fit is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from stowplan.errors import InputError

X = TypeVar("X")
Array = NDArray[np.float64]
Model = Callable[[Mapping[str, float], Sequence[X]], "Sequence[float] | Array"]
Bounds = Mapping[str, tuple[float, float]]

REJECT = 5.0
"""Robust standard deviations beyond which a sample is set aside."""
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_MAD_TO_SD = 1.4826
_ROUNDS = 3
_EVALUATIONS = 100
_STEP = 1e-3
"""Relative step of the derivatives: models with a best-of choice inside are not smooth on finer scales."""
_SCALE = 0.1
"""Log residual at which the soft L1 loss passes from quadratic to linear."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit found.

    Attributes:
        parameters: value by name.
        standard_errors: one standard deviation by name, in the parameter's own unit; infinite where the samples do not
            determine the parameter, and zero where it lies on a bound.
        quantiles: log(model / measured) of all samples by quantile, rejected ones included.
        spread: robust standard deviation of those residuals.
        rejected: positions of the samples that were set aside.
        samples: how many samples the final round used.
    """

    parameters: Mapping[str, float]
    standard_errors: Mapping[str, float]
    quantiles: Mapping[float, float]
    spread: float
    rejected: tuple[int, ...]
    samples: int

    def interval(self, name: str, width: float = 1.96) -> tuple[float, float]:
        """Confidence interval of one parameter, `width` standard errors to each side."""
        error = width * self.standard_errors[name]
        return self.parameters[name] - error, self.parameters[name] + error


def fit(
    model: Model[X],
    x: Sequence[X],
    y: Sequence[float],
    start: Mapping[str, float],
    bounds: Bounds,
    *,
    reject: float = REJECT,
) -> Fit:
    """Parameters of `model` that bring it closest to the measured `y` at `x`.

    Args:
        model: takes parameters and all of `x`, and returns the predicted `y` for each.
        x: samples, of whatever kind the model takes.
        y: measured values, all positive (seconds, bytes/s ...).
        start: first guess by name; it says which parameters exist.
        bounds: lowest and highest value by name. A parameter whose lowest value is positive moves on a log scale.
        reject: robust standard deviations beyond which a sample is set aside.

    Raises:
        InputError: fewer samples than parameters, lengths that differ, a value that is not positive and finite, a start
            outside its bounds, or a model that is not positive and finite at the start.
    """
    names = tuple(start)
    _check(x, y, start, bounds)
    measured = np.log(np.asarray(y, dtype=np.float64))
    logs = np.array([bounds[name][0] > 0.0 for name in names])
    low = _to_scale(np.array([bounds[name][0] for name in names]), logs)
    high = _to_scale(np.array([bounds[name][1] for name in names]), logs)
    place = np.clip(_to_scale(np.array([start[name] for name in names], dtype=np.float64), logs), low, high)

    def residuals(scaled: Array) -> Array:
        values = _from_scale(scaled, logs)
        predicted = np.asarray(model(dict(zip(names, values.tolist(), strict=True)), x), dtype=np.float64)
        if not (np.all(np.isfinite(predicted)) and np.all(predicted > 0.0)):
            raise InputError(
                f"the model is not positive and finite at {dict(zip(names, values.tolist(), strict=True))}"
            )
        return np.log(predicted) - measured

    kept = np.ones(len(measured), dtype=bool)
    for last in (False,) * (_ROUNDS - 1) + (True,):
        found = least_squares(
            lambda scaled, kept=kept: residuals(scaled)[kept],
            place,
            bounds=(low, high),
            loss="soft_l1",
            f_scale=_SCALE,
            x_scale="jac",
            diff_step=_STEP,
            max_nfev=_EVALUATIONS,
        )
        place = found.x
        left = residuals(place)
        now = np.abs(left - np.median(left[kept])) <= reject * max(_robust_sd(left[kept]), 1e-12)
        if last or np.array_equal(now, kept) or now.sum() <= len(names):
            break
        kept = now
    left = residuals(place)
    errors = _standard_errors(found.jac, left[kept], place, low, high, logs)
    return Fit(
        parameters=dict(zip(names, _from_scale(place, logs).tolist(), strict=True)),
        standard_errors=dict(zip(names, errors.tolist(), strict=True)),
        quantiles={level: float(np.quantile(left, level)) for level in QUANTILES},
        spread=_robust_sd(left),
        rejected=tuple(int(i) for i in np.flatnonzero(~kept)),
        samples=int(kept.sum()),
    )


def _check(x: Sequence[X], y: Sequence[float], start: Mapping[str, float], bounds: Bounds) -> None:
    """Refuse what cannot be fitted, with one sentence."""
    if len(x) != len(y):
        raise InputError(f"a fit needs one measurement per sample, got {len(x)} samples and {len(y)} measurements")
    if len(y) <= len(start):
        raise InputError(f"a fit of {len(start)} parameters needs more than {len(y)} measurements; measure more sizes")
    for position, value in enumerate(y):
        if not (math.isfinite(value) and value > 0.0):
            raise InputError(f"measurement {position} is {value}; a fit needs positive finite values")
    for name, value in start.items():
        lowest, highest = bounds[name]
        if not lowest <= value <= highest:
            raise InputError(f"the start of {name}, {value}, is outside its bounds {lowest} to {highest}")


def _to_scale(values: Array, logs: NDArray[np.bool_]) -> Array:
    """Parameters as the optimiser moves them: logarithms where the bounds are positive."""
    return np.where(logs, np.log(np.where(logs, values, 1.0)), values)


def _from_scale(scaled: Array, logs: NDArray[np.bool_]) -> Array:
    """Back from the optimiser's scale."""
    return np.where(logs, np.exp(np.where(logs, scaled, 0.0)), scaled)


def _robust_sd(values: Array) -> float:
    """Standard deviation from the median absolute deviation, which outliers do not move."""
    return float(_MAD_TO_SD * np.median(np.abs(values - np.median(values))))


def _standard_errors(
    jacobian: Array, left: Array, place: Array, low: Array, high: Array, logs: NDArray[np.bool_]
) -> Array:
    """Standard errors from the curvature at the solution, over the parameters that are not on a bound.

    The Jacobian that the optimiser returns is already weighted by the loss, so it is used as it is.
    """
    free = (place - low > 1e-6 * (high - low)) & (high - place > 1e-6 * (high - low))
    errors = np.zeros(len(place))
    if free.any():
        part = jacobian[:, free]
        curvature = part.T @ part
        variance = float(np.mean(np.square(left))) * len(left) / max(len(left) - int(free.sum()), 1)
        blind = np.diag(curvature) <= 1e-12 * max(float(np.diag(curvature).max()), 1e-300)
        covariance = np.linalg.pinv(curvature, hermitian=True) * variance
        errors[free] = np.where(blind, np.inf, np.sqrt(np.clip(np.diag(covariance), 0.0, None)))
    return np.where(logs, errors * np.exp(np.where(logs, place, 0.0)), errors)
