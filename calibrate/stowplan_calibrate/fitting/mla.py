"""Fits of latent attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.mla import MlaDecodeForm, MlaPrefillForm
from stowplan_calibrate.fitting.arrays import ARRAYS
from stowplan_calibrate.fitting.grid_files import Grid
from stowplan_calibrate.fitting.jobs import Array, Index, Job, Specs

_PREFILL: Specs = {
    "host": (2e-4, 1e-6, 2e-3),
    "share": (0.4, 0.02, 1.0),
    "expand_share": (0.5, 0.02, 2.0),
    "stream": (0.6, 0.1, 1.0),
    "passes": (3.0, 0.1, 50.0),
    "fill": (30.0, 0.1, 3000.0),
    "sharpness": (2.0, 1.0, 12.0),
}
_DECODE: Specs = {
    "host": (2e-4, 1e-6, 2e-3),
    "share": (0.3, 0.005, 1.2),
    "project_share": (0.3, 0.01, 2.0),
    "feed": (2.0, 0.1, 30.0),
    "step": (1e-10, 1e-12, 1e-7),
    "stream": (0.7, 0.1, 1.0),
    "passes": (3.0, 0.05, 50.0),
    "wave": (0.5, 0.01, 1.0),
    "sharpness": (2.0, 1.0, 12.0),
    "sequence": (1e-8, 1e-11, 1e-6),
}
_UNSEEN_BEHIND_HOST: Mapping[str, float] = {"latency": 1.5e-5}
"""Seconds of the kernels themselves, which the host's start hides: plain attention's 10 us and two small products."""
_BLOCKS: tuple[Mapping[str, float], ...] = ({"rows": 64.0, "splits": 64.0}, {"rows": 16.0, "splits": 4.0})
"""Heads per block and blocks per sequence: of the CUDA kernels, and of Triton's, which splits in four."""


def prefill_jobs(grid: Grid, device: Device) -> Iterator[Job]:
    """One fit per cache type."""
    for dtype, part in _parts(grid):
        yield _prefill(part, device, dtype)


def decode_jobs(grid: Grid, device: Device) -> Iterator[Job]:
    """One fit per cache type."""
    for dtype, part in _parts(grid):
        yield _decode(part, device, dtype)


def _parts(grid: Grid) -> Iterator[tuple[str, Grid]]:
    """Samples by cache type."""
    types = grid.types("kv_cache_dtype")
    for dtype in sorted(set(types.tolist())):
        yield dtype, grid.where(types == dtype)


def _prefill(grid: Grid, device: Device, dtype: str) -> Job:
    """The fit of latent prompt attention."""
    shape = {"batch": grid.numbers("batch_size"), "new": grid.numbers("isl"), "heads": grid.numbers("num_heads")}

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        batch, new, heads = (column[at] for column in shape.values())
        form = MlaPrefillForm(**values)
        seconds: Array = form.seconds(device, dtype, batch, new, 0.0, heads, eager=True, on=ARRAYS)
        return seconds

    return Job("mla_prefill", dtype, _kernels(grid), grid.seconds, shape, evaluate, _PREFILL, _UNSEEN_BEHIND_HOST)


def _decode(grid: Grid, device: Device, dtype: str) -> Job:
    """The fit of latent single-token attention."""
    shape = {
        "batch": grid.numbers("batch_size"),
        "context": grid.numbers("step") + 1.0,
        "heads": grid.numbers("num_heads"),
    }

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        batch, context, heads = (column[at] for column in shape.values())
        form = MlaDecodeForm(**values)
        seconds: Array = form.seconds(device, dtype, batch, context, heads, eager=True, on=ARRAYS)
        return seconds

    return Job(
        "mla_decode", dtype, _kernels(grid), grid.seconds, shape, evaluate, _DECODE, _UNSEEN_BEHIND_HOST, _BLOCKS
    )


def _kernels(grid: Grid) -> str:
    """Names of the kernels in a part."""
    return ", ".join(sorted(set(grid.columns["kernel_source"])))
