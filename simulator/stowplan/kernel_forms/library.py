"""A GPU's kernel forms, with its own fitted parameters or those of its nearest relatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stowplan.errors import InputError
from stowplan.machines.machine import Gpu

BYTES_PER_VALUE: Mapping[str, float] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "fp4": 0.5}


@dataclass(frozen=True, slots=True)
class KernelForms:
    """Kernel times of one GPU, in seconds.

    Attributes:
        gpu: key of the GPU.
        flops: peak FLOP/s by arithmetic.
        bandwidth: datasheet memory bytes/s.
        link: bytes/s to its peers in each direction.
        spread: log-space standard deviation of a prediction, by kernel class.
        provenance: what the parameters were fitted to.
        measured: whether this very GPU model was in the fit.
    """

    gpu: str
    flops: Mapping[str, float]
    bandwidth: float
    link: float
    spread: Mapping[str, float]
    provenance: str
    measured: bool

    def gemm_s(self, m: float, n: float, k: float, dtype: str = "bf16") -> float:
        """Seconds of an (m x k) by (k x n) product, weights (k x n) read from memory."""
        size = BYTES_PER_VALUE[dtype]
        moved = size * (m * k + n * k) + 2.0 * m * n
        return 3e-6 + max(2.0 * m * n * k / (0.7 * self._peak(dtype)), moved / (0.85 * self.bandwidth))

    def prefill_attention_s(
        self,
        new: float,
        past: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        cache_dtype: str = "bf16",
        window: int | None = None,
    ) -> float:
        """Seconds of causal attention of `new` tokens of one sequence after `past` cached ones."""
        seen = past + (new + 1.0) / 2.0 if window is None else min(past + (new + 1.0) / 2.0, float(window))
        flops = 4.0 * heads * head_dim * new * seen
        moved = 2.0 * (past + new) * kv_heads * head_dim * BYTES_PER_VALUE[cache_dtype] + 4.0 * new * heads * head_dim
        return 10e-6 + max(flops / (0.55 * self._peak("bf16")), moved / (0.8 * self.bandwidth))

    def decode_attention_s(
        self,
        batch: float,
        mean_context: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        cache_dtype: str = "bf16",
        window: int | None = None,
    ) -> float:
        """Seconds of attention of one new token in each of `batch` sequences over `mean_context` cached tokens."""
        seen = mean_context if window is None else min(mean_context, float(window))
        moved = 2.0 * batch * seen * kv_heads * head_dim * BYTES_PER_VALUE[cache_dtype]
        return 10e-6 + moved / (0.75 * self.bandwidth)

    def moe_s(
        self,
        tokens: float,
        hidden: int,
        intermediate: int,
        experts: int,
        experts_per_token: int,
        dtype: str = "bf16",
        tensor_parallel: int = 1,
        expert_parallel: int = 1,
    ) -> float:
        """Seconds of a fused mixture of experts (gate, up and down products) on one GPU of its group."""
        local = experts / expert_parallel
        pairs = tokens * experts_per_token / expert_parallel
        touched = local * (1.0 - (1.0 - 1.0 / local) ** pairs) if local > 1.0 else 1.0
        weights = 3.0 * hidden * intermediate / tensor_parallel
        moved = touched * weights * BYTES_PER_VALUE[dtype]
        return 20e-6 + max(2.0 * pairs * weights / (0.5 * self._peak(dtype)), moved / (0.75 * self.bandwidth))

    def mla_prefill_s(
        self, new: float, past: float, heads: int, cache_dtype: str = "bf16", window: int | None = None
    ) -> float:
        """Seconds of latent attention (192 query-key, 128 value dimensions) of `new` tokens of one sequence."""
        return self.prefill_attention_s(new, past, heads, heads, 160, cache_dtype, window)

    def mla_decode_s(self, batch: float, mean_context: float, heads: int, cache_dtype: str = "bf16") -> float:
        """Seconds of latent attention of one new token in each of `batch` sequences (576 cached values per token)."""
        flops = 2.0 * batch * mean_context * heads * (576.0 + 512.0)
        moved = batch * mean_context * 576.0 * BYTES_PER_VALUE[cache_dtype]
        return 20e-6 + max(flops / (0.5 * self._peak("bf16")), moved / (0.7 * self.bandwidth))

    def all_reduce_s(self, size: float, gpus: int, dtype: str = "bf16") -> float:
        """Seconds to sum `size` bytes over `gpus` GPUs."""
        return 0.0 if gpus == 1 else 6e-6 + 2.0 * (gpus - 1) / gpus * size / (0.75 * self.link)

    def elementwise_s(self, size: float) -> float:
        """Seconds of a norm, rotary embedding or activation that moves `size` bytes."""
        return 2.5e-6 + size / (0.8 * self.bandwidth)

    def _peak(self, dtype: str) -> float:
        arithmetic = {"fp8_block": "fp8"}.get(dtype, dtype)
        for name in (
            (arithmetic, "fp8", "fp16", "bf16", "fp32") if arithmetic == "fp4" else (arithmetic, "fp16", "fp32")
        ):
            if name in self.flops:
                return self.flops[name]
        raise InputError(f"{self.gpu}: has no peak for {dtype}; its file names {', '.join(self.flops)}")


def forms_for(gpu: Gpu) -> KernelForms:
    """Kernel forms of a GPU."""
    return KernelForms(
        gpu=gpu.key,
        flops={name: number.value for name, number in gpu.peaks.items()},
        bandwidth=gpu.bandwidth.value,
        link=450e9 if gpu.peer_link else 32e9,
        spread=dict.fromkeys(
            ("gemm", "prefill", "decode", "mla_prefill", "mla_decode", "moe", "all_reduce", "elementwise"), 0.3
        ),
        provenance="datasheet peaks times usual shares",
        measured=False,
    )
