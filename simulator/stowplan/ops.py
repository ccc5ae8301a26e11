"""A model's operators: the exact arithmetic and traffic of one step, before any hardware is named.

A *step* is one pass through the layers: a chunk of a prompt, or one token for each sequence of a batch. Every
operator states its FLOPs, the stored bytes of the weights that it reads, and the bytes of KV cache that it reads and
writes. Efficiencies are no business of this module (see `stowplan.kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from stowplan.models.cache import state_bytes
from stowplan.models.model import (
    DENSE_FFN_ROLES,
    EXPERT_ROLES,
    SHARED_ROLES,
    Attention,
    LatentAttention,
    Layer,
    Model,
    Recurrence,
    Role,
    Tensor,
)


class Part(StrEnum):
    """The pieces of a layer that can live in a place of their own."""

    MIXER = "attention"
    KV = "kv"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    EXPERT_GATE = "ffn_gate_exps"
    EXPERT_UP = "ffn_up_exps"
    EXPERT_DOWN = "ffn_down_exps"
    SHARED = "shared_experts"


FFN_PARTS = (Part.FFN_GATE, Part.FFN_UP, Part.FFN_DOWN)
EXPERT_PARTS = (Part.EXPERT_GATE, Part.EXPERT_UP, Part.EXPERT_DOWN)


_PARTS = {
    role: Part(role.value)
    if role in EXPERT_ROLES or role in DENSE_FFN_ROLES
    else (Part.SHARED if role in SHARED_ROLES else Part.MIXER)
    for role in Role
}


def part_of(tensor: Tensor) -> Part:
    """The part of its layer that a tensor belongs to; norms, biases and routers go with the mixer."""
    return _PARTS[tensor.role]


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model.

    Attributes:
        new: new tokens of each sequence (1 in decode, the chunk's length in prefill).
        groups: (past, count) pairs: `count` sequences that have `past` tokens in the cache before the step.
        logits: rows of the output matrix product.
    """

    new: int
    groups: tuple[tuple[int, int], ...]
    logits: int

    @staticmethod
    def decode(batch: int, context: int) -> Step:
        """One token for each of `batch` sequences that have `context` tokens in the cache."""
        return Step(1, ((context, batch),), batch)

    @staticmethod
    def prefill(tokens: int, past: int = 0, sequences: int = 1) -> Step:
        """A chunk of `tokens` prompt tokens of each sequence after `past` cached ones; one row of logits each."""
        return Step(tokens, ((past, sequences),), sequences)

    @property
    def sequences(self) -> int:
        """Sequences in the batch."""
        return sum(count for _, count in self.groups)

    @property
    def tokens(self) -> int:
        """New tokens over all sequences."""
        return self.new * self.sequences


class Kind(StrEnum):
    """What an operator does."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENCE = "recurrence"
    LOOKUP = "lookup"


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of one step.

    Attributes:
        name: the tensor's stem, or ``attention``.
        part: the part of the layer it belongs to; None outside the layers.
        kind: matrix product, attention, recurrence or table look-up.
        flops: floating-point operations (a fused multiply-add counts two).
        weight_bytes: stored bytes of the weights it reads; routed experts by the expected number of distinct ones.
        kv_read, kv_write: bytes of KV cache or recurrent state.
        activation_bytes: 16-bit inputs and outputs.
        scratch_bytes: intermediates that an unfused kernel writes and reads again.
        m, n, k: rows of activations per matrix, outputs and inputs of one matrix.
        matrices: (expected) distinct matrices used: 1, or distinct experts.
        format: storage format of the weights or of the cache.
        weights: elements of the weights it reads.
        group: query heads that share one key/value head; 1 outside attention.
        scores: attention scores (query heads times query-key pairs); 0 outside attention.
    """

    name: str
    part: Part | None
    kind: Kind
    flops: float
    weight_bytes: float = 0.0
    kv_read: float = 0.0
    kv_write: float = 0.0
    activation_bytes: float = 0.0
    scratch_bytes: float = 0.0
    m: float = 1.0
    n: int = 1
    k: int = 1
    matrices: float = 1.0
    format: str = "f16"
    weights: float = 0.0
    group: int = 1
    scores: float = 0.0

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOPs per byte of weights, cache and activations."""
        moved = self.weight_bytes + self.kv_read + self.kv_write + self.activation_bytes
        return self.flops / moved if moved else 0.0


def distinct_experts(total: int, active: int, tokens: float) -> float:
    """Expected number of distinct experts that `tokens` tokens touch when each picks `active` of `total` uniformly.

    ``total (1 - (1 - active/total)^tokens)``: exact for independent uniform routing.
    """
    missed: float = (1.0 - active / total) ** tokens
    return total * (1.0 - missed)


def visible_pairs(new: int, past: int, window: int | None) -> float:
    """Query-key pairs of `new` causal queries after `past` tokens, each seeing itself and at most `window` tokens."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) / 2
    growing = max(0, min(new, window - past))  # queries that still see fewer than `window` tokens
    return growing * past + growing * (growing + 1) / 2 + (new - growing) * window


