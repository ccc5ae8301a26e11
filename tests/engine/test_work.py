"""Algebra, roofline and refusals of work vectors."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import SimulationError
from stowplan.work import Work

RATES = {"gpu0.compute": 1.0, "gpu0.hbm": 2e12, "gpu0.h2d": 25e9, "host.cores": 16.0}
AMOUNTS = st.dictionaries(st.sampled_from(sorted(RATES)), st.floats(0.0, 1e12), max_size=4)
WORKS = st.builds(Work, AMOUNTS, st.floats(0.0, 10.0))
PROPERTY = settings(deadline=None, max_examples=100)


def close(left: Work, right: Work) -> bool:
    names = set(left.amounts) | set(right.amounts)
    return math.isclose(left.overhead_s, right.overhead_s, rel_tol=1e-12, abs_tol=1e-300) and all(
        math.isclose(left.amounts.get(name, 0.0), right.amounts.get(name, 0.0), rel_tol=1e-12, abs_tol=1e-300)
        for name in names
    )


@PROPERTY
@given(WORKS, WORKS, WORKS)
def test_addition_is_commutative_associative_and_has_a_zero(a: Work, b: Work, c: Work) -> None:
    assert a + b == b + a
    assert close((a + b) + c, a + (b + c))
    assert a + Work.zero == a
    assert sum([a, b, c], start=Work.zero) == a + b + c


@PROPERTY
@given(WORKS, WORKS, st.floats(0.0, 1e3))
def test_scaling_distributes_and_scales_the_time(a: Work, b: Work, factor: float) -> None:
    assert factor * a == a * factor
    assert close((a + b) * factor, a * factor + b * factor)
    assert a * 1 == a
    assert a * 0 == Work.zero
    assert math.isclose((a * factor).alone_s(RATES), factor * a.alone_s(RATES), rel_tol=1e-12, abs_tol=1e-300)


@PROPERTY
@given(WORKS, WORKS)
def test_the_sum_takes_no_longer_than_one_after_the_other(a: Work, b: Work) -> None:
    together = (a + b).alone_s(RATES)
    assert together <= (a.alone_s(RATES) + b.alone_s(RATES)) * (1 + 1e-12)
    assert together >= max(a.alone_s(RATES), b.alone_s(RATES)) * (1 - 1e-12)


@PROPERTY
@given(AMOUNTS, st.floats(0.0, 10.0))
def test_content_alone_decides_equality_and_hash(amounts: dict[str, float], overhead_s: float) -> None:
    work = Work(amounts, overhead_s)
    turned_round = Work({**dict(reversed(amounts.items())), "host.cores": amounts.get("host.cores", 0)}, overhead_s)
    assert work == turned_round
    assert hash(work) == hash(turned_round)
    assert copy.deepcopy(work) == work
    assert list(work.amounts) == sorted(name for name, amount in amounts.items() if amount > 0)


def test_the_roofline_is_the_slowest_resource_after_the_overhead() -> None:
    work = Work({"gpu0.h2d": 50e9, "gpu0.hbm": 2e12}, overhead_s=0.5)
    assert work.alone_s(RATES) == 2.5
    assert work.limiting(RATES) == "gpu0.h2d"
    assert (work + Work({}, 3.0)).limiting(RATES) == "overhead"
    assert Work({}, 1e-6).limiting(RATES) == "overhead"
    assert Work.zero.limiting(RATES) is None
    assert Work.zero.alone_s(RATES) == 0.0


def test_amounts_cannot_be_changed() -> None:
    given_amounts = {"gpu0.hbm": 1.0}
    work = Work(given_amounts)
    given_amounts["gpu0.hbm"] = 2.0
    assert work.amounts == {"gpu0.hbm": 1.0}
    with pytest.raises(TypeError):
        work.amounts["gpu0.hbm"] = 3.0  # type: ignore[index]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
def test_bad_amounts_are_refused_with_their_value(value: float) -> None:
    with pytest.raises(SimulationError, match=rf"gpu0\.hbm.*{value}"):
        Work({"gpu0.hbm": value})
    with pytest.raises(SimulationError, match=rf"overhead.*{value}"):
        Work({}, value)
    with pytest.raises(SimulationError, match=rf"{value}|nan|inf"):
        Work({"gpu0.hbm": 1.0}) * value


def test_sums_that_overflow_are_refused() -> None:
    huge = Work({"gpu0.hbm": 1.7e308})
    with pytest.raises(SimulationError, match=r"gpu0\.hbm.*inf"):
        huge + huge
    with pytest.raises(SimulationError, match="never ends"):
        huge.alone_s({"gpu0.hbm": 1e-3})


def test_unknown_resources_and_bad_rates_are_refused() -> None:
    work = Work({"gpu1.hbm": 5.0})
    with pytest.raises(SimulationError, match=r"'gpu1\.hbm', which has no rate; known: gpu0"):
        work.alone_s(RATES)
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SimulationError, match=f"rate must be positive and finite, but it is {rate}"):
            work.limiting({"gpu1.hbm": rate})


def test_only_work_adds_to_work_and_only_numbers_scale_it() -> None:
    with pytest.raises(TypeError):
        Work.zero + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        Work.zero * "2"  # type: ignore[operator]
