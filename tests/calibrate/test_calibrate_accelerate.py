"""Accelerate without a GPU, modules in host memory and on disk, predicted on the machine where it ran.

Fitted to the narrowest and the widest model; reported on the models between them, which the fit has not seen.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.calibrate.random_gguf import llama_facts
from tests.calibrate.real_engines import Silent, accelerate_python

from stowplan.errors import NotExpressible
from stowplan.figures import Figures, figures_for
from stowplan.machines import load_machine
from stowplan.machines.machine import Machine
from stowplan.models.build import build_model
from stowplan.models.model import Model
from stowplan.plan import Plan, Workload
from stowplan.planner.predict import make_setup, predict
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.base import Setup
from stowplan_calibrate.engine_fit import Compared, Row, errors, fit_engine
from stowplan_calibrate.sampling import keep, lower_quartile

RECORDED = Path(__file__).parent / "recorded"
PROGRAM = Path(__file__).parent / "accelerate_program.py"
FITTED = (512, 1536)
MEDIAN, P90 = 0.10, 0.25


@dataclass(frozen=True)
class Case:
    """One run of the program: the plan of its device map, and what was measured."""

    row: Row
    setup: Setup
    plan: Plan
    samples: tuple[float, ...]

    def seconds(self, figures: Figures) -> float:
        found = Accelerate().evaluate(replace(self.setup, figures=figures), self.plan)
        return found.prefill_s if self.row.phase == "prefill" else found.decode_s


def model_of(run: Mapping[str, Any]) -> Model:
    shape = {key: run[key] for key in ("hidden", "layers", "heads", "kv_heads", "ffn")}
    facts = replace(llama_facts(f"llama-{run['hidden']}", **shape), vocabulary=run["vocabulary"])
    return build_model(facts, "f32")


def device_map(run: Mapping[str, Any]) -> str:
    devices = dict.fromkeys(("model.embed_tokens", "model.norm", "lm_head"), "cpu")
    devices |= {f"model.layers.{i}": "disk" if i in run["disk"] else "cpu" for i in range(run["layers"])}
    return json.dumps(devices)


def cases_of(runs: Sequence[Mapping[str, Any]], machine: Machine) -> list[Case]:
    found = []
    for run in runs:
        model = model_of(run)
        setup = make_setup(machine, model, Accelerate())
        workload = Workload(prompt=run["prompt"], generate=run["generate"])
        names = {"machine": machine.spec, "model": model.key, "quant": "f32"}
        plan = Accelerate().parse(device_map(run), setup, workload, **names)
        plan = plan.model_copy(update={"settings": {**plan.settings, "threads": 1}})
        for phase, key in (("prefill", "prompt_s"), ("decode", "token_s")):
            label = f"{run['hidden']} x {run['layers']}, {len(run['disk'])} on disk, prompt {run['prompt']}: {phase}"
            seconds = lower_quartile(keep(run[key]))
            row = Row(label, str(run["hidden"]), phase, seconds, frozenset({"f32"}))
            found.append(Case(row, setup, plan, tuple(run[key])))
    return found


def report(cases: Sequence[Case]) -> list[Compared]:
    """Cases that the fit has not seen, predicted and printed."""
    known = [case for case in cases if int(case.row.file) in FITTED]
    figures = known[0].setup.figures
    rows = [case.row for case in known]
    fitted = fit_engine(
        "accelerate", figures, rows, lambda moved, i: known[i].seconds(moved), "recorded runs", check=False
    )
    after = Figures({**figures, **fitted.constants})
    compared = []
    for case in cases:
        if case not in known:
            compared.append(Compared(case.row, case.seconds(after)))
            shown = f"{case.row.seconds:7.4f} s, predicted {compared[-1].predicted:7.4f} ({compared[-1].error:+.1%})"
            print(f"{case.row.label:48s} {shown}")
    median, p90, worst = errors(compared)
    noise = statistics.median(noise_of(case.samples) for case in cases)
    print(
        f"{len(compared)} rows: median {median:.1%}, p90 {p90:.1%}, worst {worst:.1%}; repeats scatter by {noise:.1%}"
    )
    return compared


def noise_of(samples: Sequence[float]) -> float:
    """How far the middle half of a run's samples reaches, relative to their median."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDED / "accelerate-epyc.jsonl").read_text().splitlines()]


def test_recorded_device_maps_are_predicted() -> None:
    machine = load_machine(str(RECORDED / "profile-epyc.toml"))
    median, p90, _ = errors(report(cases_of(recorded(), machine)))
    assert median < MEDIAN
    assert p90 < P90


def test_more_on_disk_takes_longer_and_the_cpu_limits() -> None:
    machine = load_machine(str(RECORDED / "profile-epyc.toml"))
    run = recorded()[0]
    times = []
    for count in (0, 4, 8):
        (_, case) = cases_of([{**run, "disk": list(range(count))}], machine)
        times.append(case.seconds(case.setup.figures))
        prediction = predict(case.setup, case.plan, Accelerate())
        assert prediction.bottleneck in ("host.cores", "host.dram", "overhead")
        assert prediction.memory_bytes["ram"].used > 0
        assert any(rest.name.startswith("accelerate.cpu.") for rest in prediction.rests_on)
    assert times == sorted(times)
    assert times[2] > 1.5 * times[0]


def test_a_machine_without_a_gpu_says_what_to_write() -> None:
    machine = load_machine("cpu-laptop-32")
    model = model_of(recorded()[0])
    setup = Setup(machine, model, figures_for(machine, "accelerate"))
    with pytest.raises(NotExpressible, match="cpu and disk only"):
        Accelerate().parse('{"": 0}', setup, Workload(), machine="x", model="x", quant="f32")
    plan = Accelerate().parse('{"": "cpu"}', setup, Workload(), machine="x", model="x", quant="f32")
    assert plan.settings["main"] == -1
    assert plan.output == "ram"


@pytest.mark.slow
def test_accelerate_on_this_machine_is_predicted(tmp_path: Path) -> None:

    from stowplan_calibrate.campaign import look_around, save_profile, whole_suite
    from stowplan_calibrate.results import ResultsFolder
    from stowplan_calibrate.suite import environment, run_suite

    python, machine = accelerate_python(), load_machine("auto")
    results = ResultsFolder(tmp_path / "results")
    around = look_around(machine, results.folder, quick=True)
    results.prepare(environment(around, machine.name, {}))
    run_suite(whole_suite(around, ("cpu",), None), around, results, Silent(), budget_s=60.0)
    profile = load_machine(str(save_profile(machine, results)))
    keys = ("hidden", "layers", "heads", "kv_heads", "ffn", "vocabulary", "disk", "prompt", "generate", "repeats")
    asked = [{key: run[key] for key in keys} for run in recorded()]
    command = [str(python), str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=3600)
    cases = cases_of([json.loads(line) for line in done.stdout.splitlines()], profile)
    noise = statistics.median(noise_of(case.samples) for case in cases)
    median, p90, _ = errors(report(cases))
    assert median < math.hypot(MEDIAN, noise)
    assert p90 < math.hypot(P90, 3 * noise)
