"""Fits of collectives: a library's rings, then an engine's own sums with the rings behind them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from stowplan.kernel_forms.allreduce import AllReduceForm, RingForm
from stowplan.kernel_forms.device import Device
from stowplan_calibrate.fitting.arrays import ARRAYS
from stowplan_calibrate.fitting.grid_files import Grid
from stowplan_calibrate.fitting.jobs import Array, Index, Job, Specs

_RING: Specs = {
    "quick_start": (5e-6, 5e-7, 1e-4),
    "quick_hop": (1e-6, 1e-9, 2e-5),
    "quick_share": (0.3, 0.01, 3.0),
    "bulk_start": (2e-5, 1e-6, 3e-4),
    "bulk_hop": (2e-6, 1e-9, 1e-4),
    "pair": (0.7, 0.05, 1.5),
    "four": (0.7, 0.02, 1.5),
    "eight": (0.7, 0.01, 1.6),
    "mixing": (4.0, 1.0, 20.0),
}
_OWN: Specs = {
    "start": (4e-6, 1e-6, 2e-5),
    "hop": (1e-7, 1e-9, 1e-5),
    "direct_share": (0.5, 0.05, 1.0),
    "two_start": (8e-6, 1e-6, 5e-5),
    "two_share": (0.5, 0.02, 1.0),
    "two_eight": (0.5, 0.01, 1.0),
    "copy_share": (0.8, 0.02, 3.0),
    "host": (2e-5, 1e-6, 2e-4),
    "ring_host": (4e-5, 1e-6, 4e-4),
}
_MIB = 2.0**20
_FAR = 1e18
_LIMITS = tuple(
    {"limits": (two * _MIB, four, four)}
    for two, four in itertools.product((1.0, 8.0, 64.0), (0.0, 8.0 * _MIB, 32.0 * _MIB, _FAR))
)
"""Candidates for the largest sums of the engine's own kernels among two, and among four and eight GPUs."""
_TWO_BYTES, _ONE_BYTE = 2.0, 1.0


def ring_job(whole: Grid, device: Device) -> Job:
    """The fit of the library's rings; sizes in the file are elements. An all-to-all is no ring and left out."""
    grid = whole.where(whole.texts("op_name") != "alltoall")
    half = grid.texts("nccl_dtype") == "half"
    size = grid.numbers("message_size") * np.where(half, _TWO_BYTES, _ONE_BYTE)
    turns = np.where(grid.texts("op_name") == "all_reduce", 2.0, 1.0)
    gpus = grid.numbers("num_gpus")
    kinds = {name: number for number, name in enumerate(sorted(set(grid.columns["op_name"])))}
    kind = np.array([float(kinds[name]) for name in grid.columns["op_name"]])

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        form = RingForm(**values)
        seconds: Array = form.seconds(device, size[at], gpus[at], turns[at], on=ARRAYS)
        return seconds

    shape = {"size": size, "gpus": gpus, "kind": kind}
    return Job("ring", "bf16", f"NCCL {grid.version.removeprefix('nccl-')}", grid.seconds, shape, evaluate, _RING, {})


def all_reduce_job(grid: Grid, device: Device, ring: RingForm) -> Job:
    """The fit of the engine's own sums, given its library's rings."""
    size, gpus = _TWO_BYTES * grid.numbers("message_size"), grid.numbers("num_gpus")
    eager = grid.texts("backend") == "vllm_eager"

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        form = AllReduceForm(**values, ring=ring)
        seconds: Array = form.seconds(device, size[at], gpus[at], eager=eager[at], on=ARRAYS)
        return seconds

    shape = {"size": size, "gpus": gpus}
    return Job("all_reduce", "bf16", "vLLM custom all-reduce", grid.seconds, shape, evaluate, _OWN, {}, _LIMITS)
