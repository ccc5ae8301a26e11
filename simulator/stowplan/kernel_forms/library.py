"""A GPU's kernel times: its own fitted forms, or those of its nearest relative on its own datasheet figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile, InputError
from stowplan.kernel_forms.allreduce import AllReduceForm
from stowplan.kernel_forms.attention import UNSEEN, DecodeForm, PrefillForm
from stowplan.kernel_forms.device import Device, device_of
from stowplan.kernel_forms.gemm import GemmForm
from stowplan.kernel_forms.mla import MlaDecodeForm, MlaPrefillForm
from stowplan.kernel_forms.moe import MoeForm
from stowplan.kernel_forms.parameters import FittedForm, FittedGpu, parameter_file, read_fitted
from stowplan.kernel_forms.routing import even_load, skewed_load
from stowplan.machines.compose import pcie_link
from stowplan.machines.library import load_link
from stowplan.machines.machine import Gpu
from stowplan.machines.rates import gpu_read_bandwidth, launch_overhead, relative_sd

CLASSES = ("gemm", "prefill", "decode", "mla_prefill", "mla_decode", "moe", "all_reduce", "elementwise")
STAND_INS: Mapping[str, tuple[str, ...]] = {
    "fp16": ("bf16",),
    "fp32": ("bf16",),
    "fp8": ("bf16",),
    "fp8_block": ("fp8", "bf16"),
    "int8": ("fp8", "bf16"),
    "int4": ("bf16",),
    "mxfp4": ("int4", "bf16"),
    "nvfp4": ("mxfp4", "bf16"),
}
"""Types whose fitted form serves where a type has none of its own; bytes and peaks stay those of the type asked for."""
UNMEASURED = "unmeasured"
"""Name of the file that says how far predictions for GPUs outside the fit are off."""
_COMPLETE = "h200-sxm"
"""The measured GPU that has every class of kernels, for classes that another one's grids lack."""
_FAST_MEMORY = 2e12
"""Bytes/s that only stacked memory reaches."""


