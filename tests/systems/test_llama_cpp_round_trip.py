"""The command that is written for a plan means that plan: read back, it takes the same time and memory."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import HealthCheck, given, settings
from tests.strategies import Case, llama_cpp_cases, setup_of

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.ops import EXPERT_PARTS, Part
from stowplan.plan import Plan, Workload
from stowplan.planner.commands import Hints, understand
from stowplan.systems.base import RAM, Evaluation, Setup
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

SYSTEM = LlamaCpp()


def outcome(setup: Setup, plan: Plan) -> Evaluation | str:
    try:
        return SYSTEM.evaluate(setup, plan)
    except DoesNotFit as error:
        return str(error)


def read_back(setup: Setup, plan: Plan) -> Plan:
    command = SYSTEM.command(setup, plan)
    hints = Hints(plan.model, plan.quant, plan.workload, release=str(plan.settings["release"]), loaded=setup.model)
    understood = understand(shlex.split(command), setup.machine, hints)
    assert understood.warnings == [] or all("smaller than -ub" in text for text in understood.warnings), command
    return understood.plan


def check(setup: Setup, plan: Plan) -> None:
    again = read_back(setup, plan)
    assert SYSTEM.placement(setup, again) == SYSTEM.placement(setup, plan), SYSTEM.command(setup, plan)
    assert (again.output, again.embedding) == (plan.output, plan.embedding), SYSTEM.command(setup, plan)
    before, after = outcome(setup, plan), outcome(setup, again)
    if isinstance(before, str) or isinstance(after, str):
        assert before == after
        return
    assert after.decode_s == pytest.approx(before.decode_s, rel=1e-12)
    assert after.prefill_s == pytest.approx(before.prefill_s, rel=1e-12)
    assert after.memory.keys() == before.memory.keys()
    for tier, use in before.memory.items():
        assert after.memory[tier].used == pytest.approx(use.used, rel=1e-12)
        assert after.memory[tier].capacity == use.capacity


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(llama_cpp_cases())
def test_a_command_read_back_is_the_plan_that_it_was_written_from(case: Case) -> None:
    if inseparable(case.setup, case.plan):
        with pytest.raises(NotExpressible, match="without the other"):
            SYSTEM.command(case.setup, case.plan)
    else:
        check(case.setup, case.plan)


def inseparable(setup: Setup, plan: Plan) -> bool:
    """Whether the embedding's own matrix would have to be on a GPU that no flag but a pattern moves it to."""
    whole = all(places.mixer != RAM for places in SYSTEM.placement(setup, plan))
    counted = whole or (plan.settings["release"] == "current" and SYSTEM.placement(setup, plan)[-1].mixer != RAM)
    return setup.model.tied and plan.output != RAM and not counted


def split_over(counts: list[int], spec: str, key: str) -> Case:
    """The layers of a model in runs of the given lengths, output with the last."""
    setup = setup_of(spec, (), key, "q4_k_m")
    homes = [f"gpu{g}" for g, count in enumerate(counts) for _ in range(count)]
    placed = [
        LayerPlaces(home, home, ((Part.FFN_DOWN, home), (Part.FFN_GATE, home), (Part.FFN_UP, home))) for home in homes
    ]
    plan = make_plan(setup.machine, (key, "q4_k_m"), Workload(), LlamaCppSettings(), (placed, homes[-1]))
    return Case(setup, plan)


@pytest.mark.parametrize("key", ["llama-3.1-8b", "llama-3.3-70b", "qwen2.5-14b"])
def test_every_split_over_two_gpus_is_read_back(key: str) -> None:
    """Shares are compared as the engine divides them: 1,48 on 49 gives the first GPU one layer, not two."""
    count = len(setup_of("2x rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB", (), key, "q4_k_m").model.layers)
    for first in range(1, count):
        case = split_over([first, count - first], "2x rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB", key)
        again = read_back(case.setup, case.plan)
        assert again.layers == case.plan.layers, f"{first} of {count}"


def test_experts_of_the_first_layers_become_the_short_form() -> None:
    setup = setup_of("rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB", (), "deepseek-v2", "q4_k_m")
    placed = []
    for layer in setup.model.layers:
        parts = EXPERT_PARTS if layer.experts else (Part.FFN_DOWN, Part.FFN_GATE, Part.FFN_UP)
        place = RAM if layer.experts and layer.index < 20 else "gpu0"
        shared = ((Part.SHARED, "gpu0"),) if layer.experts else ()
        ffn = tuple(sorted((*((part, place) for part in parts), *shared)))
        placed.append(LayerPlaces("gpu0", "gpu0", ffn))
    plan = make_plan(setup.machine, ("deepseek-v2", "q4_k_m"), Workload(), LlamaCppSettings(), (placed, "gpu0"))
    command = SYSTEM.command(setup, plan)
    assert "--n-cpu-moe 20" in command
    assert "-ot" not in command
    check(setup, plan)
