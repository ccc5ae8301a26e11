"""What must hold for every llama.cpp plan: bounds, memory, no placement of the engine's own beats it."""

from __future__ import annotations

import random
import shlex
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from tests.strategies import CAPACITIES, GPUS, HOSTS, MIXES, MODELS, Case, llama_cpp_cases, setup_of

from stowplan.engine import lower_bound, serial_bound, simulate
from stowplan.errors import DoesNotFit
from stowplan.ops import Step
from stowplan.plan import Plan, Workload
from stowplan.planner.commands import Hints, understand
from stowplan.planner.counts import GAP
from stowplan.planner.llama_cpp import plan_llama_cpp
from stowplan.planner.result import Planned, Request
from stowplan.planner.serial_search import Found, Objective, SerialSearch, Weights
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram, layers_only
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

SYSTEM = LlamaCpp()
OBJECTIVES: tuple[Objective, ...] = ("request", "decode", "ttft", "throughput")


class Problem:
    """A random machine, model, workload and group of settings."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        count, kind = source.choice([0, 1, 1, 1, 2, 2]), source.choice(GPUS)
        parts = [f"{count}x {kind}"] if count else []
        if count > 1 and source.random() < 0.5:
            parts = [kind, source.choice(GPUS)]
        host = f"{source.choice(HOSTS)}:{source.choice(CAPACITIES)}GiB"
        self.spec = " + ".join([*parts, host, "samsung-990-pro:4TB"])
        self.key, self.quant = source.choice(MODELS), source.choice(MIXES)
        self.setup = setup_of(self.spec, (), self.key, self.quant)
        self.workload = Workload(
            prompt=source.choice([0, 30, 500, 3000]),
            generate=source.choice([1, 100, 500]),
            batch=source.choice([1, 1, 2, 8]),
        )
        self.objective: Objective = source.choice(OBJECTIVES)
        self.settings = LlamaCppSettings(ubatch=source.choice([512, 2048]), kv_offload=source.random() < 0.8)
        self.weights = Weights.of(self.objective, self.workload)

    def run(self, setup: Setup | None = None) -> LlamaCppRun:
        return LlamaCppRun(setup or self.setup, self.workload, self.settings)

    def best(self, setup: Setup | None = None) -> Found | None:
        return SerialSearch(self.run(setup), self.weights).best()


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(llama_cpp_cases())
def test_bound_simulation_and_price_of_a_decode_step_agree(case: Case) -> None:
    try:
        evaluation = SYSTEM.evaluate(case.setup, case.plan)
    except DoesNotFit:
        assume(False)
    graph = SYSTEM.decode_graph(case.setup, case.plan)
    makespan = simulate(graph).makespan
    slack = 1 + 1e-9
    assert lower_bound(graph) <= makespan * slack
    assert makespan <= serial_bound(graph) * slack
    assert makespan == pytest.approx(evaluation.decode_s, rel=1e-9)
    assert sum(evaluation.decode_shares.values()) == pytest.approx(evaluation.decode_s, rel=1e-9)
    assert sum(evaluation.prefill_shares.values()) == pytest.approx(evaluation.prefill_s, rel=1e-9)


def simulated_objective(problem: Problem, found: Found) -> float:
    run = problem.run()
    run.overflow(run.memory(found.layers, RAM, found.output), found.layers)

    def seconds(step: Step) -> float:
        return simulate(run.step_graph(found.layers, found.output, step)).makespan

    prefill = (
        sum(n * seconds(step) for step, n in Counter(run.prefill_steps).items()) if problem.weights.prefill else 0.0
    )
    return problem.weights.prefill * prefill + problem.weights.decode * seconds(run.decode_step)


def own_placements(problem: Problem, run: LlamaCppRun) -> dict[str, float]:
    """Objectives of -ngl N and --n-cpu-moe N that leave the margin that plans leave."""
    layers = problem.setup.model.layers
    found: dict[str, float] = {}
    if not problem.setup.machine.gpus:
        return found
    candidates = {f"-ngl {n}": layers_only(run, n) for n in range(0, len(layers) + 1, 3)}
    candidates["-ngl 99"] = layers_only(run, len(layers))
    if any(layer.experts for layer in layers):
        candidates |= {f"--n-cpu-moe {n}": experts_in_ram(run, n) for n in range(0, len(layers) + 1, 3)}
    for name, (placed, output) in candidates.items():
        try:
            evaluation = run.evaluate(placed, RAM, output)
        except DoesNotFit:
            continue
        if all(use.used <= use.capacity - run.margin for tier, use in evaluation.memory.items() if tier != RAM):
            found[name] = problem.weights.cost(evaluation)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_a_winner_is_bounded_fits_and_beats_the_engines_own_placements(seed: int) -> None:
    problem = Problem(seed)
    found, run = problem.best(), problem.run()
    own = own_placements(problem, run)
    if found is None:
        assert not own
        return
    assert found.solved.solver.bound <= found.cost * (1 + 1e-9)
    assert simulated_objective(problem, found) == pytest.approx(found.cost, rel=1e-9)
    for tier, use in found.evaluation.memory.items():
        assert use.used <= use.capacity - (run.margin if tier != RAM else 0.0) + 1.0, tier
    for name, cost in own.items():
        assert found.cost <= cost * (1 + 2 * GAP), name


def improved(setup: Setup, what: str) -> Setup:
    machine, figures = setup.machine, setup.figures
    match what:
        case "vram":
            gpus = tuple(replace(gpu, memory=replace(gpu.memory, value=gpu.memory.value * 1.5)) for gpu in machine.gpus)
            machine = replace(machine, gpus=gpus)
        case "ram":
            capacity = replace(machine.memory.capacity, value=machine.memory.capacity.value * 2)
            machine = replace(machine, memory=replace(machine.memory, capacity=capacity))
        case _:
            for name in list(figures):
                if what in name:
                    figures = figures.scaled(name, 1.7)
    return Setup(machine, setup.model, figures)


@pytest.mark.parametrize("what", ["vram", "ram", ".h2d.", "host.dram", ".hbm"])
@pytest.mark.parametrize("seed", range(200, 206))
def test_better_hardware_never_makes_the_best_plan_slower(seed: int, what: str) -> None:
    problem = Problem(seed)
    before, after = problem.best(), problem.best(improved(problem.setup, what))
    if before is None:
        return
    assert after is not None
    assert after.cost <= before.cost * (1 + 2 * GAP)


def planned(seed: int) -> tuple[Problem, Planned] | None:
    problem = Problem(seed)
    request = Request(problem.setup, (problem.key, problem.quant), problem.workload, problem.objective)
    try:
        return problem, plan_llama_cpp(request)
    except DoesNotFit as error:
        assert error.missing_bytes >= 0
        return None


@pytest.mark.parametrize("seed", range(300, 306))
def test_the_planners_command_means_the_planners_plan(seed: int) -> None:
    answer = planned(seed)
    if answer is None:
        return
    problem, found = answer
    command = found.prediction.command
    assert command is not None, found.prediction.warnings
    hints = Hints(found.plan.model, found.plan.quant, found.plan.workload, loaded=problem.setup.model)
    again = understand(shlex.split(command), problem.setup.machine, hints)
    assert again.warnings == []
    evaluation = SYSTEM.evaluate(again.setup, again.plan)
    assert evaluation.decode_s == pytest.approx(found.prediction.tpot_s, rel=1e-12)
    assert evaluation.prefill_s == pytest.approx(found.prediction.ttft_s, rel=1e-12)
    for tier, use in found.prediction.memory_bytes.items():
        assert evaluation.memory[tier].used == pytest.approx(use.used, rel=1e-12)
    assert all(each.cost >= found.cost * (1 - 1e-9) for each in found.alternatives)
    repeated = planned(seed)
    assert repeated is not None
    assert repeated[1].plan.model_dump_json() == found.plan.model_dump_json()
    assert Plan.model_validate_json(found.plan.model_dump_json()) == found.plan