def cached_tokens(past: int, new: int, window: int | None) -> int:
    """Tokens of cache that a step reads: everything in sight of its oldest query."""
    return past + new if window is None else min(past + new, window + new - 1)


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """Bytes of one cached key element and one cached value element (scales included)."""

    k: float = 2.0
    v: float = 2.0

    def token_bytes(self, layer: Layer) -> float:
        """KV bytes of one token in one layer; 0 for a recurrent mixer."""
        if isinstance(layer.mixer, Recurrence):
            return 0.0
        return float(layer.mixer.k_elements * self.k + layer.mixer.v_elements * self.v)

    def sequence_bytes(self, layer: Layer, context: int, *, full_window: bool = False) -> float:
        """Bytes that one sequence of `context` tokens keeps in one layer: KV cache, or an fp32 recurrent state.

        With `full_window`, a sliding window keeps only what a later query can still see.
        """
        if isinstance(layer.mixer, Recurrence):
            return state_bytes(layer.mixer)
        window = layer.mixer.window if full_window else None
        return self.token_bytes(layer) * (context if window is None else min(context, window))


def _matmul(tensor: Tensor, part: Part | None, tokens: float, active_share: tuple[int, int] | None) -> Operator:
    if active_share is None:
        matrices, products = float(tensor.count), tokens * tensor.count
    else:
        total, active = active_share
        matrices, products = distinct_experts(total, active, tokens), tokens * active
    weights = tensor.rows * tensor.columns * matrices
    return Operator(
        name=tensor.role.value,
        part=part,
        kind=Kind.MATMUL,
        flops=2.0 * products * tensor.rows * tensor.columns,
        weight_bytes=tensor.bytes * matrices / tensor.count,
        activation_bytes=2.0 * products * (tensor.rows + tensor.columns),
        m=products / matrices,
        n=tensor.rows,
        k=tensor.columns,
        matrices=matrices,
        format=tensor.format,
        weights=weights,
    )


def _attention(mixer: Attention | LatentAttention, step: Step, cache: CacheFormat, kv_format: str) -> Operator:
    if isinstance(mixer, Attention):
        pair_flops = 2.0 * mixer.heads * (mixer.head_dim + mixer.value_dim)
        group, width = mixer.heads // mixer.kv_heads, mixer.head_dim
        query = mixer.heads * (mixer.head_dim + mixer.value_dim)
    else:  # keys and values absorbed into the query and output projections: one shared latent head
        pair_flops = 2.0 * mixer.heads * (2 * mixer.latent + mixer.rope_dim)
        group, width = mixer.heads, mixer.latent + mixer.rope_dim
        query = mixer.heads * (2 * mixer.latent + mixer.rope_dim)
    token = mixer.k_elements * cache.k + mixer.v_elements * cache.v
    pairs = read = 0.0
    for past, count in step.groups:
        selected = mixer.selected if isinstance(mixer, LatentAttention) else None
        window = mixer.window if selected is None else selected
        pairs += count * visible_pairs(step.new, past, window)
        read += count * cached_tokens(past, step.new, mixer.window) * token
        if selected is not None and step.new == 1:
            read -= count * max(0, past + 1 - selected) * token
    return Operator(
        name="attention",
        part=Part.KV,
        kind=Kind.ATTENTION,
        flops=pair_flops * pairs,
        kv_read=read,
        kv_write=step.tokens * token,
        activation_bytes=2.0 * step.tokens * query,
        m=float(step.new),
        n=width,
        k=width,
        matrices=float(step.sequences),
        format=kv_format,
        group=group,
        scores=mixer.heads * pairs,
    )


