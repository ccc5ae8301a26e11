"""Fits of prompt attention and of single-token attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stowplan.kernel_forms.attention import DecodeForm
from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.parameters import build_form
from stowplan_calibrate.fitting.arrays import ARRAYS
from stowplan_calibrate.fitting.grid_files import Grid
from stowplan_calibrate.fitting.jobs import Array, Index, Job, Specs

_PREFILL: Specs = {
    "latency": (9e-6, 1e-6, 5e-5),
    "sequence": (5e-9, 1e-11, 5e-7),
    "block_overhead": (1e-6, 1e-8, 2e-5),
    "head_overhead": (5e-7, 1e-8, 2e-5),
    "softmax": (1e-13, 1e-15, 1e-10),
    "wave": (0.5, 0.01, 1.0),
    "tail": (2.0, 1.0, 20.0),
    "stream": (0.6, 0.1, 1.2),
    "sharpness": (2.0, 1.0, 20.0),
    "cache_write": (1.0, 0.01, 20.0),
    "windowed": (1.0, 0.3, 4.0),
    "cached_bytes": (3e7, 1e6, 3e8),
    "cache_time": (0.5, 0.05, 1.0),
}
_SHARE = (0.6, 0.1, 3.0)
_DECODE: Specs = {
    "latency": (8e-6, 1e-6, 5e-5),
    "sequence": (5e-9, 1e-11, 5e-7),
    "block_overhead": (1e-6, 1e-8, 2e-5),
    "head_overhead": (1e-6, 1e-8, 2e-5),
    "split_overhead": (3e-6, 1e-8, 3e-5),
    "split_traffic": (1.0, 0.01, 50.0),
    "feed": (2.0, 0.3, 30.0),
    "share": (0.5, 0.02, 3.0),
    "tile_overhead": (1e-7, 1e-9, 2e-5),
    "wave": (0.5, 0.01, 1.0),
    "stream": (0.8, 0.2, 1.1),
    "sharpness": (3.0, 1.0, 20.0),
    "cached_bytes": (3e7, 1e6, 2e8),
    "cache_time": (0.4, 0.05, 1.0),
    "operands": (1.0, 0.01, 40.0),
}
_REGROUP = (4e-6, 1e-8, 2e-5)
_FLASH_ATTENTION_2 = ("vllm_flash_attn", "vllm_flash_attn_fa2")
_FALLBACK = "vllm_triton_attn"
"""Kernel for head dimensions that the usual one lacks with an fp8 cache; its few samples make a fit of their own."""
_UNSEEN = 1e9


def prefill_jobs(grid: Grid, device: Device) -> Iterator[Job]:
    """One fit per cache type and kernel family; prompts of one token run a decode kernel and are left to it."""
    for dtype, kernel, part in _parts(grid.where(grid.numbers("isl") > 1.0)):
        yield _prefill(part, device, dtype, kernel)


def decode_jobs(grid: Grid, device: Device) -> Iterator[Job]:
    """One fit per cache type and kernel family."""
    for dtype, kernel, part in _parts(grid):
        yield _decode(part, device, dtype, kernel)


def _parts(grid: Grid) -> Iterator[tuple[str, str, Grid]]:
    """Samples by cache type, the fallback kernel apart."""
    types, fallback = grid.types("kv_cache_dtype"), grid.texts("kernel_source") == _FALLBACK
    for dtype in ("bf16", "fp8"):
        usual = grid.where((types == dtype) & ~fallback)
        if len(usual.seconds):
            yield dtype, ", ".join(sorted(set(usual.columns["kernel_source"]))), usual
        other = grid.where((types == dtype) & fallback)
        if len(other.seconds):
            yield f"{dtype}-fallback", _FALLBACK, other


def _common(grid: Grid) -> dict[str, Array]:
    """Variables that both kinds of attention share."""
    window = grid.numbers("window_size")
    return {
        "batch": grid.numbers("batch_size"),
        "heads": grid.numbers("num_heads"),
        "kv_heads": grid.numbers("num_key_value_heads"),
        "head_dim": grid.numbers("head_dim"),
        "window": np.where(window > 0.0, window, _UNSEEN),
    }


def _prefill(grid: Grid, device: Device, dtype: str, kernel: str) -> Job:
    """The fit of prompt attention with one cache type."""
    shape = {"new": grid.numbers("isl"), **_common(grid)}

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        form: Any = build_form("prefill", values)
        new, batch, heads, kv_heads, head_dim, window = (column[at] for column in shape.values())
        cache = dtype.partition("-")[0]
        seconds: Array = form.seconds(device, cache, batch, new, 0.0, heads, kv_heads, head_dim, window, on=ARRAYS)
        return seconds

    dimensions = sorted(set(shape["head_dim"].tolist()))
    shares = {f"share_{dimension:.0f}": _SHARE for dimension in dimensions}
    fixed = {} if len(dimensions) > 1 else {"head_overhead": 0.0}
    if bool((shape["window"] == _UNSEEN).all()):
        fixed["windowed"] = 1.0
    return Job(
        kernel_class="prefill",
        dtype=dtype,
        kernel=kernel,
        seconds=grid.seconds,
        shape=shape,
        evaluate=evaluate,
        specs={name: spec for name, spec in {**_PREFILL, **shares}.items() if name not in fixed},
        fixed=fixed,
        variants=tuple({"rows": rows, "grouped": grouped} for rows in (64.0, 128.0) for grouped in (False, True)),
    )


def _decode(grid: Grid, device: Device, dtype: str, kernel: str) -> Job:
    """The fit of single-token attention with one cache type."""
    shape = {"context": grid.numbers("step") + 1.0, **_common(grid)}

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        form = DecodeForm(**values)
        context, batch, heads, kv_heads, head_dim, window = (column[at] for column in shape.values())
        cache = dtype.partition("-")[0]
        seconds: Array = form.seconds(
            device, cache, batch, context, heads, kv_heads, head_dim, window, warm=True, on=ARRAYS
        )
        return seconds

    specs = dict(_DECODE)
    fixed = {} if len(set(shape["head_dim"].tolist())) > 1 else {"head_overhead": 0.0}
    apart = kernel in _FLASH_ATTENTION_2
    if apart:
        specs["regroup"] = _REGROUP
    return Job(
        kernel_class="decode",
        dtype=dtype,
        kernel=kernel,
        seconds=grid.seconds,
        shape=shape,
        evaluate=evaluate,
        specs={name: spec for name, spec in specs.items() if name not in fixed},
        fixed=fixed,
        variants=({"apart": True},) if apart else ({"rows": 16.0}, {"rows": 64.0}),
    )
