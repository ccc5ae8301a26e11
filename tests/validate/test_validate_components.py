"""Spreads of residuals: they are found again in residuals that were made with them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal, t

from stowplan.validate.components import Sample, components, widened

_SIZES = {"gpu": (0.08, 0.03), "host": (0.2, 0.05)}


def made(seed: int, *, source: float = 0.3, group: float = 0.3, figures: float = 0.0) -> list[Sample]:
    """Residuals of 24 sources with 2 records of 2 figures each; every other source runs on a new group of its own."""
    random = np.random.default_rng(seed)
    samples = []
    for number in range(24):
        shared, new = random.normal(0, source), random.normal(0, group)
        of_figures = random.normal(0, figures)
        for record in range(2):
            situation = "gpu" if (number // 2 + record) % 2 else "host"
            of_record = random.normal(0, _SIZES[situation][0])
            share = (0.5, 1.0)[record]
            for _ in range(2):
                residual = shared + of_record + of_figures + random.normal(0, _SIZES[situation][1])
                samples.append(
                    Sample(
                        residual=residual + (share * new if number % 2 else 0.0),
                        source=f"s{number}",
                        record=f"s{number}/{record}",
                        situation=situation,
                        known={f"figures {number}": figures} if figures else {},
                        group=f"g{number}" if number % 2 else None,
                        share=share,
                    )
                )
    return samples


def test_spreads_are_found_again() -> None:
    found = [components(made(seed)) for seed in range(4)]
    assert np.mean([each.source for each in found]) == pytest.approx(0.3, rel=0.25)
    assert np.mean([each.group for each in found]) == pytest.approx(0.3, rel=0.3)
    for name, (record, figure) in _SIZES.items():
        assert np.mean([each.record[name] for each in found]) == pytest.approx(record, rel=0.3)
        assert np.mean([each.figure[name] for each in found]) == pytest.approx(figure, rel=0.2)
    assert (found[0].sources, found[0].groups) == (24, 12)
    one = found[0]
    assert one.total("gpu") == pytest.approx(math.hypot(one.source, one.record["gpu"], one.figure["gpu"]))


def test_they_are_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the density of another library, with nothing clipped: no neighbour is likelier."""
    monkeypatch.setattr("stowplan.validate.components.CLIP", 1e9)
    samples = [replace(each, group=None) for each in made(0, group=0.0)]
    found = components(samples)

    def likelihood(source: float, record: float) -> float:
        covariance = np.zeros((len(samples), len(samples)))
        for i, a in enumerate(samples):
            for j, b in enumerate(samples):
                covariance[i, j] = (a.source == b.source) * source**2
                if a.record == b.record:
                    covariance[i, j] += (found.record[a.situation] * record) ** 2
                if i == j:
                    covariance[i, j] += found.figure[a.situation] ** 2
        return float(multivariate_normal(cov=covariance).logpdf([each.residual for each in samples]))

    best = likelihood(found.source, 1.0)
    around = [(1.15, 1.0), (0.85, 1.0), (1.0, 1.15), (1.0, 0.85)]
    assert all(likelihood(found.source * a, b) < best for a, b in around)


def test_errors_of_known_size_are_not_counted_twice() -> None:
    """Here they are shared just as a source's are: what is left are the sources' own."""
    samples = made(1, group=0.0, figures=0.2)
    told = components([replace(each, group=None) for each in samples])
    untold = components([replace(each, group=None, known={}) for each in samples])
    assert math.hypot(told.source, 0.2) == pytest.approx(untold.source, rel=0.01)
    assert told.source < 0.9 * untold.source


def test_one_failure_does_not_set_a_spread() -> None:
    samples = made(2, group=0.0)
    plain = components(samples)
    spoiled = components([replace(samples[0], residual=-5.0), *samples[1:]])
    situation = samples[0].situation
    assert spoiled.figure[situation] < 2 * plain.figure[situation]


def test_without_new_groups_there_is_no_spread_of_them() -> None:
    assert components([replace(each, group=None) for each in made(4)]).group is None


@pytest.mark.parametrize("groups", [2, 4, 8, 200])
def test_few_groups_widen_as_students_t(groups: int) -> None:
    assert widened(0.1, groups) == pytest.approx(0.1 * t.ppf(0.9, groups - 1) / 1.2815515655446004)
