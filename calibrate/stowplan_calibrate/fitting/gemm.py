"""Fits of dense products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.gemm import LIBRARY_TILES, GemmForm
from stowplan_calibrate.fitting.arrays import ARRAYS
from stowplan_calibrate.fitting.grid_files import Grid
from stowplan_calibrate.fitting.jobs import Array, Index, Job, Specs

_SPECS: Specs = {
    "latency": (2e-6, 1e-7, 3e-5),
    "share": (0.8, 0.2, 1.3),
    "small_tile": (0.1, 1e-3, 3.0),
    "feed": (4.0, 0.3, 60.0),
    "tile_overhead": (1e-6, 1e-8, 2e-5),
    "split_overhead": (1.5e-6, 1e-8, 3e-5),
    "split_traffic": (1.0, 0.01, 50.0),
    "wave": (0.6, 0.01, 1.0),
    "stream": (0.87, 0.4, 1.0),
    "sharpness": (2.0, 1.2, 20.0),
    "cached_weights": (15e6, 1e5, 2e8),
    "cached_activations": (60e6, 1e6, 3e8),
    "cache_time": (0.4, 0.05, 1.0),
    "output": (1.0, 0.2, 5.0),
}
_CONVERTING: Specs = {
    "convert_latency": (2e-6, 1e-8, 3e-5),
    "convert_row": (2e-9, 1e-12, 1e-7),
    "convert_traffic": (1.0, 0.01, 20.0),
}
_UNSEEN_BEHIND_HOST: Mapping[str, float] = {"latency": 2e-6, "convert_latency": 2e-6}
"""Seconds of small kernels whose start by the host takes longer than they do: those of the same GPUs' other types."""
_HOST_BOUND = 4e-5
_SPLIT_OFF: Mapping[str, float] = {"split_overhead": 0.0, "split_traffic": 0.0}
_ANY = 1e18
_HOPPER_FP8 = ((1.0, 64.0, 64.0, 64.0), (65.0, 128.0, 64.0, 128.0), (129.0, _ANY, 128.0, 128.0))
_ADA_FP8 = (
    (1.0, 16.0, 16.0, 64.0),
    (1.0, 16.0, 16.0, 128.0),
    (17.0, 32.0, 32.0, 64.0),
    (17.0, 64.0, 64.0, 64.0),
    (65.0, 128.0, 64.0, 128.0),
    (129.0, 256.0, 128.0, 64.0),
    (129.0, _ANY, 128.0, 128.0),
)
_FIXED_TILES: Mapping[str, tuple[Any, ...]] = {"h100-sxm": _HOPPER_FP8, "h200-sxm": _HOPPER_FP8, "l40s": _ADA_FP8}
"""Tiles by m of vLLM's CUTLASS fp8 products per architecture; k is not split."""
_ROLES = {"FlashInferFp8BlockScaledMMKernel": "-few-rows", "CutlassFp8BlockScaledMMKernel": "-unaligned"}
"""Kernels that an engine takes for part of the shapes of a type: under 32 rows, or sides no multiples of 64 and 128."""


def jobs(grid: Grid, device: Device) -> Iterator[Job]:
    """One fit per type and kernel."""
    kernels = grid.texts("kernel_source")
    types = grid.types("gemm_dtype")
    for dtype in sorted(set(types.tolist())):
        for kernel in sorted(set(kernels[types == dtype].tolist())):
            part = grid.where((types == dtype) & (kernels == kernel))
            yield _job(part, device, dtype, kernel)


def _job(grid: Grid, device: Device, dtype: str, kernel: str) -> Job:
    """The fit of one kernel."""
    m, n, k = (grid.numbers(name) for name in ("m", "n", "k"))

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        form = GemmForm(**values)
        seconds: Array = form.seconds(device, dtype, m[at], n[at], k[at], warm=True, eager=True, on=ARRAYS)
        return seconds

    specs = dict(_SPECS)
    fixed: dict[str, float] = {}
    variants: tuple[Mapping[str, Any], ...] = ({},)
    if dtype != "bf16":
        specs.update(_CONVERTING)
    lowest = float(sorted(grid.seconds.tolist())[len(grid.seconds) // 50])
    if lowest > _HOST_BOUND:
        specs["host"] = (lowest, lowest / 3.0, lowest * 3.0)
        fixed.update(_UNSEEN_BEHIND_HOST)
    if dtype == "fp8":
        variants = ({"tiles": LIBRARY_TILES, "splits": False},)
        if device.key in _FIXED_TILES:
            variants += ({"tiles": _FIXED_TILES[device.key], "splits": False},)
        fixed.update(_SPLIT_OFF)
    return Job(
        kernel_class="gemm",
        dtype=dtype + _ROLES.get(kernel, ""),
        kernel=kernel,
        seconds=grid.seconds,
        shape={"m": m, "n": n, "k": k},
        evaluate=evaluate,
        specs={name: spec for name, spec in specs.items() if name not in fixed},
        fixed=fixed,
        variants=variants,
    )
