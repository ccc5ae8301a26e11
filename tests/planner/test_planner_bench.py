"""A bench only looks up: placements and plans come out to the last bit as without one, whatever was planned before."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.strategies import Case, llama_cpp_cases, model_of

from stowplan.errors import DoesNotFit
from stowplan.machines import load_machine
from stowplan.plan import Plan, Workload
from stowplan.planner.bench import Bench, BenchedLlamaCpp
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup, predict
from stowplan.planner.result import Planned, Request
from stowplan.systems import load_system
from stowplan.systems.base import Evaluation
from stowplan.systems.llama_cpp import LlamaCpp


def evaluated(system: LlamaCpp, case: Case) -> Evaluation | str:
    try:
        return system.evaluate(case.setup, case.plan)
    except DoesNotFit as error:
        return str(error)


@settings(deadline=None, max_examples=12)
@given(st.lists(llama_cpp_cases(), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_evaluations_are_the_same_to_the_last_bit(cases: list[Case], order: random.Random) -> None:
    benched = BenchedLlamaCpp(Bench())
    again = [case for case in cases for _ in range(2)]
    order.shuffle(again)
    for case in again:
        expected = evaluated(LlamaCpp(), case)
        assert evaluated(benched, case) == expected


@settings(deadline=None, max_examples=3)
@given(llama_cpp_cases(models=["llama-3.1-8b"], most_gpus=2))
def test_intervals_are_the_same(case: Case) -> None:
    assume(isinstance(evaluated(LlamaCpp(), case), Evaluation))
    bench = BenchedLlamaCpp(Bench())
    first, second = predict(case.setup, case.plan, bench), predict(case.setup, case.plan, bench)
    assert first == second == predict(case.setup, case.plan, LlamaCpp())


def plan_on(changes: tuple[str, ...], workload: Workload, bench: Bench | None, *, alternatives: bool) -> Planned:
    model = model_of("qwen3-30b-a3b", "q4_k_m")
    setup = make_setup(load_machine("rtx-3060-desktop-32", changes), model, load_system("llama.cpp"))
    request = Request(setup, ("qwen3-30b-a3b", "q4_k_m"), workload, bench=bench, alternatives=alternatives)
    return plan_for("llama.cpp", request)


def told(planned: Planned) -> tuple[Plan, float, dict[str, object]]:
    """All of an answer but how long the solver took."""
    prediction = planned.prediction.model_dump(exclude={"solver"})
    return planned.plan, planned.cost, prediction


@pytest.mark.parametrize("order", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_plans_do_not_depend_on_what_was_planned_before(order: int) -> None:
    asked = [
        (("gpu.memory=8GiB",), Workload(prompt=2048, generate=64)),
        (("memory.bandwidth=60GB/s",), Workload(prompt=2048, generate=64)),
        (("gpu.memory=16GiB", "memory.capacity=12GiB"), Workload(prompt=100, generate=64, context=16384)),
        ((), Workload(prompt=2048, generate=64, batch=4)),
    ]
    random.Random(order).shuffle(asked)
    bench = Bench()
    for changes, workload in asked:
        shared = told(plan_on(changes, workload, bench, alternatives=False))
        assert shared == told(plan_on(changes, workload, None, alternatives=True))


def test_the_winner_alone_has_no_runners_up() -> None:
    planned = plan_on((), Workload(prompt=2048), None, alternatives=False)
    assert planned.alternatives == []
    assert planned.moves
    assert planned.programme is not None
    spread = math.fsum(move.decode**2 for move in planned.moves)
    assert spread > 0
