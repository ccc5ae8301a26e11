"""Errors of groups of rows: distributions in which every record counts once, however many points it has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stowplan.validate.rows import Z80, Row

AIM = 0.825
"""Share of measurements that an 80 % interval should hold: the middle of 75 to 90 %."""

_LEFT_OUT = 0.2


@dataclass(frozen=True, slots=True)
class Errors:
    """Distribution of the relative errors of a group.

    Attributes:
        name: the group.
        n: measured figures; records: records that they come from; hardware: kinds of hardware.
        median_signed_error: median of predicted / measured - 1.
        median_abs_error, p90_abs_error: of the absolute relative error.
        interval_coverage: share of measurements inside the predicted 80 % interval, None where none has one.
        interval_spread: median standard deviation of the logarithm that the intervals claim.
        wanted_spread: the one with which `AIM` of the measurements would lie inside, all intervals widened alike.
        interval_score: mean interval score of the logarithms (Gneiting and Raftery 2007, section 6.2): the width, plus
            two over the share left out times what a measurement is outside by. Widening alone does not better it.
        target_median: what the median absolute error should be at most, None where nothing was promised.
    """

    name: str
    n: int
    records: int
    hardware: int
    median_signed_error: float
    median_abs_error: float
    p90_abs_error: float
    interval_coverage: float | None
    interval_spread: float | None
    wanted_spread: float | None
    target_median: float | None = None
    interval_score: float | None = None


def record_weights(rows: Sequence[Row]) -> list[float]:
    """One over the number of points that a row's record has among the rows."""
    points = Counter(row.record for row in rows)
    return [1.0 / points[row.record] for row in rows]


def errors(name: str, rows: Sequence[Row], target_median: float | None = None) -> Errors:
    """Distribution of a group that is not empty."""
    weights = record_weights(rows)
    bounded = [
        (row.covered, row.spread, row.deviation, weight)
        for row, weight in zip(rows, weights, strict=True)
        if row.covered is not None and row.spread and row.deviation is not None
    ]
    coverage = spread = wanted = score = None
    if bounded:
        held = [weight for *_, weight in bounded]
        coverage = math.fsum(w for inside, _, _, w in bounded if inside) / math.fsum(held)
        spread = median([claimed for _, claimed, _, _ in bounded if claimed], held)
        score = math.fsum(w * _interval_score(claimed, away) for _, claimed, away, w in bounded) / math.fsum(held)
        wanted = spread * quantile([away for _, _, away, _ in bounded if away is not None], held, AIM)
    return Errors(
        name=name,
        n=len(rows),
        records=len({row.record for row in rows}),
        hardware=len({row.hardware for row in rows}),
        median_signed_error=median([row.ratio - 1.0 for row in rows], weights),
        median_abs_error=median([row.error for row in rows], weights),
        p90_abs_error=quantile([row.error for row in rows], weights, 0.9),
        interval_coverage=coverage,
        interval_spread=spread,
        wanted_spread=wanted,
        target_median=target_median,
        interval_score=score,
    )


def _interval_score(spread: float, deviation: float) -> float:
    """Score of an 80 % interval of this standard deviation, missed by `deviation` half widths."""
    half = Z80 * spread
    return 2 * half + 2 / _LEFT_OUT * half * max(0.0, deviation - 1.0)


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by family, families in alphabetical order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.family, []).append(row)
    return {name: groups[name] for name in sorted(groups)}


def median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Middle value; the mean of both where the weight divides evenly between two."""
    negated = quantile([-value for value in values], weights, 0.5)
    return (quantile(values, weights, 0.5) - negated) / 2


def quantile(values: Sequence[float], weights: Sequence[float], share: float) -> float:
    """Smallest value below which at least `share` of the weight lies; the values are not empty."""
    ordered = sorted(zip(values, weights, strict=True))
    wanted, gathered = share * math.fsum(weights), 0.0
    for value, weight in ordered:
        gathered += weight
        if gathered >= wanted * (1 - 1e-12):
            return value
    return ordered[-1][0]
