"""Fits of mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.moe import MoeForm
from stowplan.kernel_forms.routing import ExpertLoad, skewed_load, strided_load
from stowplan_calibrate.fitting.arrays import ARRAYS
from stowplan_calibrate.fitting.grid_files import Grid
from stowplan_calibrate.fitting.jobs import Array, Index, Job, Specs

_SPECS: Specs = {
    "latency": (2e-5, 1e-6, 2e-3),
    "expert": (1e-8, 1e-11, 1e-5),
    "pair": (1e-9, 1e-12, 1e-7),
    "share": (0.6, 0.01, 1.2),
    "small_tile": (0.1, 1e-3, 5.0),
    "feed": (3.0, 0.02, 30.0),
    "tile_overhead": (1e-6, 1e-8, 2e-5),
    "wave": (0.5, 0.01, 1.0),
    "stream": (0.8, 0.05, 1.0),
    "sharpness": (3.0, 1.0, 20.0),
    "hidden": (0.5, 0.01, 50.0),
    "inner": (0.5, 0.01, 50.0),
    "own_hidden": (0.5, 0.01, 50.0),
    "token_hidden": (0.5, 0.01, 50.0),
    "cached_weights": (2e7, 1e6, 3e8),
    "cached_activations": (2e8, 1e6, 2e9),
    "cache_time": (0.5, 0.05, 1.0),
    "activation_time": (0.5, 0.05, 1.0),
    "unaligned": (2.0, 1.0, 8.0),
}
_PLAIN: Specs = {
    "plain_share": (0.5, 0.05, 1.3),
    "plain_overhead": (1e-6, 1e-8, 2e-5),
    "plain_stream": (1.0, 0.3, 1.5),
    "throttled": (0.3, 0.01, 2.0),
    "throttled_after": (0.1, 0.005, 2.0),
}
_TUNED = ((128.0, 192.0), (8.0, 2048.0), (8.0, 4096.0), (8.0, 3584.0), (8.0, 7168.0), (8.0, 1792.0), (1.0, 14336.0))
"""Local experts and inner dimension that vLLM 0.14 ships tuned Triton tiles for on A100-SXM4-80GB."""
_OLD = "0.14.0"
"""The grids of this version put popular experts together when there are few pairs, and run Triton's plain tiles."""
_UNGATED_INNER, _UNGATED_TOP = 1856.0, 22.0
"""Nemotron 3: inner dimension of one, experts per token of the other; both square a ReLU and have no gate."""
_FEWEST = 60
_ROLES = {
    ("fp8_block", "vllm_fp8moe_flashinfer_cutlass_flashinferexperts"): "-expert-parallel",
    ("fp8_block", "vllm_fp8moe_flashinfer_trtllm_trtllmfp8expertsmodular"): "-modular",
    ("bf16", "vllm_unquantizedfusedmoe_flashinfer_cutlass_flashinferexperts"): "-cutlass",
    ("nvfp4", "vllm_compressedtensorsw4a4nvfp4moe_flashinfer_cutlass_flashinferexperts"): "-cutlass",
    ("mxfp4", "vllm_mxfp4moe_flashinfer_trtllm_mxfp4_mxfp8_trtllmmxfp4expertsmodular"): "-fp8-activations",
}
"""Kernels that serve part of a type's shapes; those of one type without a name here are told apart by their samples."""


def jobs(grid: Grid, device: Device) -> Iterator[Job]:
    """One fit per type and kernel with enough samples; a type's plain name goes to its most measured kernel."""
    types, kernels = grid.types("moe_dtype"), grid.texts("kernel_source")
    for dtype in sorted(set(types.tolist())):
        counted = [(int(((types == dtype) & (kernels == kernel)).sum()), kernel) for kernel in set(kernels.tolist())]
        taken = False
        for count, kernel in sorted(counted, reverse=True):
            if count < _FEWEST:
                continue
            role = _ROLES.get((dtype, kernel), "")
            if not role:
                role, taken = ("-other" if taken else ""), True
            yield _job(grid.where((types == dtype) & (kernels == kernel)), device, dtype, dtype + role, kernel)


def _job(grid: Grid, device: Device, dtype: str, key: str, kernel: str) -> Job:
    """The fit of one kernel."""
    tokens, hidden, inner, experts, top = (
        grid.numbers(name) for name in ("num_tokens", "hidden_size", "inter_size", "num_experts", "topk")
    )
    split, spread = grid.numbers("moe_tp_size"), grid.numbers("moe_ep_size")
    old = grid.version.endswith(_OLD)
    ungated = ((inner == _UNGATED_INNER) | (top == _UNGATED_TOP)) & (not old)
    products = np.where(ungated, 2.0, 3.0)
    touched, pairs, tiles = _loads(grid, old)
    shape = {
        "tokens": tokens,
        "hidden": hidden,
        "inner": inner / split,
        "experts": experts / spread,
        "experts_per_token": top,
        "expert_parallel": spread,
        "products": products,
    }

    def evaluate(values: Mapping[str, Any], at: Index) -> Array:
        form = MoeForm(**values)
        load = ExpertLoad(touched[at], pairs[at], tuple(tiles[at].T))
        few = (tokens[at], hidden[at], shape["inner"][at], shape["experts"][at], top[at])
        seconds: Array = form.seconds(device, dtype, *few, load, products=products[at], warm=True, on=ARRAYS)
        return seconds

    specs = {**_SPECS, **_PLAIN} if old else _SPECS
    variants = ({"plain": True, "tuned": _TUNED},) if old else ({},)
    return Job("moe", key, kernel, grid.seconds, shape, evaluate, specs, {}, variants)


def _loads(grid: Grid, old: bool) -> tuple[Array, Array, Array]:
    """Touched experts, pairs and tiles of every sample, by the routing that its file states."""
    loads = []
    names = ("num_tokens", "num_experts", "topk", "moe_ep_size")
    for numbers in zip(*(grid.columns[name] for name in (*names, "distribution")), strict=True):
        tokens, experts, top, spread = (int(text) for text in numbers[:4])
        if numbers[4] == "balanced":
            loads.append(strided_load(tokens, experts, top, spread))
        else:
            exponent = float(numbers[4].rpartition("_")[2])
            loads.append(skewed_load(tokens, experts, top, spread, exponent, old and tokens * top <= experts))
    return (
        np.array([load.touched for load in loads]),
        np.array([load.pairs for load in loads]),
        np.array([load.tiles for load in loads]),
    )
