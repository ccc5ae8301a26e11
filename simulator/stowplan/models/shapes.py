"""Tensors that follow from the facts: names as in GGUF files, roles and shapes, not yet their formats."""

from __future__ import annotations

from typing import NamedTuple

from stowplan.models.facts import AttentionFacts, Facts, LatentFacts, RecurrenceFacts
from stowplan.models.model import Attention, LatentAttention, Mixer, Recurrence, Role


class Shape(NamedTuple):
    """A tensor without its format; see `Tensor` for the fields."""

    name: str
    role: Role
    layer: int | None
    rows: int
    columns: int = 1
    matrices: int = 1


def global_shapes(facts: Facts) -> list[Shape]:
    """Embeddings, output and final norm."""
    shapes = [Shape("token_embd.weight", Role.TOKEN_EMBEDDING, None, facts.vocabulary, facts.hidden)]
    if facts.positions:
        shapes.append(Shape("position_embd.weight", Role.POSITION_EMBEDDING, None, facts.positions, facts.hidden))
    for stem, role in [(name, Role.OTHER) for name in facts.extra_norms] + [("output_norm", Role.OUTPUT_NORM)]:
        shapes.append(Shape(f"{stem}.weight", role, None, facts.hidden))
        if facts.norm_bias:
            shapes.append(Shape(f"{stem}.bias", role, None, facts.hidden))
    if not facts.tied:
        shapes.append(Shape("output.weight", Role.OUTPUT, None, facts.vocabulary, facts.hidden))
    return shapes


def layer_shapes(facts: Facts, index: int) -> list[Shape]:
    """Tensors of one block: norms, mixer, feed-forward."""
    block = _Block(facts, index)
    for stem in facts.norms:
        block.norm(stem, facts.hidden)
    kind = facts.block_kind(index)
    if kind == "attention" and facts.attention:
        block.attention(facts.attention)
    elif kind == "latent" and facts.latent:
        block.latent(facts.latent)
    elif facts.recurrence:
        block.recurrence(facts.recurrence)
    if facts.has_experts(index):
        block.experts()
    else:
        block.dense()
    return block.shapes


def layer_mixer(facts: Facts, index: int) -> Mixer:
    """What mixes tokens in that layer."""
    kind = facts.block_kind(index)
    if kind == "latent" and (mla := facts.latent):
        return LatentAttention(mla.heads, mla.kv_rank, mla.rope_dim, mla.nope_dim, mla.value_dim, selected=mla.selected)
    if kind == "attention" and (soft := facts.attention):
        return Attention(soft.heads, soft.kv_heads, soft.head_dim, soft.value_dim, facts.window_of(index))
    assert facts.recurrence is not None
    return recurrence_mixer(facts.recurrence)


def recurrence_mixer(linear: RecurrenceFacts) -> Recurrence:
    """State and arithmetic of one token.

    Gated delta rule: decay the state, read it with the key, write the outer product, read it with the query. Lightning
    attention: decay, write, read. Mamba: discretise, decay, write and read `state` numbers of every channel.
    """
    if linear.kind == "mamba":
        cells, per_cell, channels = linear.inner * linear.state, 6, linear.inner
    else:
        cells = linear.value_heads * linear.key_dim * linear.value_dim
        per_cell = 7 if linear.kind == "gated-delta" else 5
        channels = _delta_channels(linear)
    history = max(linear.conv - 1, 0) * channels
    return Recurrence(cells + history, per_cell * cells + 2 * linear.conv * channels)


def _delta_channels(linear: RecurrenceFacts) -> int:
    return 2 * linear.key_heads * linear.key_dim + linear.value_heads * linear.value_dim


