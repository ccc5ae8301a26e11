"""How alike the residuals of like runs are, worked out again from published measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable
from itertools import combinations

import pytest

from stowplan.validate.validation import Filters, validate
from stowplan.whatif.differences import ALIKE

pytestmark = pytest.mark.slow


def correlation(groups: dict[Hashable, list[float]], variance: float) -> float:
    """One less half of the mean squared difference within groups over the variance; each group counts once."""
    within = [
        statistics.mean((x - y) ** 2 for x, y in combinations(values, 2))
        for values in groups.values()
        if len(values) > 1
    ]
    return 1 - statistics.mean(within) / (2 * variance)


def test_residuals_are_as_alike_as_the_differences_say() -> None:
    rows = [row for system in ("llama.cpp", "ik_llama.cpp") for row in validate(Filters(system=system)).rows]
    for figure, (same_run, same_pair, _) in ALIKE.items():
        records: dict[Hashable, list[float]] = {}
        pairs: dict[Hashable, list[float]] = {}
        for row in rows:
            if row.figure == figure and row.part != "fresh":
                residual = math.log(row.predicted / row.measured)
                records.setdefault(row.record, []).append(residual)
                pairs.setdefault((row.hardware, row.model), []).append(residual)
        between = statistics.pvariance([statistics.mean(values) for values in records.values()])
        variance = between + statistics.mean(statistics.pvariance(values) for values in records.values())
        assert correlation(records, variance) == pytest.approx(same_run, abs=0.08)
        assert correlation(pairs, variance) == pytest.approx(same_pair, abs=0.25)
