"""Kernels that one GPU of a tensor-parallel group runs for a layer, as vLLM fuses and splits them.

Projections of queries, keys and values are one product, as are gate and up; they and the experts are split by columns,
the output and down products by rows, and each of the two row-split products is followed by an all-reduce. Norms, rotary
embeddings, activations and cache writes are separate element-wise kernels over 16-bit activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stowplan.errors import NotExpressible
from stowplan.kernel_forms import KernelForms
from stowplan.models.model import Attention, LatentAttention, Layer, Model, Recurrence, Role, Tensor
from stowplan.ops import output_tensor

BETWEEN_LAYERS = 2.0
"""Bytes of an activation."""

# what is stored in 32 bits (routers) is loaded in the 16-bit type of the model
_DTYPES = {"f32": "bf16", "f16": "bf16", "bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "int8": "int8"}
_QUERY_SIDE = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_QKV)
_KEY_SIDE = (Role.ATTN_K, Role.ATTN_V)
_REPLICATED = (Role.ATTN_Q_A, Role.ATTN_KV_A, Role.ATTN_OTHER, Role.ROUTER)

Kind = Literal["gemm", "moe", "elementwise", "all_reduce"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel whose time depends on the tokens of the step alone.

    Attributes:
        name: for people.
        kind: which form it takes.
        n, k: outputs and inputs of a product; experts: those of the routed block.
        dtype: number format of the weights.
        values: activations per token that an element-wise kernel reads and writes, or an all-reduce sums.
        weight_bytes: bytes of weights on this GPU that it reads where all of them are needed.
    """

    name: str
    kind: Kind
    n: int = 0
    k: int = 0
    dtype: str = "bf16"
    experts: tuple[int, int] = (0, 0)
    values: float = 0.0
    weight_bytes: float = 0.0

    def seconds(self, forms: KernelForms, tokens: float, gpus: int) -> float:
        """Seconds for `tokens` tokens on one of `gpus` GPUs."""
        if self.kind == "gemm":
            return forms.gemm_s(tokens, self.n, self.k, self.dtype)
        if self.kind == "moe":
            total, active = self.experts
            return forms.moe_s(tokens, self.k, self.n, total, active, self.dtype, gpus)
        if self.kind == "all_reduce":
            return forms.all_reduce_s(self.values * BETWEEN_LAYERS * tokens, gpus)
        return forms.elementwise_s(self.values * BETWEEN_LAYERS * tokens)


def kernel_dtype(tensor: Tensor) -> str:
    """Number format in which a tensor's product runs.

    Raises:
        NotExpressible: a storage format whose kernels have not been measured.
    """
    if tensor.format not in _DTYPES:
        raise NotExpressible(
            f"vLLM: kernels of {tensor.format} weights are not known; choose one of {', '.join(sorted(_DTYPES))}"
        )
    return _DTYPES[tensor.format]


