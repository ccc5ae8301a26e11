"""The Pareto front against the definition; break-even points against plans on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import BadQuantity, InputError, UnknownName
from stowplan.whatif.front import WISHES, front, wishes
from stowplan.whatif.outcome import FIGURES, Outcome
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.until import break_even, parse_range, parse_target
from stowplan.whatif.workshop import Workshop

NAMES = ("throughput", "latency", "memory")


def made(decode: int, first: int, memory: int, price: float | None = None) -> Outcome:
    figures = dict.fromkeys(FIGURES, 1.0) | {"decode_tokens_per_s": float(decode), "ttft_s": float(first)}
    return Outcome(figures=figures, memory={"gpu0": (float(memory), 100.0)}, price_usd=price)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.builds(made, *[st.integers(1, 4)] * 3), max_size=12))
def test_the_front_is_what_nothing_beats(outcomes: list[Outcome]) -> None:
    def values(outcome: Outcome) -> list[float]:
        found = []
        for wish in wishes(NAMES):
            value = wish.value(outcome)
            assert value is not None
            found.append(-value if wish.most else value)
        return found

    def beaten(mine: Outcome) -> bool:
        return any(
            values(other) != values(mine) and all(x <= y for x, y in zip(values(other), values(mine), strict=True))
            for other in outcomes
        )

    assert front(outcomes, NAMES) == [k for k, each in enumerate(outcomes) if not beaten(each)]


def test_what_has_no_plan_is_on_no_front_and_unknown_prices_do_not_count() -> None:
    outcomes = [made(2, 1, 1, 100.0), Outcome(error="does not fit"), made(1, 1, 1)]
    assert front(outcomes, ("throughput", "cost")) == [0]
    assert front([Outcome(error="no")]) == []
    with pytest.raises(UnknownName, match="latency"):
        wishes(["latncy"])
    assert set(WISHES) == {"throughput", "latency", "step", "memory", "cost"}


BASE = Scenario(model="llama-3.3-70b", quant="q4_k_m", machine="rtx-4090-desktop-128")


@pytest.mark.parametrize(
    ("until", "vary"), [("decode=10", "gpu.memory=24GiB:64GiB"), ("ttft=600ms", "gpu.memory=24GiB:64GiB")]
)
def test_the_least_that_reaches_a_target(until: str, vary: str) -> None:
    shop, target = Workshop(), parse_target(until)
    found = break_even(BASE, target, parse_range(vary), shop.outcome)
    assert found.value is not None and found.short is not None
    assert target.reached(found.outcome)
    assert not target.reached(found.short[1])
    enough, short = (float(text.removesuffix("GiB")) for text in (found.value, found.short[0]))
    assert short < enough <= short * 1.011
    assert found.tried < 12
    assert shop.outcome(BASE.with_change("gpu.memory", found.value)).text == found.outcome.text


def falling(scenario: Scenario) -> Outcome:
    """A machine on which decode is 1000 / context."""
    figures = dict.fromkeys(FIGURES, 1.0) | {"decode_tokens_per_s": 1000 / scenario.asked.capacity}
    return replace(made(1, 1, 1), figures=figures)


def test_the_most_context_that_still_reaches_a_target() -> None:
    small = BASE.with_workload("prompt", 10).with_workload("generate", 10)
    found = break_even(small, parse_target("decode=10"), parse_range("context=20:5000"), falling)
    assert found.value == "100"
    assert found.short is not None and found.short[0] == "101"


def test_out_of_reach_and_reached_everywhere() -> None:
    far = break_even(BASE, parse_target("decode=1e6"), parse_range("gpu.memory"), lambda _: made(5, 1, 1))
    assert far.value is None and far.tried == 1
    near = break_even(BASE, parse_target("decode=1"), parse_range("gpu.memory"), lambda _: made(5, 1, 1))
    assert near.value == near.ends[0] and near.short is None


@pytest.mark.parametrize(
    ("until", "words"), [("speed=3", "decode=10"), ("decode=ten", "number"), ("decode=-1", "above"), ("ttft=2", "unit")]
)
def test_a_wrong_target(until: str, words: str) -> None:
    with pytest.raises((InputError, BadQuantity), match=words):
        parse_target(until)


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ("quant", "is a name"),
        ("gpu.price", "from where to where"),
        ("gpu.memory=8GiB", "path=from:to"),
        ("gpu.memory=8GiB:4GiB", "upwards"),
        ("gpu.memroy", "gpu.memory"),
    ],
)
def test_a_wrong_range(vary: str, words: str) -> None:
    with pytest.raises((InputError, UnknownName), match=words):
        parse_range(vary)
