"""Of what the residuals of predictions are made: spreads between sources, between records and within a record.

Write ``log(measured / predicted) = g + s + r + e`` with errors ``g`` of known size (the figures' own), an error ``s``
that all measurements of one source share (somebody's builds, settings and way of measuring), ``r`` of one record and
``e`` of one figure. Optionally ``a n`` is added, where ``n`` is shared by a group that no constant was fitted on and
``a`` is the group's share of the time. Everything has mean 0: predictions are meant to be right as they are. The
spreads maximise the normal likelihood; residuals beyond `CLIP` deviations count as if they were there, so that no
single failure sets a spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtri, stdtrit

CLIP = 2.5
_ROUNDS = 6
_SMALLEST, _LARGEST, _START = 0.01, 1.0, 0.1
_RIDGE = 1e-6

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One residual.

    Attributes:
        residual: log of measured over predicted.
        source, record, situation: what it shares errors with; spreads of records and figures are by situation.
        known: errors of known size by name; samples with the same name share the error.
        group, share: a group that no constant was fitted on and its share of the time; None where there is none.
    """

    residual: float
    source: str
    record: str
    situation: str
    known: Mapping[Hashable, float] = field(default_factory=dict)
    group: str | None = None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Components:
    """Standard deviations of the logarithm.

    Attributes:
        source: between sources.
        record, figure: between records of a source and between figures of a record, by situation.
        group: between groups that no constant was fitted on; None where no sample has one.
        sources, groups: how many there were.
    """

    source: float
    record: Mapping[str, float]
    figure: Mapping[str, float]
    group: float | None
    sources: int
    groups: int

    def total(self, situation: str) -> float:
        """Spread of one figure of a source and record that nothing is known of."""
        return math.sqrt(self.source**2 + self.record[situation] ** 2 + self.figure[situation] ** 2)


def widened(spread: float, groups: int) -> float:
    """A spread estimated from few groups, so that +-1.28 of it hold what 80 % of Student's t do."""
    return spread * float(stdtrit(groups - 1, 0.9) / ndtri(0.9))


def components(samples: Sequence[Sample]) -> Components:
    """Spreads of at least two samples, by maximum likelihood."""
    situations = sorted({each.situation for each in samples})
    parts: dict[tuple[str, str], Matrix] = {("source", ""): _shared(samples, lambda each: each.source)}
    records = _shared(samples, lambda each: each.record)
    for name in situations:
        mine = np.array([float(each.situation == name) for each in samples])
        parts["record", name] = records * np.outer(mine, mine)
        parts["figure", name] = np.diag(mine)
    new = np.array([0.0 if each.group is None else each.share for each in samples])
    if new.any():
        parts["group", ""] = _shared(samples, lambda each: each.group) * np.outer(new, new)
    found = dict(zip(parts, _fitted(samples, list(parts.values())), strict=True))
    return Components(
        source=found["source", ""],
        record={name: found["record", name] for name in situations},
        figure={name: found["figure", name] for name in situations},
        group=found.get(("group", "")),
        sources=len({each.source for each in samples}),
        groups=len({each.group for each in samples} - {None}),
    )


def _shared(samples: Sequence[Sample], key: Callable[[Sample], Hashable]) -> Matrix:
    """Ones where two samples share an error."""
    names = [key(each) for each in samples]
    numbers = np.array([names.index(name) for name in names])
    same: Matrix = (numbers[:, None] == numbers[None, :]).astype(float)
    return same


def _known(samples: Sequence[Sample]) -> Matrix:
    """Covariance of the errors of known size, and a little on the diagonal that keeps it definite."""
    names = sorted({name for each in samples for name in each.known}, key=str)
    sizes = np.array([[each.known.get(name, 0.0) for name in names] for each in samples]).reshape(len(samples), -1)
    covariance: Matrix = sizes @ sizes.T + _RIDGE * np.eye(len(samples))
    return covariance


def _fitted(samples: Sequence[Sample], parts: list[Matrix]) -> list[float]:
    """Standard deviations of the parts, from residuals that are clipped at what they come to."""
    measured = np.array([each.residual for each in samples])
    known = _known(samples)
    logs = np.full(len(parts), math.log(_START))
    clipped = measured
    for _ in range(_ROUNDS):
        solution = minimize(
            _unlikely,
            logs,
            args=(clipped, known, parts),
            jac=True,
            method="L-BFGS-B",
            bounds=[(math.log(_SMALLEST), math.log(_LARGEST))] * len(parts),
        )
        logs = solution.x
        bound = CLIP * np.sqrt(np.diag(_covariance(logs, known, parts)))
        clipped = np.clip(measured, -bound, bound)
    return [math.exp(each) for each in logs]


def _covariance(logs: Matrix, known: Matrix, parts: list[Matrix]) -> Matrix:
    total = known.copy()
    for each, part in zip(logs, parts, strict=True):
        total += math.exp(2 * each) * part
    return total


def _unlikely(logs: Matrix, residuals: Matrix, known: Matrix, parts: list[Matrix]) -> tuple[float, Matrix]:
    """Negative log likelihood, but for a constant, and its derivatives by the logarithms of the deviations."""
    covariance = _covariance(logs, known, parts)
    inverse = np.linalg.inv(covariance)
    pulled = inverse @ residuals
    value = 0.5 * float(residuals @ pulled + np.linalg.slogdet(covariance)[1])
    slopes = [
        math.exp(2 * each) * float((inverse * part).sum() - pulled @ part @ pulled)
        for each, part in zip(logs, parts, strict=True)
    ]
    return value, np.array(slopes)
