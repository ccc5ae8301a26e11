"""Shipped parameters against the measured grids: shapes outside the fit, and the fit done again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from stowplan.datafiles import data_folder
from stowplan.kernel_forms.library import datasheet
from stowplan.kernel_forms.parameters import FOLDER
from stowplan.machines.library import load_gpu
from stowplan_calibrate.fitting import attention, gemm
from stowplan_calibrate.fitting.grid_files import GPUS, find_grids
from stowplan_calibrate.fitting.grids import SEED, outcomes_of, pooled
from stowplan_calibrate.fitting.jobs import Job, split_shapes

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kernels"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="measured kernel grids are not here")
CLASSES = {
    "gemm": ("gemm_perf", gemm.jobs),
    "prefill": ("context_attention_perf", attention.prefill_jobs),
    "decode": ("generation_attention_perf", attention.decode_jobs),
}


def shipped(gpu: str, job: Job) -> dict[str, object]:
    """Parameters and facts of one fit, from the shipped file."""
    content = tomllib.loads((data_folder("hwprofiles") / FOLDER / f"{gpu}.toml").read_text(encoding="utf-8"))
    fitted = content[job.kernel_class][job.dtype]
    values = {name: number["value"] for name, number in fitted["parameters"].items()}
    facts = {name: value for name, value in fitted.get("facts", {}).items() if name != "tiles"}
    tiles = {"tiles": tuple(map(tuple, fitted["facts"]["tiles"]))} if "tiles" in fitted.get("facts", {}) else {}
    return {**values, **facts, **tiles}


@pytest.mark.parametrize("kernel_class", CLASSES)
def test_shapes_outside_the_fit_are_predicted(kernel_class: str) -> None:
    name, jobs = CLASSES[kernel_class]
    for grid in find_grids(DATA, name):
        device, residuals = datasheet(load_gpu(grid.gpu)), []
        for job in jobs(grid, device):
            outside = split_shapes(job.shape, SEED)[1][::3]
            predicted = job.evaluate(shipped(grid.gpu, job), outside)
            residuals.append(predicted / job.seconds[outside] - 1.0)
        errors = np.abs(np.concatenate(residuals))
        assert np.median(errors) <= 0.08, grid.gpu
        assert np.quantile(errors, 0.9) <= 0.25, grid.gpu


@pytest.mark.slow
def test_fitting_again_gives_the_shipped_parameters() -> None:
    gpu = "a100-80gb-sxm"
    content = tomllib.loads((data_folder("hwprofiles") / FOLDER / f"{gpu}.toml").read_text(encoding="utf-8"))
    outcomes = list(outcomes_of(DATA, gpu))
    assert len(outcomes) >= 7
    for outcome in outcomes:
        written = content[outcome.job.kernel_class][outcome.job.dtype]
        for name, value in outcome.fit.parameters.items():
            number = written["parameters"][name]
            allowed = max(0.02, 3.0 * number["sd"]) * abs(number["value"])
            assert abs(value - number["value"]) <= allowed, f"{outcome.job.kernel_class} {name}"


@pytest.mark.slow
@pytest.mark.parametrize("gpu", sorted(GPUS.values()))
def test_fits_on_half_of_the_shapes_predict_the_other_half(gpu: str) -> None:
    for (kernel_class, _), residuals in pooled({gpu: list(outcomes_of(DATA, gpu))}, by_type=False).items():
        errors = np.abs(np.expm1(residuals))
        if kernel_class in ("gemm", "prefill", "decode", "moe"):
            assert np.median(errors) <= 0.08, kernel_class
            assert np.quantile(errors, 0.9) <= 0.30, kernel_class
        assert np.median(errors) <= 0.12, kernel_class