class _Block:
    """Collects the tensors of one block in file order."""

    def __init__(self, facts: Facts, index: int) -> None:
        self.facts = facts
        self.index = index
        self.prefix = f"blk.{index}."
        self.shapes: list[Shape] = []

    def add(self, name: str, role: Role, rows: int, columns: int = 1, matrices: int = 1) -> None:
        self.shapes.append(Shape(self.prefix + name, role, self.index, rows, columns, matrices))

    def norm(self, stem: str, width: int) -> None:
        role = Role.FFN_NORM if "ff" in stem else Role.ATTN_NORM
        self.add(f"{stem}.weight", role, width)
        if self.facts.norm_bias:
            self.add(f"{stem}.bias", role, width)

    def attention(self, soft: AttentionFacts) -> None:
        """Multi-head, grouped or multi-query attention."""
        hidden, add = self.facts.hidden, self.add
        q, k, v = soft.heads * soft.head_dim, soft.kv_heads * soft.head_dim, soft.kv_heads * soft.value_dim
        merged = soft.heads * soft.value_dim
        parts = [
            ("attn_q", Role.ATTN_Q, q * (2 if soft.gated else 1)),
            ("attn_k", Role.ATTN_K, k),
            ("attn_v", Role.ATTN_V, v),
        ]
        if soft.fused:
            parts = [("attn_qkv", Role.ATTN_QKV, q + k + v)]
        for stem, role, rows in parts:
            add(f"{stem}.weight", role, rows, hidden)
            if soft.bias != "none":
                add(f"{stem}.bias", Role.ATTN_NORM, rows)
        add("attn_output.weight", Role.ATTN_OUT, hidden, merged)
        if soft.bias == "all":
            add("attn_output.bias", Role.ATTN_NORM, hidden)
        if soft.norm != "none":
            add("attn_q_norm.weight", Role.ATTN_NORM, soft.head_dim if soft.norm == "head" else q)
            add("attn_k_norm.weight", Role.ATTN_NORM, soft.head_dim if soft.norm == "head" else k)
        if soft.sinks:
            add("attn_sinks.weight", Role.ATTN_OTHER, soft.heads)

    def latent(self, mla: LatentFacts) -> None:
        """Latent attention; keys and values are rebuilt per head by attn_k_b and attn_v_b."""
        hidden, add = self.facts.hidden, self.add
        query = mla.heads * (mla.nope_dim + mla.rope_dim)
        if mla.q_rank is None:
            add("attn_q.weight", Role.ATTN_Q, query, hidden)
        else:
            add("attn_q_a.weight", Role.ATTN_Q_A, mla.q_rank, hidden)
            add("attn_q_a_norm.weight", Role.ATTN_NORM, mla.q_rank)
            add("attn_q_b.weight", Role.ATTN_Q_B, query, mla.q_rank)
        add("attn_kv_a_mqa.weight", Role.ATTN_KV_A, mla.kv_rank + mla.rope_dim, hidden)
        add("attn_kv_a_norm.weight", Role.ATTN_NORM, mla.kv_rank)
        if mla.joined:
            add("attn_kv_b.weight", Role.ATTN_KV_B, mla.heads * (mla.nope_dim + mla.value_dim), mla.kv_rank)
        else:
            add("attn_k_b.weight", Role.ATTN_KV_B, mla.kv_rank, mla.nope_dim, mla.heads)
            add("attn_v_b.weight", Role.ATTN_KV_B, mla.value_dim, mla.kv_rank, mla.heads)
        add("attn_output.weight", Role.ATTN_OUT, hidden, mla.heads * mla.value_dim)
        if mla.indexer_heads:
            add("indexer.attn_q_b.weight", Role.ATTN_OTHER, mla.indexer_heads * mla.indexer_dim, mla.q_rank or hidden)
            add("indexer.attn_k.weight", Role.ATTN_OTHER, mla.indexer_dim, hidden)
            add("indexer.k_norm.weight", Role.ATTN_NORM, mla.indexer_dim)
            add("indexer.k_norm.bias", Role.ATTN_NORM, mla.indexer_dim)
            add("indexer.proj.weight", Role.ATTN_OTHER, mla.indexer_heads, hidden)

    def recurrence(self, linear: RecurrenceFacts) -> None:
        """Linear attention or Mamba."""
        hidden, add = self.facts.hidden, self.add
        if linear.kind == "mamba":
            add("ssm_in.weight", Role.SSM, 2 * linear.inner, hidden)
            add("ssm_conv1d.weight", Role.SSM, linear.inner, linear.conv)
            add("ssm_conv1d.bias", Role.ATTN_NORM, linear.inner)
            add("ssm_x.weight", Role.SSM, linear.rank + 2 * linear.state, linear.inner)
            add("ssm_dt_norm.weight", Role.ATTN_NORM, linear.rank)
            add("ssm_b_norm.weight", Role.ATTN_NORM, linear.state)
            add("ssm_c_norm.weight", Role.ATTN_NORM, linear.state)
            add("ssm_dt.weight", Role.SSM, linear.inner, linear.rank)
            add("ssm_dt.bias", Role.ATTN_NORM, linear.inner)
            add("ssm_a", Role.SSM, linear.inner, linear.state)
            add("ssm_d", Role.ATTN_NORM, linear.inner)
            add("ssm_out.weight", Role.SSM, hidden, linear.inner)
            return
        values = linear.value_heads * linear.value_dim
        channels = _delta_channels(linear)
        add("attn_qkv.weight", Role.SSM, channels, hidden)
        add("attn_gate.weight", Role.SSM, values, hidden)
        if linear.kind == "gated-delta":
            add("ssm_ba.weight", Role.SSM, 2 * linear.value_heads, hidden)
            add("ssm_conv1d.weight", Role.SSM, channels, linear.conv)
            add("ssm_a", Role.ATTN_NORM, linear.value_heads)
            add("ssm_dt.bias", Role.ATTN_NORM, linear.value_heads)
            add("ssm_norm.weight", Role.ATTN_NORM, linear.value_dim)
        else:
            add("ssm_norm.weight", Role.ATTN_NORM, values)
        add("ssm_out.weight", Role.SSM, hidden, values)

    def dense(self) -> None:
        """Gate, up and down, or up and down."""
        facts, add = self.facts, self.add
        up_rows = facts.ffn * (2 if facts.ffn_fused else 1)
        if facts.ffn_gated and not facts.ffn_fused:
            add("ffn_gate.weight", Role.FFN_GATE, facts.ffn, facts.hidden)
        add("ffn_up.weight", Role.FFN_UP, up_rows, facts.hidden)
        if facts.ffn_bias:
            add("ffn_up.bias", Role.FFN_NORM, up_rows)
        add("ffn_down.weight", Role.FFN_DOWN, facts.hidden, facts.ffn)
        if facts.ffn_bias:
            add("ffn_down.bias", Role.FFN_NORM, facts.hidden)

    def experts(self) -> None:
        """Router, routed experts and shared experts."""
        facts, add = self.facts, self.add
        moe = facts.experts
        assert moe is not None
        hidden = facts.hidden
        add("ffn_gate_inp.weight", Role.ROUTER, moe.total, hidden)
        if moe.bias:
            add("ffn_gate_inp.bias", Role.FFN_NORM, moe.total)
        if moe.router_bias:
            add("exp_probs_b.bias", Role.FFN_NORM, moe.total)
        for stem, role, rows, columns in (
            ("ffn_gate_exps", Role.EXPERT_GATE, moe.ffn, hidden),
            ("ffn_up_exps", Role.EXPERT_UP, moe.ffn, hidden),
            ("ffn_down_exps", Role.EXPERT_DOWN, hidden, moe.ffn),
        ):
            add(f"{stem}.weight", role, rows, columns, moe.total)
            if moe.bias:
                add(f"{stem}.bias", role, rows, 1, moe.total)
        if moe.shared_ffn:
            if moe.shared_gate:
                add("ffn_gate_inp_shexp.weight", Role.FFN_NORM, hidden)
            add("ffn_gate_shexp.weight", Role.SHARED_GATE, moe.shared_ffn, hidden)
            add("ffn_up_shexp.weight", Role.SHARED_UP, moe.shared_ffn, hidden)
            add("ffn_down_shexp.weight", Role.SHARED_DOWN, hidden, moe.shared_ffn)
