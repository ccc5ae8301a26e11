"""A measured profile and a few benchmark rows predict llama.cpp on this kind of machine: recorded, and run for real.

Fitted to the smallest and the largest model at two depths; reported on all other rows: two more sizes at every depth,
and a third depth of the first two. Two quantisations, prompt and generation. The rows tell the engine's own time on a
core (see ``cpu_clock.c``), one thread, so that a busy machine does not count; what repeats still differ by is the noise
floor that is printed beside the error.
"""

from __future__ import annotations

import math
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.calibrate.random_gguf import llama_facts, write_random_gguf
from tests.calibrate.real_engines import Silent, llama_bench, own_time

from stowplan.cli.calibration_fit import BenchCase, fit_llama_bench, merged_runs
from stowplan.figures import Figures
from stowplan.models.facts import Facts
from stowplan_calibrate.engine_fit import Compared, errors
from stowplan_calibrate.engine_logs import BenchRun, read_llama_bench
from stowplan_calibrate.sampling import keep, lower_quartile

RECORDED = Path(__file__).parent / "recorded"
SHAPES: dict[str, Facts] = {
    "s125m": llama_facts("s125m", hidden=768, layers=12, heads=12, kv_heads=4, ffn=2048),
    "f220m": llama_facts("f220m", hidden=1280, layers=10, heads=20, kv_heads=4, ffn=3584),
    "m340m": llama_facts("m340m", hidden=1024, layers=24, heads=16, kv_heads=4, ffn=2816),
    "l850m": llama_facts("l850m", hidden=2048, layers=16, heads=32, kv_heads=8, ffn=5632),
}
MIXES = ("q4_k_m", "q8_0")
DEPTHS = (0, 256, 1024)
MEDIAN, P90 = 0.10, 0.25


def in_fit(run: BenchRun) -> bool:
    return Path(run.model).stem.split("-")[0] in ("s125m", "l850m") and run.depth in (0, 1024)


def noise_floor(runs: Sequence[BenchRun]) -> float:
    """Median relative difference of the same row measured again later."""
    first: dict[str, float] = {}
    apart = []
    for run in runs:
        if run.label in first:
            apart.append(abs(math.log(run.figure / first[run.label])))
        else:
            first[run.label] = run.figure
    return statistics.median(apart) if apart else 0.0


def report(runs: Sequence[BenchRun], profile: str) -> list[Compared]:
    """Rows that the fit has not seen, predicted and printed."""
    fitted = fit_llama_bench([run for run in runs if in_fit(run)], profile)
    compared = []
    for run in merged_runs([run for run in runs if not in_fit(run)]):
        case = BenchCase.read(run, profile)
        compared.append(Compared(case.row, case.seconds(Figures({**case.setup.figures, **fitted.fit.constants}))))
        print(
            f"{run.label:42s} {run.figure:8.3f} s, predicted {compared[-1].predicted:8.3f} ({compared[-1].error:+.1%})"
        )
    median, p90, worst = errors(compared)
    print(f"{len(compared)} rows: median {median:.1%}, p90 {p90:.1%}, worst {worst:.1%}; {noise_floor(runs):.1%} noise")
    return compared


def with_files(runs: Sequence[BenchRun], folder: Path) -> list[BenchRun]:
    """The rows, with the headers of their model files in a folder (holes stand for the weights)."""
    for name in sorted({run.model for run in runs}):
        stem = Path(name).stem
        shape, _, mix = stem.partition("-")
        write_random_gguf(folder / Path(name).name, SHAPES[shape], mix, holes=True)
    return [replace(run, model=str(folder / Path(run.model).name)) for run in runs]


@pytest.mark.slow
def test_recorded_rows_are_predicted(tmp_path: Path) -> None:
    runs = with_files(read_llama_bench(RECORDED / "llama-bench-epyc.jsonl"), tmp_path)
    median, p90, _ = errors(report(runs, str(RECORDED / "profile-epyc.toml")))
    assert median < MEDIAN
    assert p90 < P90


def test_every_recorded_row_is_understood(tmp_path: Path) -> None:
    runs = with_files(read_llama_bench(RECORDED / "llama-bench-epyc.jsonl"), tmp_path)
    assert {run.depth for run in runs} == set(DEPTHS)
    assert {Path(run.model).stem for run in runs} == {f"{shape}-{mix}" for shape in SHAPES for mix in MIXES}
    for run in merged_runs(runs)[::5]:
        case = BenchCase.read(run, str(RECORDED / "profile-epyc.toml"))
        assert 0.2 < case.seconds(case.setup.figures) / run.figure < 6.0  # shipped constants, other machines
        assert case.row.phase == ("prefill" if run.prompt else "decode")


def test_predictions_say_which_numbers_were_measured() -> None:
    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.plan import Workload
    from stowplan.planner.llama_cpp import plan_llama_cpp
    from stowplan.planner.predict import make_setup
    from stowplan.planner.result import Request
    from stowplan.systems.llama_cpp import LlamaCpp

    machine = load_machine(str(RECORDED / "profile-epyc.toml"))
    setup = make_setup(machine, load_model("llama-3.2-1b", "q4_k_m"), LlamaCpp())
    planned = plan_llama_cpp(Request(setup, ("llama-3.2-1b", "q4_k_m"), Workload(prompt=128, generate=32)))
    kinds = {rest.name: rest.kind for rest in planned.prediction.rests_on}
    assert kinds["host.clock"] == "measured"
    assert "stowplan calibrate" in next(r.source for r in planned.prediction.rests_on if r.name == "host.clock")


def test_repeated_rows_are_put_together() -> None:
    runs = read_llama_bench(RECORDED / "llama-bench-epyc.jsonl")
    merged = merged_runs(runs)
    assert len({run.label for run in merged}) == len(merged)
    assert sum(len(run.seconds) for run in merged) == sum(len(run.seconds) for run in runs)
    assert all(run.figure == lower_quartile(keep(run.seconds)) for run in merged)


@pytest.mark.slow
def test_the_engine_on_this_machine_is_predicted(tmp_path: Path) -> None:
    from stowplan.machines import load_machine
    from stowplan_calibrate.campaign import look_around, save_profile, whole_suite
    from stowplan_calibrate.results import ResultsFolder
    from stowplan_calibrate.suite import environment, run_suite

    program, machine = llama_bench(), load_machine("auto")
    results = ResultsFolder(tmp_path / "results")
    around = look_around(machine, results.folder, quick=True)
    results.prepare(environment(around, machine.name, {}))
    run_suite(whole_suite(around, ("cpu",), None), around, results, Silent(), budget_s=60.0)
    profile = save_profile(machine, results)
    runs: list[BenchRun] = []
    for turn in range(2):
        for shape, facts in SHAPES.items():
            for mix in MIXES:
                model = tmp_path / f"{shape}-{mix}.gguf"
                write_random_gguf(model, facts, mix)
                log = tmp_path / f"{turn}-{model.stem}.jsonl"
                command = [str(program), "-m", str(model), "-t", "1", "-p", "128", "-n", "16", "-r", "3", "-o", "jsonl"]
                command += ["-d", ",".join(map(str, DEPTHS))]
                with log.open("wb") as out:
                    subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=True, env=own_time(tmp_path))
                runs += read_llama_bench(log)
                if turn:
                    model.unlink()
                    write_random_gguf(model, facts, mix, holes=True)
    noise = noise_floor(runs)
    median, p90, _ = errors(report(runs, str(profile)))
    assert median < math.hypot(MEDIAN, noise)
    assert p90 < math.hypot(P90, 3 * noise)
