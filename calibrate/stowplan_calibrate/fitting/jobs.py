"""One fit of one kernel on one GPU: half of its shapes go into the fit, the other half judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan_calibrate.fitting.robust import QUANTILES, Fit, fit

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Specs = Mapping[str, tuple[float, float, float]]
"""Start, lowest and highest value of each parameter."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fitted.

    Attributes:
        kernel_class, dtype: where the parameters belong, such as gemm and bf16.
        kernel: the kernels that were measured, as the engine names them.
        seconds: measured times.
        shape: variables by name; samples with equal values are one shape and stay on one side of the split.
        evaluate: predicted seconds of the samples at some positions, from parameters and facts by name.
        specs: parameters to fit.
        fixed: parameters that these samples cannot determine, with the values that they keep.
        variants: facts to choose between (tiles of a kernel, limits of a protocol); the best on the fitted half stays.
    """

    kernel_class: str
    dtype: str
    kernel: str
    seconds: Array
    shape: Mapping[str, Array]
    evaluate: Callable[[Mapping[str, Any], Index], Array]
    specs: Specs
    fixed: Mapping[str, float]
    variants: tuple[Mapping[str, Any], ...] = ({},)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out.

    Attributes:
        job: what was fitted.
        fit: parameters and their confidence. facts: the variant that was chosen.
        residuals: log(predicted / measured) of the shapes outside the fit.
        fitted_on: samples in the fit.
    """

    job: Job
    fit: Fit
    facts: Mapping[str, Any]
    residuals: Array
    fitted_on: int

    @property
    def values(self) -> dict[str, Any]:
        """Fitted and fixed parameters and facts by name, as the form takes them."""
        return {**self.job.fixed, **self.facts, **self.fit.parameters}

    @property
    def errors(self) -> Array:
        """Absolute relative errors of the shapes outside the fit."""
        return np.abs(np.expm1(self.residuals))

    @property
    def spread(self) -> float:
        """Robust standard deviation of the residuals outside the fit."""
        return float(1.4826 * np.median(np.abs(self.residuals)))

    def quantiles(self) -> dict[float, float]:
        """Residuals outside the fit by quantile: the prediction interval."""
        return {level: float(np.quantile(self.residuals, level)) for level in QUANTILES}


def split_shapes(shape: Mapping[str, Array], seed: int) -> tuple[Index, Index]:
    """Positions of the samples in the fit, and of those outside it: a random half of the distinct shapes each."""
    table = np.stack([np.asarray(values, dtype=np.float64) for values in shape.values()], axis=1)
    distinct, member = np.unique(table, axis=0, return_inverse=True)
    inside = np.zeros(len(distinct), dtype=bool)
    inside[np.random.default_rng(seed).permutation(len(distinct))[: len(distinct) // 2]] = True
    chosen = inside[member.reshape(-1)]
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def run(job: Job, seed: int, most: int | None = None) -> Outcome:
    """Fit a job on half of its shapes and judge it on the other half.

    Args:
        job: what to fit.
        seed: of the split.
        most: fit and judge on at most this many samples each, for a quick look.

    Raises:
        InputError: too few samples.
    """
    inside, outside = split_shapes(job.shape, seed)
    if most is not None:
        inside, outside = _thinned(inside, most), _thinned(outside, most)
    start = {name: spec[0] for name, spec in job.specs.items()}
    bounds = {name: spec[1:] for name, spec in job.specs.items()}
    best: tuple[float, Fit, Mapping[str, Any]] | None = None
    for facts in job.variants:

        def model(parameters: Mapping[str, float], at: Sequence[int], facts: Mapping[str, Any] = facts) -> Array:
            return job.evaluate({**job.fixed, **facts, **parameters}, np.asarray(at, dtype=np.int64))

        found = fit(model, inside.tolist(), job.seconds[inside].tolist(), start, bounds)
        left = np.log(model(found.parameters, inside.tolist())) - np.log(job.seconds[inside])
        loss = float(np.mean(np.sqrt(1.0 + np.square(left / 0.1)) - 1.0))
        if best is None or loss < best[0]:
            best = loss, found, facts
    assert best is not None
    _, chosen, facts = best
    predicted = job.evaluate({**job.fixed, **facts, **chosen.parameters}, outside)
    return Outcome(job, chosen, facts, np.log(predicted) - np.log(job.seconds[outside]), len(inside))


def _thinned(positions: Index, most: int) -> Index:
    """At most `most` positions, evenly spread."""
    return positions[:: max(1, -(-len(positions) // most))]