def layer_kernels(layer: Layer, hidden: int, gpus: int) -> Iterator[Kernel]:
    """Kernels of a layer in order, attention itself left out.

    Raises:
        NotExpressible: a recurrent mixer, heads that do not divide, or an unknown format.
    """
    tensors = {tensor.role: tensor for tensor in layer.tensors if tensor.columns > 1}
    yield _elementwise("norm", 4 * hidden)
    yield from _projections(layer, tensors, gpus)
    yield from _rotary(layer.mixer, gpus)
    out = tensors[Role.ATTN_OUT]
    yield _product("attention out", [(out.rows, out)], out.columns // gpus)
    if gpus > 1:
        yield Kernel("all-reduce", "all_reduce", values=hidden)
    yield _elementwise("norm", 4 * hidden)
    yield from _feed_forward(layer, tensors, gpus)
    if gpus > 1:
        yield Kernel("all-reduce", "all_reduce", values=hidden)


def _projections(layer: Layer, tensors: dict[Role, Tensor], gpus: int) -> Iterator[Kernel]:
    for role in (Role.ATTN_Q_A, Role.ATTN_KV_A, Role.ATTN_OTHER):
        if role in tensors:
            yield _product(role.value, [(tensors[role].rows, tensors[role])], tensors[role].columns)
    for role in (Role.ATTN_Q_B, Role.ATTN_KV_B):
        if role in tensors:
            yield _product(role.value, [(tensors[role].rows // gpus, tensors[role])], tensors[role].columns)
    fused = [tensors[role] for role in _QUERY_SIDE if role in tensors]
    if fused:
        copies = 1.0
        if isinstance(layer.mixer, Attention):
            copies = max(1.0, gpus / layer.mixer.kv_heads)  # fewer key heads than GPUs: each is kept several times
        shares = [(int(t.rows * (copies if t.role in _KEY_SIDE else 1.0)) // gpus, t) for t in fused]
        yield _product("query, key, value", shares, fused[0].columns)


def _rotary(mixer: Attention | LatentAttention | Recurrence, gpus: int) -> Iterator[Kernel]:
    if isinstance(mixer, Recurrence):
        raise NotExpressible("vLLM: the kernels of recurrent layers have not been measured")
    if mixer.heads % gpus:
        raise NotExpressible(f"vLLM: {mixer.heads} attention heads cannot be split over {gpus} GPUs")
    if isinstance(mixer, Attention):
        cached = max(1, mixer.kv_heads // gpus) * mixer.head_dim
        yield _elementwise("rotary", 2 * (mixer.heads // gpus * mixer.head_dim + cached))
        yield _elementwise("cache write", 4 * cached)
    else:
        yield _elementwise("rotary", 2 * (mixer.heads // gpus + 1) * mixer.rope_dim)
        yield _elementwise("cache write", 2 * mixer.k_elements)


def _feed_forward(layer: Layer, tensors: dict[Role, Tensor], gpus: int) -> Iterator[Kernel]:
    if layer.experts is not None:
        router, gate = tensors[Role.ROUTER], tensors[Role.EXPERT_DOWN]
        yield _product("router", [(router.rows, router)], router.columns)
        yield _elementwise("choice of experts", 2 * router.rows)
        total = layer.experts.total
        parts = [tensors[r] for r in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN) if r in tensors]
        yield Kernel(
            "experts",
            "moe",
            n=gate.columns,
            k=gate.rows,
            dtype=kernel_dtype(gate),
            experts=(total, layer.experts.active),
            weight_bytes=sum(part.bytes for part in parts) / gpus,
        )
    for up_roles, down_role, name in (
        ((Role.FFN_GATE, Role.FFN_UP), Role.FFN_DOWN, ""),
        ((Role.SHARED_GATE, Role.SHARED_UP), Role.SHARED_DOWN, "shared "),
    ):
        if down_role not in tensors:
            continue
        down = tensors[down_role]
        wide = [tensors[role] for role in up_roles if role in tensors]
        inner = down.columns // gpus
        yield _product(f"{name}gate and up", [(t.rows // gpus, t) for t in wide], wide[0].columns)
        yield _elementwise(f"{name}activation", (len(wide) + 1) * inner)
        yield _product(f"{name}down", [(down.rows, down)], inner)


def _product(name: str, parts: list[tuple[int, Tensor]], inputs: int) -> Kernel:
    """Fused product of several tensors with the same inputs; `parts`: (outputs on this GPU, tensor)."""
    stored = sum(t.bytes * (rows / t.rows) * (inputs / t.columns) for rows, t in parts)
    return Kernel(
        name, "gemm", n=sum(rows for rows, _ in parts), k=inputs, dtype=kernel_dtype(parts[0][1]), weight_bytes=stored
    )


def _elementwise(name: str, values: float) -> Kernel:
    return Kernel(name, "elementwise", values=values)


def output_kernels(model: Model, gpus: int) -> tuple[Kernel, ...]:
    """Final norm and logits, by rows that emit a token; sampling is the engine's."""
    matrix = output_tensor(model)
    rows = -(-matrix.rows // gpus)
    kernels = [_elementwise("final norm", 4 * model.hidden), _product("logits", [(rows, matrix)], matrix.columns)]
    if gpus > 1:  # every GPU needs all logits
        kernels.append(Kernel("gather of the logits", "all_reduce", values=rows))
    return tuple(kernels)


def decode_attention_s(
    forms: KernelForms, layer: Layer, gpus: int, batch: float, context: float, cache_dtype: str
) -> float:
    """Seconds of one layer's attention for `batch` sequences with a mean of `context` cached tokens."""
    mixer = layer.mixer
    if isinstance(mixer, LatentAttention):
        seen = context if mixer.selected is None else min(context, float(mixer.selected))
        return forms.mla_decode_s(batch, seen, mixer.heads // gpus, cache_dtype)
    assert isinstance(mixer, Attention)
    heads, kv_heads = mixer.heads // gpus, max(1, mixer.kv_heads // gpus)
    return forms.decode_attention_s(batch, context, heads, kv_heads, mixer.head_dim, cache_dtype, mixer.window)


def chunk_attention_s(
    forms: KernelForms, layer: Layer, gpus: int, tokens: float, past: float, cache_dtype: str
) -> float:
    """Seconds of one layer's attention for a chunk of `tokens` prompt tokens after `past` cached ones."""
    mixer = layer.mixer
    if isinstance(mixer, LatentAttention):
        return forms.mla_prefill_s(tokens, past, mixer.heads // gpus, cache_dtype, mixer.selected)
    assert isinstance(mixer, Attention)
    heads, kv_heads = mixer.heads // gpus, max(1, mixer.kv_heads // gpus)
    return forms.prefill_attention_s(tokens, past, heads, kv_heads, mixer.head_dim, cache_dtype, mixer.window)
