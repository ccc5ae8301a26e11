"""Fit all kernel forms to measured grids: ``python -m stowplan_calibrate.fitting.grids --data DIR [--write DIR]``.

Half of the shapes of every kernel go into its fit; the table printed is about the other half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stowplan.errors import StowplanError
from stowplan.kernel_forms.allreduce import RingForm
from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.library import datasheet
from stowplan.machines.library import load_gpu
from stowplan_calibrate.fitting import allreduce, attention, gemm, mla, moe
from stowplan_calibrate.fitting.grid_files import GPUS, Grid, find_grids
from stowplan_calibrate.fitting.jobs import Array, Outcome, run
from stowplan_calibrate.fitting.leave_one_out import left_out, spread_by_class
from stowplan_calibrate.fitting.parameter_files import gpu_text, unmeasured_key, unmeasured_text, write_all

SEED = 20240229
_TABLES = {
    "gemm_perf": gemm.jobs,
    "context_attention_perf": attention.prefill_jobs,
    "generation_attention_perf": attention.decode_jobs,
    "context_mla_perf": mla.prefill_jobs,
    "generation_mla_perf": mla.decode_jobs,
    "moe_perf": moe.jobs,
}
_SOURCE = "kernel grids of ai-dynamo/aiconfigurator (Apache-2.0), a random half of their rows; vLLM {versions}"


def outcomes_of(folder: Path, gpu: str, seed: int = SEED, most: int | None = None) -> Iterator[Outcome]:
    """All fits of one GPU whose grids are in `folder`.

    Args:
        folder: of grid files.
        gpu: profile key.
        seed: of the split.
        most: samples per fit at most, for a quick look.

    Raises:
        BadFile, InputError: files or profiles that are wrong.
    """
    device = datasheet(load_gpu(gpu))
    for table, jobs in _TABLES.items():
        for grid in _grids(folder, table, gpu):
            for job in jobs(grid, device):
                yield run(job, seed, most)
    yield from _sums(folder, gpu, device, seed)


def _sums(folder: Path, gpu: str, device: Device, seed: int) -> Iterator[Outcome]:
    """Fits of collectives: the rings first, since sums fall back on them."""
    for grid in _grids(folder, "nccl_perf", gpu):
        rings = run(allreduce.ring_job(grid, device), seed)
        yield rings
        ring = RingForm(**rings.fit.parameters)
        for own in _grids(folder, "custom_allreduce_perf", gpu):
            yield run(allreduce.all_reduce_job(own, device, ring), seed)


def _grids(folder: Path, table: str, gpu: str) -> list[Grid]:
    """Grids of one table and GPU."""
    return [grid for grid in find_grids(folder, table) if grid.gpu == gpu]


def table_of(residuals: Mapping[tuple[str, str], Array]) -> list[str]:
    """Lines of a table: class, GPU, samples, and absolute relative errors."""
    lines = [f"{'class':12s} {'GPU':14s} {'n':>6s} {'median':>8s} {'p90':>8s} {'worst':>8s}"]
    for (kernel_class, gpu), values in sorted(residuals.items()):
        errors = np.abs(np.expm1(values))
        figures = (np.median(errors), np.quantile(errors, 0.9), errors.max())
        lines.append(f"{kernel_class:12s} {gpu:14s} {len(errors):6d} " + " ".join(f"{100 * f:7.1f}%" for f in figures))
    return lines


def pooled(outcomes: Mapping[str, Sequence[Outcome]], *, by_type: bool) -> dict[tuple[str, str], Array]:
    """Residuals outside the fits by class, or by class and type, and GPU."""
    parts: dict[tuple[str, str], list[Array]] = {}
    for gpu, found in outcomes.items():
        for outcome in found:
            name = f"{outcome.job.kernel_class} {outcome.job.dtype}" if by_type else outcome.job.kernel_class
            parts.setdefault((name, gpu), []).append(outcome.residuals)
    return {key: np.concatenate(values) for key, values in parts.items()}


def texts_of(folder: Path, outcomes: Mapping[str, Sequence[Outcome]], seed: int) -> dict[str, str]:
    """Contents of all parameter files, by key."""
    texts = {}
    for gpu, found in outcomes.items():
        versions = {grid.version for table in _TABLES for grid in _grids(folder, table, gpu)}
        where = _SOURCE.format(versions=", ".join(sorted(version.removeprefix("vllm-") for version in versions)))
        texts[gpu] = gpu_text(gpu, where, seed, found)
    residuals = left_out(outcomes)
    counts: dict[str, int] = {}
    for (kernel_class, _), values in residuals.items():
        counts[kernel_class] = counts.get(kernel_class, 0) + len(values)
    texts[unmeasured_key()] = unmeasured_text(spread_by_class(residuals), counts)
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of grid files")
    parser.add_argument("--write", type=Path, help="folder to write the parameters to")
    parser.add_argument("--gpu", action="append", choices=sorted(GPUS.values()), help="only this GPU; repeatable")
    parser.add_argument("--seed", type=int, default=SEED, help="of the split into halves")
    options = parser.parse_args(arguments)
    if options.write is not None and options.gpu:
        parser.error("--write needs all GPUs, since leaving one out compares them; leave --gpu away")
    try:
        outcomes = {gpu: list(outcomes_of(options.data, gpu, options.seed)) for gpu in options.gpu or GPUS.values()}
        print("\n".join(["Shapes outside the fit", *table_of(pooled(outcomes, by_type=False)), ""]))
        print("\n".join(table_of(pooled(outcomes, by_type=True))))
        if not options.gpu:
            print("\n".join(["", "GPUs left out", *table_of(left_out(outcomes))]))
        if options.write is not None:
            write_all(options.write, texts_of(options.data, outcomes, options.seed))
    except StowplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
