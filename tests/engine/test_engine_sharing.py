"""Fair shares against the definition of max-min fairness."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import Demand, demand_of, fair_shares
from stowplan.work import Work

RATES = {"a": 1.0, "b": 10.0, "c": 3.0, "d": 1e6}
SETS = st.lists(
    st.dictionaries(st.sampled_from(sorted(RATES)), st.floats(1e-3, 1e3), min_size=1, max_size=4),
    min_size=1,
    max_size=7,
)


def demands_of(amounts: list[dict[str, float]]) -> list[Demand]:
    return [demand_of(Work(each), RATES) for each in amounts]


@settings(deadline=None, max_examples=300)
@given(SETS)
def test_shares_meet_the_definition_of_max_min_fairness(amounts: list[dict[str, float]]) -> None:
    """Feasible, and each task is at full speed or on a full resource where nobody is faster: only one such point."""
    demands = demands_of(amounts)
    speeds = [share.speed for share in fair_shares(demands)]
    used = dict.fromkeys(RATES, 0.0)
    for demand, speed in zip(demands, speeds, strict=True):
        assert 0.0 < speed <= 1.0
        for name, fraction in demand.fractions:
            used[name] += speed * fraction
    assert max(used.values()) <= 1.0 + 1e-9
    for demand, share in zip(demands, fair_shares(demands), strict=True):
        assert share.limiter in dict(demand.fractions)
        if share.speed < 1.0:
            assert used[share.limiter] >= 1.0 - 1e-9
            rivals = [
                speed for other, speed in zip(demands, speeds, strict=True) if share.limiter in dict(other.fractions)
            ]
            assert share.speed >= max(rivals) - 1e-9


@settings(deadline=None, max_examples=100)
@given(SETS)
def test_the_order_of_the_tasks_does_not_matter(amounts: list[dict[str, float]]) -> None:
    demands = demands_of(amounts)
    forwards = fair_shares(demands)
    backwards = fair_shares(demands[::-1])[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert math.isclose(one.speed, other.speed, rel_tol=1e-9)


def test_a_task_off_the_full_resource_takes_what_the_others_leave() -> None:
    long_haul = Demand(1.0, "a", (("a", 1.0), ("b", 0.5)))
    on_a = Demand(1.0, "a", (("a", 1.0),))
    on_b = Demand(1.0, "b", (("b", 1.0),))
    shares = fair_shares([long_haul, on_a, on_b])
    assert [share.speed for share in shares] == [0.5, 0.5, 0.75]
    assert [share.limiter for share in shares] == ["a", "a", "b"]


def test_tasks_on_different_resources_do_not_slow_each_other() -> None:
    shares = fair_shares(demands_of([{"a": 1.0}, {"b": 2.0}, {"c": 3.0}]))
    assert [share.speed for share in shares] == [1.0, 1.0, 1.0]


def test_work_too_small_to_take_any_time_asks_for_nothing() -> None:
    assert demand_of(Work({"d": 5e-324}), RATES) == Demand(0.0, "", ())
    assert demand_of(Work.zero, RATES) == Demand(0.0, "", ())
