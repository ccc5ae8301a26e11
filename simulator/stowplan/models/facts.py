"""The few facts that decide every tensor of a model: what `models/architectures/*.toml` and config files state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile
from stowplan.models.fields import Fields

MOST_LAYERS = 2000
MOST_WIDTH = 2**22
MOST_EXPERTS = 2**14

BlockKind = Literal["attention", "latent", "gated-delta", "mamba", "lightning"]


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """Softmax attention.

    Attributes:
        heads, kv_heads, head_dim: as in the model's config.
        value_dim: width of a value head.
        fused: queries, keys and values come from one matrix.
        bias: which projections have biases: none, qkv, or all (the output's too).
        norm: norms of queries and keys: none, head (one head wide) or full (all heads wide).
        gated: the query matrix yields an output gate of the same width besides.
        sinks: one learned sink per head.
        window: tokens that a windowed layer sees, None when all layers see everything.
        full_every: each so manieth layer sees everything; 0 when all layers are windowed.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    fused: bool = False
    bias: str = "none"
    norm: str = "none"
    gated: bool = False
    sinks: bool = False
    window: int | None = None
    full_every: int = 0


@dataclass(frozen=True, slots=True)
class LatentFacts:
    """Multi-head latent attention.

    Attributes:
        heads: query heads.
        q_rank: rank of the query compression, None when queries are not compressed.
        kv_rank: rank of the cached latent.
        rope_dim, nope_dim, value_dim: widths of the rotary part, the plain part and a value head.
        indexer_heads, indexer_dim, selected: sparse attention's selector and the tokens it keeps.
        joined: keys and values are rebuilt by one matrix (older files) instead of two.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    indexer_heads: int = 0
    indexer_dim: int = 128
    selected: int | None = None
    joined: bool = False


@dataclass(frozen=True, slots=True)
class RecurrenceFacts:
    """Linear attention or a state-space mixer, in all layers but each `attention_every`-th.

    Attributes:
        kind: gated-delta (Qwen3-Next), mamba (Jamba) or lightning (MiniMax-Text).
        key_heads, value_heads, key_dim, value_dim: heads of linear attention.
        inner, state, rank: width, state size and time-step rank of Mamba.
        conv: taps of the causal convolution, 0 without one.
        attention_every, attention_offset: layers with index % every == offset have softmax attention.
    """

    kind: Literal["gated-delta", "mamba", "lightning"]
    attention_every: int
    attention_offset: int
    key_heads: int = 0
    value_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    inner: int = 0
    state: int = 0
    rank: int = 0
    conv: int = 0


@dataclass(frozen=True, slots=True)
class ExpertFacts:
    """Routed experts.

    Attributes:
        total, active: experts of a layer, and how many a token uses.
        ffn: width of one expert.
        shared_ffn: width of all shared experts together, 0 without.
        shared_gate: whether the shared expert has its own gate.
        bias: whether experts and router have biases.
        router_bias: whether the router has a correction per expert.
        dense_layers: leading layers with a dense block.
        every, offset: after those, layers with index % every == offset have experts.
    """

    total: int
    active: int
    ffn: int
    shared_ffn: int = 0
    shared_gate: bool = False
    bias: bool = False
    router_bias: bool = False
    dense_layers: int = 0
    every: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides a model's tensors.

    Attributes:
        key, name, architecture, hidden, layers, vocabulary, max_context, tied: see `Model`.
        attention: softmax attention, None for purely latent attention.
        latent: latent attention, None without.
        recurrence: linear attention, None without.
        experts: routed experts, None for dense models.
        ffn: width of a dense feed-forward block, 0 where no layer has one.
        ffn_gated: three matrices (gate, up, down) instead of two.
        ffn_fused: gate and up in one matrix.
        ffn_bias: biases of the dense block.
        norms: stems of the norms of one block.
        norm_bias: norms have biases.
        extra_norms: norms outside the blocks besides the final one.
        positions: learned positions, 0 without.
        quant: storage mix that the weights were published in.
        origin: where the facts came from.
        published: published number of parameters.
    """

    key: str
    name: str
    architecture: str
    hidden: int
    layers: int
    vocabulary: int
    max_context: int
    tied: bool
    attention: AttentionFacts | None
    latent: LatentFacts | None = None
    recurrence: RecurrenceFacts | None = None
    experts: ExpertFacts | None = None
    ffn: int = 0
    ffn_gated: bool = True
    ffn_fused: bool = False
    ffn_bias: bool = False
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    norm_bias: bool = False
    extra_norms: tuple[str, ...] = ()
    positions: int = 0
    quant: str = "bf16"
    origin: str = ""
    published: float | None = None

    def block_kind(self, index: int) -> BlockKind:
        """What mixes tokens in that layer."""
        linear = self.recurrence
        if linear and index % linear.attention_every != linear.attention_offset:
            return linear.kind
        return "latent" if self.latent else "attention"

    def has_experts(self, index: int) -> bool:
        """Whether that layer routes tokens to experts."""
        moe = self.experts
        return moe is not None and index >= moe.dense_layers and index % moe.every == moe.offset

    def window_of(self, index: int) -> int | None:
        """Tokens that a query of that layer sees, None for all."""
        if self.attention is None or self.attention.window is None:
            return None
        every = self.attention.full_every
        return None if every and (index + 1) % every == 0 else self.attention.window


def read_facts(path: Path) -> Facts:
    """Facts of one architecture file (TOML).

    Raises:
        BadFile: not TOML, a field missing, unknown, of a wrong type or out of range.
    """
    return facts_from_table(read_toml(path), path.stem, str(path))


def facts_from_table(table: dict[str, Any], key: str, where: str) -> Facts:
    """Facts from the contents of an architecture file."""
    top = Fields(table, where)
    top.texts("aliases")
    published = top.table("published")
    parameters = None
    if published is not None:
        parameters = published.number("parameters")
        published.text("source")
        published.refuse_leftovers()
    ffn = top.table("ffn")
    facts = Facts(
        key=key,
        name=top.text("name"),
        architecture=top.text("architecture"),
        hidden=top.integer("hidden", most=MOST_WIDTH),
        layers=top.integer("layers", most=MOST_LAYERS),
        vocabulary=top.integer("vocabulary", most=2**26),
        max_context=top.integer("max_context"),
        tied=top.boolean("tied"),
        attention=_attention(top.table("attention")),
        latent=_latent(top.table("latent")),
        recurrence=_recurrence(top.table("recurrence")),
        experts=_experts(top.table("experts")),
        ffn=ffn.integer("width", most=MOST_WIDTH) if ffn else 0,
        ffn_gated=ffn.boolean("gated", True) if ffn else True,
        ffn_fused=ffn.boolean("fused") if ffn else False,
        ffn_bias=ffn.boolean("bias") if ffn else False,
        norms=top.texts("norms") or ("attn_norm", "ffn_norm"),
        norm_bias=top.boolean("norm_bias"),
        extra_norms=top.texts("extra_norms"),
        positions=top.integer("positions", 0, least=0, most=2**26),
        quant=top.text("quant", "bf16"),
        origin=top.text("source"),
        published=parameters,
    )
    if ffn is not None:
        ffn.refuse_leftovers()
    top.refuse_leftovers()
    check_facts(facts, where)
    return facts


def check_facts(facts: Facts, where: str) -> None:
    """Refuse facts that contradict each other.

    Raises:
        BadFile: naming the contradiction.
    """
    attention = facts.attention
    if attention is None and facts.latent is None:
        raise BadFile(f"{where}: neither attention nor latent attention is described")
    if attention and attention.heads % attention.kv_heads:
        raise BadFile(f"{where}: {attention.heads} heads cannot share {attention.kv_heads} key/value heads evenly")
    if facts.experts and facts.experts.active > facts.experts.total:
        raise BadFile(
            f"{where}: {facts.experts.active} active experts are more than the {facts.experts.total} there are"
        )
    linear = facts.recurrence
    if linear:
        needed = (
            (linear.inner, linear.state, linear.rank, linear.conv)
            if linear.kind == "mamba"
            else (linear.key_heads, linear.value_heads, linear.key_dim, linear.value_dim)
        )
        if not all(needed):
            raise BadFile(f"{where}: a {linear.kind} mixer needs the sizes of its heads and state")
    if not facts.ffn and not all(facts.has_experts(index) for index in range(facts.layers)):
        raise BadFile(f"{where}: some layers have no experts, so the width of the dense block is needed ([ffn] width)")


def _attention(table: Fields | None) -> AttentionFacts | None:
    if table is None:
        return None
    heads = table.integer("heads", most=MOST_WIDTH)
    head_dim = table.integer("head_dim", most=MOST_WIDTH)
    facts = AttentionFacts(
        heads=heads,
        kv_heads=table.integer("kv_heads", heads, most=heads),
        head_dim=head_dim,
        value_dim=table.integer("value_dim", head_dim, most=MOST_WIDTH),
        fused=table.boolean("fused"),
        bias=_choice(table, "bias", ("none", "qkv", "all")),
        norm=_choice(table, "norm", ("none", "head", "full")),
        gated=table.boolean("gated"),
        sinks=table.boolean("sinks"),
        window=table.optional("window"),
        full_every=table.integer("full_every", 0, least=0, most=MOST_LAYERS),
    )
    table.refuse_leftovers()
    return facts


def _latent(table: Fields | None) -> LatentFacts | None:
    if table is None:
        return None
    facts = LatentFacts(
        heads=table.integer("heads", most=MOST_WIDTH),
        q_rank=table.optional("q_rank", most=MOST_WIDTH),
        kv_rank=table.integer("kv_rank", most=MOST_WIDTH),
        rope_dim=table.integer("rope_dim", most=MOST_WIDTH),
        nope_dim=table.integer("nope_dim", most=MOST_WIDTH),
        value_dim=table.integer("value_dim", most=MOST_WIDTH),
        indexer_heads=table.integer("indexer_heads", 0, least=0, most=MOST_WIDTH),
        indexer_dim=table.integer("indexer_dim", 128, most=MOST_WIDTH),
        selected=table.optional("selected"),
    )
    table.refuse_leftovers()
    return facts


def _recurrence(table: Fields | None) -> RecurrenceFacts | None:
    if table is None:
        return None
    kind = _choice(table, "kind", ("gated-delta", "mamba", "lightning"))
    every = table.integer("attention_every", most=MOST_LAYERS)
    facts = RecurrenceFacts(
        kind=kind,  # type: ignore[arg-type]  # one of the three, as just checked
        attention_every=every,
        attention_offset=table.integer("attention_offset", least=0, most=every - 1),
        key_heads=table.integer("key_heads", 0, least=0, most=MOST_WIDTH),
        value_heads=table.integer("value_heads", 0, least=0, most=MOST_WIDTH),
        key_dim=table.integer("key_dim", 0, least=0, most=MOST_WIDTH),
        value_dim=table.integer("value_dim", 0, least=0, most=MOST_WIDTH),
        inner=table.integer("inner", 0, least=0, most=MOST_WIDTH),
        state=table.integer("state", 0, least=0, most=MOST_WIDTH),
        rank=table.integer("rank", 0, least=0, most=MOST_WIDTH),
        conv=table.integer("conv", 0, least=0, most=1024),
    )
    table.refuse_leftovers()
    return facts


def _experts(table: Fields | None) -> ExpertFacts | None:
    if table is None:
        return None
    every = table.integer("every", 1, most=MOST_LAYERS)
    facts = ExpertFacts(
        total=table.integer("total", most=MOST_EXPERTS),
        active=table.integer("active", most=MOST_EXPERTS),
        ffn=table.integer("width", most=MOST_WIDTH),
        shared_ffn=table.integer("shared_width", 0, least=0, most=MOST_WIDTH),
        shared_gate=table.boolean("shared_gate"),
        bias=table.boolean("bias"),
        router_bias=table.boolean("router_bias"),
        dense_layers=table.integer("dense_layers", 0, least=0, most=MOST_LAYERS),
        every=every,
        offset=table.integer("offset", 0, least=0, most=every - 1),
    )
    table.refuse_leftovers()
    return facts


def _choice(table: Fields, name: str, known: tuple[str, ...]) -> str:
    value = table.text(name, known[0])
    if value not in known:
        raise BadFile(f"{table.where}: field '{name}' is '{value[:60]}'; it must be one of {', '.join(known)}")
    return value