@dataclass(frozen=True, slots=True)
class KernelForms:
    """Kernel times of one GPU, in seconds, with weights and cache read from memory and kernels in captured graphs.

    Attributes:
        device: datasheet figures.
        fitted: forms of the products, attention and experts; collectives: forms of the sums over GPUs.
        read_bandwidth, launch: bytes/s and seconds of a memory-bound kernel in a graph.
        spread: log-space standard deviation of a prediction by kernel class, measured on samples outside the fit.
        provenance: what the parameters were fitted to.
        measured: whether this very GPU model was measured; otherwise its relative's forms stand in.
    """

    device: Device
    fitted: FittedGpu
    collectives: FittedGpu
    read_bandwidth: float
    launch: float
    spread: Mapping[str, float]
    provenance: str
    measured: bool
    _chosen: dict[tuple[str, str], FittedForm] = field(default_factory=dict, repr=False, compare=False)

    @property
    def gpu(self) -> str:
        """Key of the GPU."""
        return self.device.key

    @property
    def flops(self) -> Mapping[str, float]:
        """Datasheet FLOP/s by arithmetic."""
        return self.device.peaks

    @property
    def bandwidth(self) -> float:
        """Datasheet memory bytes/s."""
        return self.device.bandwidth

    def gemm_s(self, m: float, n: float, k: float, dtype: str = "bf16") -> float:
        """Seconds of an (m x k) by (k x n) product, activations quantised first where the type needs it."""
        form = self.choose("gemm", dtype).form
        assert isinstance(form, GemmForm)
        return float(form.seconds(self.device, dtype, m, n, k))

    def prefill_attention_s(
        self,
        new: float,
        past: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        cache_dtype: str = "bf16",
        window: int | None = None,
        batch: float = 1.0,
    ) -> float:
        """Seconds of causal attention of `new` tokens of each of `batch` sequences after `past` cached ones."""
        form = self.choose("prefill", cache_dtype).form
        assert isinstance(form, PrefillForm)
        shape = (batch, new, past, heads, kv_heads, head_dim)
        return float(form.seconds(self.device, cache_dtype, *shape, UNSEEN if window is None else float(window)))

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
        """Seconds of attention of one new token in each of `batch` sequences over `mean_context` tokens each."""
        form = self.choose("decode", cache_dtype).form
        assert isinstance(form, DecodeForm)
        shape = (batch, mean_context, heads, kv_heads, head_dim)
        return float(form.seconds(self.device, cache_dtype, *shape, UNSEEN if window is None else float(window)))

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
        skew: float | None = None,
        gated: bool = True,
    ) -> float:
        """Seconds of one layer's routed experts on one GPU, the busiest one under expert parallelism.

        Args:
            tokens: tokens of the step on all GPUs of the group.
            hidden: width of the model. intermediate: inner width of one expert, before it is divided.
            experts: experts of the layer, before they are divided. experts_per_token: experts that a token picks.
            dtype: stored type of the weights.
            tensor_parallel: GPUs that share every expert. expert_parallel: GPUs that the experts are divided over.
            skew: exponent of the popularity's power law (1.0 to 1.2 in the measured grids), or None: all alike.
            gated: whether experts have a gate matrix.
        """
        spread_out = self._special("moe", f"{dtype}-expert-parallel") if expert_parallel > 1 else None
        form = (spread_out or self.choose("moe", dtype)).form
        assert isinstance(form, MoeForm)
        if skew is None:
            load = even_load(tokens, experts, experts_per_token, expert_parallel)
        else:
            load = skewed_load(round(tokens), experts, experts_per_token, expert_parallel, skew)
        seconds = form.seconds(
            self.device,
            dtype,
            tokens,
            float(hidden),
            intermediate / tensor_parallel,
            experts / expert_parallel,
            float(experts_per_token),
            load,
            products=3.0 if gated else 2.0,
        )
        return float(seconds)

    def mla_prefill_s(
        self, new: float, past: float, heads: int, cache_dtype: str = "bf16", window: int | None = None
    ) -> float:
        """Seconds of latent attention of `new` tokens of one sequence after `past` cached ones.

        `window` bounds the cached tokens that a row attends to, as sparse attention selects them.
        """
        form = self.choose("mla_prefill", cache_dtype).form
        assert isinstance(form, MlaPrefillForm)
        seen = past if window is None else min(past, max(0.0, window - new / 2.0))
        return float(form.seconds(self.device, cache_dtype, 1.0, new, seen, heads))

    def mla_decode_s(self, batch: float, mean_context: float, heads: int, cache_dtype: str = "bf16") -> float:
        """Seconds of latent attention of one new token in each of `batch` sequences."""
        form = self.choose("mla_decode", cache_dtype).form
        assert isinstance(form, MlaDecodeForm)
        return float(form.seconds(self.device, cache_dtype, batch, mean_context, heads))

    def all_reduce_s(self, size: float, gpus: int, dtype: str = "bf16") -> float:  # noqa: ARG002
        """Seconds to sum `size` bytes over `gpus` GPUs; nothing for one."""
        if gpus == 1:
            return 0.0
        form = self.collectives.forms["all_reduce", "bf16"].form
        assert isinstance(form, AllReduceForm)
        return float(form.seconds(self.device, size, gpus))

    def elementwise_s(self, size: float) -> float:
        """Seconds of a norm, rotary embedding or activation that moves `size` bytes: a launch, and the memory's rate.

        No grid measures these; launch and rate are the GPU's own measured figures or the usual ones (``rates.toml``).
        """
        return self.launch + size / self.read_bandwidth

    def in_range(self, kernel_class: str, dtype: str, **values: float) -> bool:
        """Whether the fit of a class and type had samples around these values (``m=16, n=4096, k=4096``)."""
        return self.choose(kernel_class, dtype).in_range(values)

    def choose(self, kernel_class: str, dtype: str) -> FittedForm:
        """The fitted form of a class for a type, or of the type that stands in for it.

        Raises:
            InputError: no form of that class serves that type.
        """
        known = self._chosen.get((kernel_class, dtype))
        if known is not None:
            return known
        forms = self.fitted.forms
        for name in (dtype, *STAND_INS.get(dtype, ())):
            if (kernel_class, name) in forms:
                self._chosen[kernel_class, dtype] = forms[kernel_class, name]
                return forms[kernel_class, name]
        known_types = ", ".join(name for owner, name in forms if owner == kernel_class)
        raise InputError(f"{self.gpu}: no {kernel_class} kernel is known for the type '{dtype}'; known: {known_types}")

    def _special(self, kernel_class: str, name: str) -> FittedForm | None:
        """A form for special circumstances, where one was fitted."""
        return self.fitted.forms.get((kernel_class, name))


