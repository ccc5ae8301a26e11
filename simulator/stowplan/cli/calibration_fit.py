"""Predictions of an engine's own benchmark rows, and the fit of its constants to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import InputError
from stowplan.figures import Figures
from stowplan.machines import load_machine
from stowplan.plan import Plan
from stowplan.planner.commands import Hints, understand
from stowplan.systems import load_system
from stowplan.systems.base import Setup, System
from stowplan.units import Dimension
from stowplan_calibrate.engine_fit import EngineFit, Row, fit_engine
from stowplan_calibrate.engine_logs import BenchRun, ServingRun, kind_of_log, read_serving
from stowplan_calibrate.load_client import as_serving_run, read_requests
from stowplan_calibrate.serving_fit import fit_steps

_DIMENSION_OF_MISSING: Dimension = "count"


@dataclass(frozen=True, slots=True)
class LlamaBenchFit:
    """A fit to llama-bench, and what each of the constants measures."""

    fit: EngineFit
    dimensions: Mapping[str, Dimension]


def fit_llama_bench(
    runs: Sequence[BenchRun], on: str, model: str | None = None, quant: str | None = None
) -> LlamaBenchFit:
    """llama.cpp's constants on the machine `on` from rows of llama-bench.

    Args:
        runs: rows; those of the same test are put together.
        on: the machine, as after ``--on``.
        model, quant: what the model files hold, where they are not on this computer.

    Raises:
        InputError: too few rows, or a row that cannot be understood.
    """
    machine, merged = load_machine(on), merged_runs(runs)
    cases = [BenchCase.read(run, machine.spec, model, quant) for run in merged]
    figures = cases[0].setup.figures
    builds = ", ".join(sorted({run.build for run in merged}))
    dates = sorted(run.date[:10] for run in merged if run.date)
    where = f"llama-bench {builds}, {dates[-1] if dates else 'undated'}: {len(merged)} rows on {machine.cpu.name}"
    result = fit_engine(
        "llama.cpp", figures, [case.row for case in cases], lambda moved, index: cases[index].seconds(moved), where
    )
    return LlamaBenchFit(result, _dimensions("llama.cpp", result.constants))


def merged_runs(runs: Sequence[BenchRun]) -> list[BenchRun]:
    """Rows of the same test with all their repetitions together."""
    found: dict[tuple[str, ...], BenchRun] = {}
    for run in runs:
        key = (*run.command(), run.build)
        found[key] = replace(run, seconds=(*found[key].seconds, *run.seconds)) if key in found else run
    return list(found.values())


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One benchmark row, understood: the setup and plan that it means."""

    row: Row
    run: BenchRun
    setup: Setup
    plan: Plan
    system: System

    @staticmethod
    def read(run: BenchRun, on: str, model: str | None = None, quant: str | None = None) -> BenchCase:
        """The case of a row.

        Raises:
            InputError: a prompt and a generation in one row, or a model or flag that cannot be understood.
        """
        if run.prompt and run.generate:
            raise InputError(f"{run.where}: a prompt and a generation in one row; measure them apart (-p N and -n N)")
        understood = understand(run.command(), load_machine(on), Hints(model=model, quant=quant))
        formats = {tensor.format for tensor in understood.setup.model.tensors if tensor.columns > 1}
        phase = "prefill" if run.prompt else "decode"
        row = Row(run.label, run.model, phase, run.figure, frozenset(formats))
        return BenchCase(row, run, understood.setup, understood.plan, load_system(understood.system))

    def seconds(self, figures: Figures) -> float:
        """Seconds that the row takes by prediction."""
        found = self.system.evaluate(Setup(self.setup.machine, self.setup.model, figures), self.plan)
        return found.prefill_s if self.run.prompt else found.decode_s * self.run.generate


def serving_runs(path: Path) -> list[ServingRun]:
    """Runs of a serving benchmark's file, or the one run of a request log."""
    if kind_of_log(path) == "requests":
        return [as_serving_run(*read_requests(path), str(path))]
    return read_serving(path)


def fit_serving(runs: Sequence[ServingRun]) -> dict[str, Any]:
    """Step time of a server from its benchmark, as a document; raises InputError for too few runs."""
    found = fit_steps(runs)
    return {
        "engine": runs[0].engine,
        "model": runs[0].model,
        "runs": len(runs),
        "parameters": {
            name: {"value": value, "sd": found.sds[name], "meaning": found.meanings[name]}
            for name, value in found.parameters.items()
        },
        "median_error": found.median_error,
        "worst_error": found.worst_error,
    }


def _dimensions(engine: str, names: Mapping[str, object]) -> dict[str, Dimension]:
    """What every constant measures: as the engine's shipped file says; products count weights or FLOPs per clock."""
    shipped = read_toml(data_folder("hwprofiles") / "kernels" / f"{engine}.toml")
    found: dict[str, Dimension] = {}
    for name in names:
        entry: Any = shipped
        for part in name.removeprefix(f"{engine}.").split("."):
            entry = entry.get(part, {}) if isinstance(entry, dict) else {}
        dimension = entry.get("dimension", "ratio") if isinstance(entry, dict) and "value" in entry else None
        found[name] = dimension or _DIMENSION_OF_MISSING
    return found
