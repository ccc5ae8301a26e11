"""What a model is, once its facts have been read: layers with their sizes, and tensors with their formats."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a tensor does. Values are the stems of llama.cpp's tensor names."""

    TOKEN_EMBEDDING = "token_embd"
    POSITION_EMBEDDING = "position_embd"
    OUTPUT = "output"
    OUTPUT_NORM = "output_norm"
    ATTN_NORM = "attn_norm"  # every norm or bias vector of the mixer
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_QKV = "attn_qkv"
    ATTN_OUT = "attn_output"
    ATTN_Q_A = "attn_q_a"  # MLA: query down-projection
    ATTN_Q_B = "attn_q_b"
    ATTN_KV_A = "attn_kv_a_mqa"
    ATTN_KV_B = "attn_kv_b"  # MLA: latent to keys and values; split as attn_k_b and attn_v_b in newer files
    ATTN_OTHER = "attn_other"  # gates, sinks, indexers
    SSM = "ssm"  # every matrix of a linear-attention or state-space mixer
    FFN_NORM = "ffn_norm"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    ROUTER = "ffn_gate_inp"
    EXPERT_GATE = "ffn_gate_exps"
    EXPERT_UP = "ffn_up_exps"
    EXPERT_DOWN = "ffn_down_exps"
    SHARED_GATE = "ffn_gate_shexp"
    SHARED_UP = "ffn_up_shexp"
    SHARED_DOWN = "ffn_down_shexp"
    OTHER = "other"


EXPERT_ROLES = frozenset({Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN})
SHARED_ROLES = frozenset({Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN})
DENSE_FFN_ROLES = frozenset({Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One weight tensor.

    Attributes:
        name: llama.cpp's name, such as ``blk.3.ffn_up_exps.weight``.
        role: what it does.
        layer: index of its layer, None for embeddings and the output.
        rows, columns: outputs and inputs of one matrix; a vector has one column, a lookup table one row per entry.
        count: matrices stacked in the tensor (experts), 1 otherwise.
        format: key of its storage format, such as ``q4_k`` or ``f16``.
        bytes: exact stored bytes, scales included.
    """

    name: str
    role: Role
    layer: int | None
    rows: int
    columns: int
    count: int
    format: str
    bytes: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.rows * self.columns * self.count


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention of one layer (MHA, GQA or MQA).

    Attributes:
        heads, kv_heads: query and key/value heads.
        head_dim, value_dim: width of one key and one value head.
        window: tokens a query can see, None for all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None

    @property
    def k_elements(self) -> int:
        """Cached key elements of one token."""
        return self.kv_heads * self.head_dim

    @property
    def v_elements(self) -> int:
        """Cached value elements of one token."""
        return self.kv_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): the cache holds one latent and one rotary key per token.

    Attributes:
        heads: query heads.
        latent: rank of the compressed keys and values (kv_lora_rank).
        rope_dim: width of the shared rotary key.
        nope_dim: width of a query/key head without rotation.
        value_dim: width of a value head.
        selected: tokens that sparse attention reads per query, None for all.
    """

    heads: int
    latent: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    selected: int | None = None

    @property
    def window(self) -> None:
        """Latent attention keeps every token."""
        return

    @property
    def k_elements(self) -> int:
        """Cached elements of one token: latent and rotary key."""
        return self.latent + self.rope_dim

    @property
    def v_elements(self) -> int:
        """Values are rebuilt from the latent: nothing more is cached."""
        return 0


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Linear attention or a state-space mixer: a state of fixed size per sequence.

    Attributes:
        state_elements: elements of one sequence's state (kept in fp32).
        flops_per_token: state update and read-out FLOPs of one token.
    """

    state_elements: int
    flops_per_token: int


Mixer = Attention | LatentAttention | Recurrence


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts of one layer: `total` of them, `active` per token."""

    total: int
    active: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One block.

    Attributes:
        index: position in the model.
        mixer: what mixes tokens.
        experts: routed experts, None for a dense feed-forward block.
        tensors: the layer's tensors, routed experts and norms included, in file order.
    """

    index: int
    mixer: Mixer
    experts: Experts | None
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as it would be stored; compared by identity, for one is thousands of tensors.

    Attributes:
        key: stable kebab-case name, or the stem of the user's file.
        name: name for people.
        architecture: llama.cpp's architecture name where known (llama, qwen3moe, deepseek2, opt ...).
        quant: label of the storage mix, such as ``q4_k_m`` or ``f16``.
        hidden: width of the residual stream.
        vocabulary: tokens.
        max_context: longest context that the model was made for.
        layers: blocks in order.
        globals: tensors outside the blocks (embeddings, output, final norm).
        tied: whether the output reuses the token embedding (then no OUTPUT tensor exists).
        origin: where the facts came from.
        published_parameters: published total, None when nobody states one.
    """

    key: str
    name: str
    architecture: str
    quant: str
    hidden: int
    vocabulary: int
    max_context: int
    layers: tuple[Layer, ...]
    globals: tuple[Tensor, ...]
    tied: bool
    origin: str
    published_parameters: float | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, globals first."""
        return self.globals + tuple(t for layer in self.layers for t in layer.tensors)

    @property
    def parameters(self) -> int:
        """Total number of weights."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def active_parameters(self) -> float:
        """Weights that one token uses: routed experts count by the share that is active."""
        total = float(sum(tensor.elements for tensor in self.globals if tensor.role is not Role.TOKEN_EMBEDDING))
        if self.tied:
            total += sum(t.elements for t in self.globals if t.role is Role.TOKEN_EMBEDDING)
        for layer in self.layers:
            for tensor in layer.tensors:
                share = (
                    layer.experts.active / layer.experts.total if layer.experts and tensor.role in EXPERT_ROLES else 1.0
                )
                total += tensor.elements * share
        return total

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)