def mixer_operators(layer: Layer, step: Step, cache: CacheFormat, kv_format: str = "f16") -> tuple[Operator, ...]:
    """Operators of a layer's mixer in order: projections, attention or recurrence, output projection."""
    tokens = float(step.tokens)
    before: list[Operator] = []
    after: list[Operator] = []
    for tensor in layer.tensors:
        if part_of(tensor) is Part.MIXER and tensor.columns > 1 and tensor.role is not Role.ROUTER:
            (after if tensor.role is Role.ATTN_OUT else before).append(_matmul(tensor, Part.MIXER, tokens, None))
    if isinstance(layer.mixer, Recurrence):
        state = float(state_bytes(layer.mixer) * step.sequences)
        middle = Operator(
            name="recurrence",
            part=Part.KV,
            kind=Kind.RECURRENCE,
            flops=layer.mixer.flops_per_token * tokens,
            kv_read=state,
            kv_write=state,
            m=float(step.new),
            matrices=float(step.sequences),
            format="f32",
        )
    else:
        middle = _attention(layer.mixer, step, cache, kv_format)
    return (*before, middle, *after)


def ffn_operators(layer: Layer, tokens: int) -> tuple[Operator, ...]:
    """Operators of a layer's feed-forward block in order: router, routed experts, shared experts or dense matrices."""
    share = (layer.experts.total, layer.experts.active) if layer.experts else None
    chosen: list[Operator] = []
    for tensor in layer.tensors:
        if tensor.columns == 1:
            continue
        if tensor.role is Role.ROUTER:
            chosen.insert(0, _matmul(tensor, Part.MIXER, tokens, None))
        elif tensor.role in EXPERT_ROLES:
            chosen.append(_matmul(tensor, part_of(tensor), tokens, share))
        elif tensor.role in DENSE_FFN_ROLES or tensor.role in SHARED_ROLES:
            chosen.append(_matmul(tensor, part_of(tensor), tokens, None))
    order = {Role.ROUTER.value: 0, "ffn_gate": 1, "ffn_up": 2, "ffn_down": 3}
    return tuple(sorted(chosen, key=lambda op: order[op.name.removesuffix("_exps").removesuffix("_shexp")]))


def embedding_operator(model: Model, step: Step) -> Operator:
    """Look-up of one embedding row per token."""
    table = next(t for t in model.globals if t.role is Role.TOKEN_EMBEDDING)
    row = table.bytes / table.rows
    return Operator(
        "token_embd",
        None,
        Kind.LOOKUP,
        0.0,
        weight_bytes=row * step.tokens,
        format=table.format,
        m=float(step.tokens),
    )


def output_tensor(model: Model) -> Tensor:
    """The matrix that makes logits: the output tensor, or the tied token embedding."""
    wanted = Role.TOKEN_EMBEDDING if model.tied else Role.OUTPUT
    return next(t for t in model.globals if t.role is wanted)


def output_operator(model: Model, step: Step) -> Operator:
    """The product that makes logits for `step.logits` rows."""
    return replace(_matmul(output_tensor(model), None, step.logits, None), name="output")


def step_operators(model: Model, step: Step, cache: CacheFormat) -> Iterator[Operator]:
    """Every operator of one step in execution order."""
    yield embedding_operator(model, step)
    for layer in model.layers:
        yield from mixer_operators(layer, step, cache)
        yield from ffn_operators(layer, step.tokens)
    yield output_operator(model, step)