def forms_for(gpu: Gpu) -> KernelForms:
    """Kernel forms of a GPU: its own where its model was measured, otherwise its nearest relative's.

    Raises:
        InputError: a GPU without a number of units.
        BadFile: a parameter file that is wrong.
    """
    own = parameter_file(gpu.key)
    relative = read_fitted(_shipped(_relative(gpu)))
    fitted = read_fitted(own) if own is not None else relative
    collectives = fitted if own is not None and fitted.has("all_reduce") else read_fitted(_shipped(_linked_alike(gpu)))
    rate, start = gpu_read_bandwidth(gpu), launch_overhead(gpu, graph=True)
    spread = _unmeasured_spread()
    source = f"parameters of {fitted.key}, its nearest measured relative, on its own datasheet: {fitted.where}"
    if own is not None:
        spread |= {name: fitted.spread(name) for name in CLASSES[:-1] if fitted.has(name)}
        source = f"fitted to this GPU: {fitted.where}"
    spread["elementwise"] = max(relative_sd(rate), relative_sd(start))
    for lender in (relative, read_fitted(_shipped(_COMPLETE))):
        fitted = fitted.completed_by(lender)
    return KernelForms(
        device=datasheet(gpu),
        fitted=fitted,
        collectives=collectives,
        read_bandwidth=rate.value,
        launch=start.value,
        spread=spread,
        provenance=source,
        measured=own is not None,
    )


def datasheet(gpu: Gpu) -> Device:
    """What the forms need to know of a GPU, its link to its peers included.

    Raises:
        InputError: a GPU without a number of units.
    """
    return device_of(gpu, _link(gpu))


def _link(gpu: Gpu) -> float:
    """Bytes/s in each direction between this GPU and its peers."""
    if gpu.peer_link is not None:
        return load_link(gpu.peer_link).bandwidth.value
    if gpu.pcie_generation:
        return pcie_link(gpu.pcie_generation, gpu.pcie_lanes).bandwidth.value
    return gpu.bandwidth.value


def _relative(gpu: Gpu) -> str:
    """Key of the measured GPU whose kernels this one most likely runs, judged by what its datasheet can do.

    Blackwell data-centre GPUs have fp4 and fast memory; Hopper has fp8 and fast memory; Ada has fp8 and GDDR; what has
    no fp8 runs the kernels of Ampere.
    """
    fast = gpu.bandwidth.value >= _FAST_MEMORY
    if "fp4" in gpu.peaks and fast:
        return "b200"
    if "fp8" in gpu.peaks:
        return "h200-sxm" if fast else "l40s"
    return "a100-80gb-sxm"


def _linked_alike(gpu: Gpu) -> str:
    """Key of the measured GPU whose sums over GPUs this one's links resemble."""
    alike = {"nvlink-5": "b200", "nvlink-4": "h200-sxm", "nvlink-3": "a100-80gb-sxm", "nvlink-2": "a100-80gb-sxm"}
    return alike.get(gpu.peer_link or "", "l40s")


def _shipped(key: str) -> Path:
    """Parameter file that this package ships."""
    path = parameter_file(key)
    if path is None:
        raise BadFile(f"hwprofiles/kernel-forms/{key}.toml: missing; reinstall stowplan")
    return path


def _unmeasured_spread() -> dict[str, float]:
    """Spread by class of predictions for a GPU outside the fit, measured by leaving GPUs out."""
    path = _shipped(UNMEASURED)
    table = read_toml(path)
    try:
        return {name: float(table["spread"][name]["value"]) for name in CLASSES[:-1]}
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{path}: needs a table [spread] with {', '.join(CLASSES[:-1])} ({error})") from error
