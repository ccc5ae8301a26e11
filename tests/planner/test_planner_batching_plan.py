from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stowplan.cli.batching import batch
from stowplan.errors import NotExpressible
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.ops import Step
from stowplan.plan import Plan, Workload
from stowplan.planner.batching_costs import Requests
from stowplan.planner.batching_files import read_batches
from stowplan.planner.batching_from_plan import Chosen, plan_for_requests, static_cost
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp

MACHINE, MODEL, QUANT = "rtx-3090-desktop-64", "llama-3.2-1b", "q4_k_m"
REQUESTS = Requests.of([40, 700, 90, 300] * 6, [200, 10, 60, 120] * 6)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return make_setup(load_machine(MACHINE), load_model(MODEL, QUANT), LlamaCpp())


@pytest.fixture(scope="module")
def chosen(setup: Setup) -> Chosen:
    return plan_for_requests(Request(setup, (MODEL, QUANT), Workload(), "throughput"), REQUESTS, 16)


def test_cost_is_the_plans_step_price(setup: Setup, chosen: Chosen) -> None:
    system, plan, cost = LlamaCpp(), chosen.planned.plan, chosen.fitted.cost
    run, layers = system.run(setup, plan), system.placement(setup, plan)
    for running in (1, 3, chosen.limits.max_batch):
        for context in (64, 400):
            price = run.step_price(layers, plan.output, Step.decode(running, context)).seconds
            said = cost.step_s[running - 1] + cost.context_s * running * context
            assert said == pytest.approx(price, rel=max(1e-9, 1.01 * chosen.fitted.decode_error))
    assert chosen.fitted.decode_error < 0.05
    assert cost.micro_batch == run.chunk


def test_limits_are_what_the_plan_reserves(chosen: Chosen) -> None:
    workload = chosen.planned.plan.workload
    assert chosen.limits.cache_tokens == workload.capacity * workload.batch
    assert chosen.limits.max_batch <= min(16, workload.batch)
    assert chosen.limits.cache_tokens >= REQUESTS.reserved.max()


def test_systems_that_overlap_are_refused(setup: Setup, chosen: Chosen) -> None:
    other: Plan = chosen.planned.plan.model_copy(update={"system": "flexgen"})
    with pytest.raises(NotExpressible, match="flexgen"):
        static_cost(setup, other, 4, 100)


def command(*words: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(batch)
    done = CliRunner().invoke(app, [MODEL, "--on", MACHINE, "--quant", QUANT, *words])
    return done.exit_code, done.stdout, done.exception


def test_command_answers_and_writes_the_batches(tmp_path: Path) -> None:
    lengths, batches = tmp_path / "lengths.csv", tmp_path / "batches.jsonl"
    rows = zip(REQUESTS.prompt.tolist(), REQUESTS.output.tolist(), strict=True)
    lengths.write_text("prompt_tokens,output_tokens\n" + "".join(f"{p},{g}\n" for p, g in rows), encoding="utf-8")
    words = ["--requests", str(lengths), "--max-batch", "8"]
    code, text, _ = command(*words, "-o", str(batches))
    assert code == 0
    assert "24 requests in" in text
    assert "first come, padded" in text
    assert all(len(line) <= 110 for line in text.splitlines() if str(tmp_path) not in line)
    assert sum(map(len, read_batches(batches))) == 24
    first, again = (command(*words, "--json")[1] for _ in range(2))
    assert first == again
    answer = json.loads(first)
    assert answer["bound_s"] <= answer["makespan_s"] <= answer["others"]["first_come"]["makespan_s"]
    assert sorted(i for each in answer["batches"] for i in each["requests"]) == list(range(24))


def test_command_refuses_bad_input_before_it_plans(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("prompt,output\n1,2\n", encoding="utf-8")
    _, _, error = command("--requests", str(lengths))
    assert "no column prompt_tokens" in str(error)
    _, _, error = command("--requests", str(lengths), "-o", str(tmp_path / "batches.csv"))
    assert "must end in .jsonl" in str(error)
