"""How each model type of transformers spells its facts in ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from stowplan.errors import BadFile
from stowplan.models.facts import (
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_WIDTH,
    AttentionFacts,
    ExpertFacts,
    Facts,
    LatentFacts,
    RecurrenceFacts,
)
from stowplan.models.fields import Fields

_POST_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


def first_of(config: Fields, names: tuple[str, ...], most: int, default: int | None = None) -> int:
    """The first of several spellings of a field that is there; a default of None makes it required."""
    for name in names:
        if name in config:
            return config.integer(name, most=most)
    return config.integer(names[0], default, most=most)


def _attention(config: Fields, hidden: int, **more: Any) -> AttentionFacts:
    heads = first_of(config, ("num_attention_heads", "n_heads", "n_head"), MOST_WIDTH)
    if "head_dim" not in config and hidden % heads:
        raise BadFile(f"{config.where}: field 'head_dim' is missing, and {heads} heads do not divide {hidden}")
    head_dim = config.integer("head_dim", hidden // heads or 1, most=MOST_WIDTH)
    window, full_every = _windows(config)
    facts = AttentionFacts(
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads, most=heads),
        head_dim=head_dim,
        value_dim=head_dim,
        bias="qkv" if config.value("attention_bias") is True or config.value("qkv_bias") is True else "none",
        window=window,
        full_every=full_every,
    )
    return replace(facts, **more)


def _windows(config: Fields) -> tuple[int | None, int]:
    """Sliding window, and every how manieth layer sees everything."""
    if config.value("use_sliding_window") is False or "sliding_window" not in config:
        return None, 0
    window = config.integer("sliding_window")
    kinds = config.value("layer_types")
    if isinstance(kinds, list) and kinds:
        if "sliding_attention" not in kinds:
            return None, 0
        if "full_attention" not in kinds:
            return window, 0
        return window, kinds.index("full_attention") + 1
    return window, config.integer("sliding_window_pattern", 0, least=0, most=MOST_LAYERS)


def llama_like(config: Fields, facts: Facts) -> Facts:
    """Grouped attention, gated feed-forward; experts where their number is stated."""
    facts = replace(facts, attention=_attention(config, facts.hidden))
    total = _experts_of(config)
    if total is None:
        return replace(facts, ffn=first_of(config, ("intermediate_size", "ffn_dim", "ffn_hidden_size"), MOST_WIDTH))
    width = first_of(config, ("moe_intermediate_size", "intermediate_size"), MOST_WIDTH)
    return replace(
        facts,
        ffn=config.integer("intermediate_size", 0, least=0, most=MOST_WIDTH),
        experts=ExpertFacts(
            total=total,
            active=first_of(config, ("num_experts_per_tok", "moe_topk", "num_experts_per_token"), MOST_EXPERTS),
            ffn=width,
            shared_ffn=_shared_width(config, width),
            dense_layers=config.integer("first_k_dense_replace", 0, least=0, most=MOST_LAYERS),
        ),
    )


def _experts_of(config: Fields) -> int | None:
    for name in ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"):
        if name in config:
            return config.integer(name, least=0, most=MOST_EXPERTS) or None
    return None


def _shared_width(config: Fields, width: int) -> int:
    if "shared_expert_intermediate_size" in config:
        return config.integer("shared_expert_intermediate_size", least=0, most=MOST_WIDTH)
    return config.integer("n_shared_experts", 0, least=0, most=MOST_EXPERTS) * width


def _with_attention(facts: Facts, **more: Any) -> Facts:
    assert facts.attention is not None
    return replace(facts, attention=replace(facts.attention, **more))


def _with_experts(facts: Facts, **more: Any) -> Facts:
    return replace(facts, experts=replace(facts.experts, **more)) if facts.experts else facts


def _qwen2(config: Fields, facts: Facts) -> Facts:
    return _with_attention(llama_like(config, facts), bias="qkv")


def _qwen2_moe(config: Fields, facts: Facts) -> Facts:
    return _with_experts(_qwen2(config, facts), shared_gate=True)


def _qwen3(config: Fields, facts: Facts) -> Facts:
    return _with_attention(llama_like(config, facts), norm="head")


def _qwen3_next(config: Fields, facts: Facts) -> Facts:
    facts = _with_attention(llama_like(config, facts), norm="head", gated=True)
    every = config.integer("full_attention_interval", 4, most=MOST_LAYERS)
    linear = RecurrenceFacts(
        kind="gated-delta",
        attention_every=every,
        attention_offset=every - 1,
        key_heads=config.integer("linear_num_key_heads", most=MOST_WIDTH),
        value_heads=config.integer("linear_num_value_heads", most=MOST_WIDTH),
        key_dim=config.integer("linear_key_head_dim", most=MOST_WIDTH),
        value_dim=config.integer("linear_value_head_dim", most=MOST_WIDTH),
        conv=config.integer("linear_conv_kernel_dim", 4, most=1024),
    )
    return replace(
        _with_experts(facts, shared_gate=True), recurrence=linear, norms=("attn_norm", "post_attention_norm")
    )


def _gemma(config: Fields, facts: Facts) -> Facts:
    return replace(llama_like(config, facts), tied=_tied_unless_said(config))


def _gemma2(config: Fields, facts: Facts) -> Facts:
    facts = replace(llama_like(config, facts), tied=_tied_unless_said(config), norms=_POST_NORMS)
    return _with_attention(facts, full_every=2)


def _gemma3(config: Fields, facts: Facts) -> Facts:
    facts = replace(llama_like(config, facts), tied=_tied_unless_said(config), norms=_POST_NORMS)
    assert facts.attention is not None
    return _with_attention(facts, norm="head", full_every=facts.attention.full_every or 6)


def _tied_unless_said(config: Fields) -> bool:
    return config.boolean("tie_word_embeddings", True)


def _phi3(config: Fields, facts: Facts) -> Facts:
    facts = _with_attention(replace(llama_like(config, facts), ffn_fused=True), fused=True)
    assert facts.attention is not None
    unbounded = facts.attention.window is not None and facts.attention.window >= facts.max_context
    return _with_attention(facts, window=None) if unbounded else facts


def _opt(config: Fields, facts: Facts) -> Facts:
    return replace(
        facts,
        tied=_tied_unless_said(config),
        attention=_attention(config, facts.hidden, bias="all"),
        ffn=config.integer("ffn_dim", most=MOST_WIDTH),
        ffn_gated=False,
        ffn_bias=True,
        norm_bias=True,
        positions=facts.max_context + 2,
    )


def _falcon(config: Fields, facts: Facts) -> Facts:
    new = config.boolean("new_decoder_architecture")
    heads = first_of(config, ("num_attention_heads", "n_head"), MOST_WIDTH)
    kv_heads = 1 if config.boolean("multi_query", True) else heads
    if new:
        kv_heads = first_of(config, ("num_kv_heads", "n_head_kv"), heads)
    return replace(
        facts,
        tied=_tied_unless_said(config),
        attention=_attention(config, facts.hidden, kv_heads=kv_heads, fused=True),
        ffn=config.integer("ffn_hidden_size", 4 * facts.hidden, most=MOST_WIDTH),
        ffn_gated=False,
        norms=("attn_norm", "attn_norm_2") if new else ("attn_norm",),
        norm_bias=True,
    )


def _bloom(config: Fields, facts: Facts) -> Facts:
    return replace(
        facts,
        tied=_tied_unless_said(config),
        attention=_attention(config, facts.hidden, fused=True, bias="all"),
        ffn=4 * facts.hidden,
        ffn_gated=False,
        ffn_bias=True,
        norm_bias=True,
        extra_norms=("token_embd_norm",),
    )


def _deepseek(config: Fields, facts: Facts) -> Facts:
    if "kv_lora_rank" not in config:
        return llama_like(config, facts)
    latent = LatentFacts(
        heads=config.integer("num_attention_heads", most=MOST_WIDTH),
        q_rank=config.optional("q_lora_rank", most=MOST_WIDTH),
        kv_rank=config.integer("kv_lora_rank", most=MOST_WIDTH),
        rope_dim=config.integer("qk_rope_head_dim", most=MOST_WIDTH),
        nope_dim=config.integer("qk_nope_head_dim", most=MOST_WIDTH),
        value_dim=config.integer("v_head_dim", most=MOST_WIDTH),
        indexer_heads=config.integer("index_n_heads", 0, least=0, most=MOST_WIDTH),
        indexer_dim=config.integer("index_head_dim", 128, most=MOST_WIDTH),
        selected=config.optional("index_topk"),
    )
    routing = {name: config.value(name) for name in _ROUTED_FIELDS if name in config}
    routed = replace(llama_like(Fields(routing | {"head_dim": 1}, config.where), facts), attention=None)
    corrected = config.value("topk_method") == "noaux_tc"
    return replace(_with_experts(routed, router_bias=corrected), latent=latent)


_ROUTED_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "first_k_dense_replace",
)


def _gpt_oss(config: Fields, facts: Facts) -> Facts:
    facts = _with_attention(llama_like(config, facts), bias="all", sinks=True, full_every=2)
    return replace(_with_experts(facts, bias=True), norms=("attn_norm", "post_attention_norm"))


def _glm4(config: Fields, facts: Facts) -> Facts:
    return replace(llama_like(config, facts), ffn_fused=True, norms=_POST_NORMS)


def _glm4_moe(config: Fields, facts: Facts) -> Facts:
    norm = "head" if config.boolean("use_qk_norm") else "none"
    facts = _with_attention(llama_like(config, facts), norm=norm)
    return replace(_with_experts(facts, router_bias=True), norms=("attn_norm", "post_attention_norm"))


def _minimax_m2(config: Fields, facts: Facts) -> Facts:
    norm = "full" if config.boolean("use_qk_norm", True) else "none"
    return _with_experts(_with_attention(llama_like(config, facts), norm=norm), router_bias=True)


def _cohere(config: Fields, facts: Facts) -> Facts:
    norm = "full" if config.boolean("use_qk_norm") else "none"
    facts = _with_attention(llama_like(config, facts), norm=norm)
    return replace(facts, tied=_tied_unless_said(config), norms=("attn_norm",))


def _dbrx(config: Fields, facts: Facts) -> Facts:
    attention, ffn = config.table("attn_config"), config.table("ffn_config")
    if attention is None or ffn is None:
        raise BadFile(f"{config.where}: fields 'attn_config' and 'ffn_config' are needed for DBRX")
    kv_heads = attention.integer("kv_n_heads", most=MOST_WIDTH)
    experts = ExpertFacts(
        total=ffn.integer("moe_num_experts", most=MOST_EXPERTS),
        active=ffn.integer("moe_top_k", most=MOST_EXPERTS),
        ffn=ffn.integer("ffn_hidden_size", most=MOST_WIDTH),
    )
    return replace(
        facts,
        attention=_attention(config, facts.hidden, kv_heads=kv_heads, fused=True),
        experts=experts,
        norms=("attn_norm", "attn_output_norm"),
    )


def _llama4(config: Fields, facts: Facts) -> Facts:
    width = config.integer("intermediate_size", most=MOST_WIDTH)
    every = config.integer("interleave_moe_layer_step", 1, most=MOST_LAYERS)
    experts = ExpertFacts(
        total=config.integer("num_local_experts", most=MOST_EXPERTS),
        active=config.integer("num_experts_per_tok", 1, most=MOST_EXPERTS),
        ffn=width,
        shared_ffn=width,
        every=every,
        offset=every - 1,
    )
    chunk = config.optional("attention_chunk_size")
    return replace(
        facts,
        attention=_attention(config, facts.hidden, window=chunk, full_every=4 if chunk else 0),
        experts=experts,
        ffn=config.integer("intermediate_size_mlp", width, most=MOST_WIDTH),
    )


def _jamba(config: Fields, facts: Facts) -> Facts:
    every = config.integer("attn_layer_period", 8, most=MOST_LAYERS)
    inner = config.integer("mamba_expand", 2, most=64) * facts.hidden
    linear = RecurrenceFacts(
        kind="mamba",
        attention_every=every,
        attention_offset=config.integer("attn_layer_offset", 4, least=0, most=every - 1),
        inner=inner,
        state=config.integer("mamba_d_state", 16, most=MOST_WIDTH),
        rank=config.integer("mamba_dt_rank", -(-facts.hidden // 16), most=MOST_WIDTH),
        conv=config.integer("mamba_d_conv", 4, most=1024),
    )
    step = config.integer("expert_layer_period", 2, most=MOST_LAYERS)
    offset = config.integer("expert_layer_offset", 1 if step > 1 else 0, least=0, most=step - 1)
    return replace(_with_experts(llama_like(config, facts), every=step, offset=offset), recurrence=linear)


def _minimax_01(config: Fields, facts: Facts) -> Facts:
    facts = llama_like(config, facts)
    assert facts.attention is not None
    heads, width = facts.attention.heads, facts.attention.head_dim
    kinds = config.value("attn_type_list")
    every = kinds.index(1) + 1 if isinstance(kinds, list) and 1 in kinds else 8
    linear = RecurrenceFacts("lightning", every, every - 1, heads, heads, width, width)
    return replace(facts, recurrence=linear)


Reader = Callable[[Fields, Facts], Facts]
READERS: Mapping[str, Reader] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "mixtral", "ministral", "yi", "granite", "internlm2"), llama_like),
        "qwen2": _qwen2,
        "qwen2_moe": _qwen2_moe,
        **dict.fromkeys(("qwen3", "qwen3_moe"), _qwen3),
        **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _qwen3_next),
        "gemma": _gemma,
        "gemma2": _gemma2,
        **dict.fromkeys(("gemma3", "gemma3_text"), _gemma3),
        "phi3": _phi3,
        "opt": _opt,
        **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), _falcon),
        "bloom": _bloom,
        **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa"), _deepseek),
        "gpt_oss": _gpt_oss,
        "glm4": _glm4,
        "glm4_moe": _glm4_moe,
        "minimax_m2": _minimax_m2,
        **dict.fromkeys(("minimax", "minimax_text_01", "minimax_m1"), _minimax_01),
        **dict.fromkeys(("cohere", "cohere2"), _cohere),
        "dbrx": _dbrx,
        **dict.fromkeys(("llama4", "llama4_text"), _llama4),
        "jamba": _jamba,
    }
)
ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "qwen2": "qwen2",
        "qwen2_moe": "qwen2moe",
        "qwen3": "qwen3",
        "qwen3_moe": "qwen3moe",
        "qwen3_next": "qwen3next",
        **dict.fromkeys(("qwen3_5", "qwen3_5_text"), "qwen35"),
        **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text"), "qwen35moe"),
        "gemma": "gemma",
        "gemma2": "gemma2",
        **dict.fromkeys(("gemma3", "gemma3_text"), "gemma3"),
        "phi3": "phi3",
        "opt": "opt",
        **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), "falcon"),
        "bloom": "bloom",
        **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"), "deepseek2"),
        "glm_moe_dsa": "glm-dsa",
        "gpt_oss": "gpt-oss",
        "glm4": "glm4",
        "glm4_moe": "glm4moe",
        "minimax_m2": "minimax-m2",
        "cohere": "command-r",
        "cohere2": "cohere2",
        "dbrx": "dbrx",
        **dict.fromkeys(("llama4", "llama4_text"), "llama4"),
        "jamba": "jamba",
    }
)
