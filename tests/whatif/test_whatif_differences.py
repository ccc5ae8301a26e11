"""The error bar of a difference: errors that both sides share cancel, others add up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.planner.predict import Move
from stowplan.whatif.differences import difference
from stowplan.whatif.outcome import FIGURES, Outcome

_Z80 = 1.2815515655446004


def outcome(decode: float, moves: dict[str, tuple[str, float]], **more: object) -> Outcome:
    figures = dict.fromkeys(FIGURES, 1.0) | {"decode_tokens_per_s": decode, "tpot_s": 1 / decode, "ttft_s": 2.0}
    found = Outcome(
        figures=figures,
        plan={"system": "llama.cpp", "model": "m", "quant": "q", "machine": "x", "workload": {"generate": 10}},
        moves=tuple(Move(name, source, 0.1, move, move) for name, (source, move) in moves.items()),
        hardware=("gpu", "cpu"),
    )
    return replace(found, **more)  # type: ignore[arg-type]


def deviation(a: Outcome, b: Outcome, figure: str = "decode_tokens_per_s") -> float:
    found = difference(a, b, figure)
    assert found is not None
    return math.log(found.high / found.ratio) / _Z80


@given(st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_shared_errors_cancel_and_others_add_up(mine: float, theirs: float) -> None:
    a = outcome(5.0, {"host.dram": ("measured by A", mine)})
    shared = outcome(6.0, {"host.dram": ("measured by A", theirs)})
    scaled = outcome(6.0, {"host.dram": ("in proportion to: measured by A", theirs)})
    other = outcome(6.0, {"host.dram": ("measured by B", theirs)})
    assert deviation(a, shared) == pytest.approx(abs(mine - theirs), abs=1e-9)
    assert deviation(a, scaled) == pytest.approx(abs(mine - theirs), abs=1e-9)
    assert deviation(a, other) == pytest.approx(math.hypot(mine, theirs), abs=1e-9)
    assert deviation(a, outcome(6.0, {})) == pytest.approx(mine, abs=1e-9)


def test_the_ratio_is_of_the_figures_and_its_interval_goes_both_ways() -> None:
    a, b = outcome(5.0, {"x": ("s", 0.2)}), outcome(10.0, {"x": ("t", 0.1)})
    there, back = difference(a, b, "decode_tokens_per_s"), difference(b, a, "decode_tokens_per_s")
    assert there is not None and back is not None
    assert (there.ratio, back.ratio) == (2.0, 0.5)
    assert there.low == pytest.approx(1 / back.high)
    assert there.certain and back.certain
    close = difference(a, outcome(5.5, {"x": ("t", 0.1)}), "decode_tokens_per_s")
    assert close is not None and not close.certain


def test_the_same_plan_differs_by_less_than_two_runs_and_two_runs_by_less_than_strangers() -> None:
    spread = {"model_sd": (0.15, 0.25)}
    a = outcome(5.0, {"host.dram": ("s", 0.1)}, **spread)
    like = outcome(6.0, {"host.dram": ("s", 0.1)}, **spread)
    faster = outcome(6.0, {"host.dram": ("given", 0.0)}, **spread)
    other_gpu = outcome(6.0, {"host.dram": ("s", 0.1)}, hardware=("other", "cpu"), **spread)
    stranger = replace(other_gpu, plan={**(other_gpu.plan or {}), "model": "n"})
    sds = [deviation(a, each) for each in (like, faster, other_gpu, stranger)]
    assert sds[0] < min(sds[1:])
    assert deviation(a, stranger) == pytest.approx(0.15 * math.sqrt(2))
    assert sds[2] < sds[3]
    assert all(deviation(a, each, "ttft_s") > 0 for each in (like, faster, other_gpu, stranger))


def test_nothing_to_compare() -> None:
    assert difference(outcome(5.0, {}), Outcome(error="does not fit"), "decode_tokens_per_s") is None


def test_an_outcome_survives_being_stored() -> None:
    found = outcome(5.0, {"x": ("s", 0.2)}, interval={"decode_tokens_per_s": (4.0, 6.0)}, memory={"ram": (1.0, 2.0)})
    assert Outcome.parse(found.text) == found
    assert Outcome.parse(Outcome(error="no").text).error == "no"
