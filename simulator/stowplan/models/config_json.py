"""Facts from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
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
    check_facts,
)
from stowplan.models.fields import Fields
from stowplan.models.jsonfile import read_json

_POST_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "f32"}
# What transformers assumes where a config of that type is silent.
_DEFAULTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "gemma3_text": {
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
        },
        "gemma": {"head_dim": 256},
        "gemma2": {"head_dim": 256},
    }
)


def read_config(path: Path) -> Facts:
    """Facts of a checkpoint by its ``config.json``.

    Args:
        path: the file, or the folder it is in.

    Raises:
        BadFile: unreadable, or a field missing or impossible.
    """
    file = path / "config.json" if path.is_dir() else path
    where = str(file)
    key = (file.resolve().parent.name if file.name == "config.json" else file.stem) or "config"
    return facts_from_config(read_json(file), key, where)


def facts_from_config(table: Any, key: str, where: str) -> Facts:
    """Facts from the contents of a ``config.json``.

    A model type that is not known is read as a Llama-like one, and `Facts.origin` says so.

    Raises:
        BadFile: a field missing or impossible.
    """
    outer = Fields(table, where)
    inner = outer.value("text_config")
    merged = {**outer_values(table), **inner} if isinstance(inner, Mapping) else dict(table)
    kind = str(merged.get("model_type") or "")[:60]
    for name, value in _DEFAULTS.get(kind, {}).items():
        merged.setdefault(name, value)
    config = Fields(merged, where)
    reader = _READERS.get(kind)
    facts = (reader or _llama_like)(config, _common(config, key, where))
    if reader is None:
        facts = replace(
            facts, origin=f"{where}; model type '{kind or 'unnamed'}' is not known and was read as Llama-like"
        )
    facts = replace(facts, quant=_published_mix(outer, config))
    check_facts(facts, where)
    return facts


def outer_values(table: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a multimodal config that its text part may leave out."""
    return {name: table[name] for name in ("tie_word_embeddings", "torch_dtype", "dtype") if name in table}


def _common(config: Fields, key: str, where: str) -> Facts:
    """What all types share under the same names."""
    name = config.text("_name_or_path", key)
    return Facts(
        key=key,
        name=name.rstrip("/").rsplit("/", 1)[-1] or key,
        architecture=_ARCHITECTURES.get(str(config.value("model_type")), "llama"),
        hidden=_first(config, ("hidden_size", "n_embd", "d_model"), MOST_WIDTH),
        layers=_first(config, ("num_hidden_layers", "n_layer", "n_layers"), MOST_LAYERS),
        vocabulary=config.integer("vocab_size", most=2**26),
        max_context=_first(
            config, ("max_position_embeddings", "max_seq_len", "seq_length", "n_positions"), 2**40, 2048
        ),
        tied=config.boolean("tie_word_embeddings"),
        attention=None,
        origin=where,
    )


def _first(config: Fields, names: tuple[str, ...], most: int, default: int | None = None) -> int:
    """The first of several spellings of a field that is there; a default of None makes it required."""
    for name in names:
        if name in config:
            return config.integer(name, most=most)
    return config.integer(names[0], default, most=most)


def _attention(config: Fields, hidden: int, **more: Any) -> AttentionFacts:
    heads = _first(config, ("num_attention_heads", "n_heads", "n_head"), MOST_WIDTH)
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


def _llama_like(config: Fields, facts: Facts) -> Facts:
    """Grouped attention, gated feed-forward; experts where their number is stated."""
    facts = replace(facts, attention=_attention(config, facts.hidden))
    total = _experts_of(config)
    if total is None:
        return replace(facts, ffn=_first(config, ("intermediate_size", "ffn_dim", "ffn_hidden_size"), MOST_WIDTH))
    width = _first(config, ("moe_intermediate_size", "intermediate_size"), MOST_WIDTH)
    return replace(
        facts,
        ffn=config.integer("intermediate_size", 0, least=0, most=MOST_WIDTH),
        experts=ExpertFacts(
            total=total,
            active=_first(config, ("num_experts_per_tok", "moe_topk", "num_experts_per_token"), MOST_EXPERTS),
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
    return _with_attention(_llama_like(config, facts), bias="qkv")


def _qwen2_moe(config: Fields, facts: Facts) -> Facts:
    return _with_experts(_qwen2(config, facts), shared_gate=True)


def _qwen3(config: Fields, facts: Facts) -> Facts:
    return _with_attention(_llama_like(config, facts), norm="head")


def _qwen3_next(config: Fields, facts: Facts) -> Facts:
    facts = _with_attention(_llama_like(config, facts), norm="head", gated=True)
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
    return replace(_llama_like(config, facts), tied=_tied_unless_said(config))


def _gemma2(config: Fields, facts: Facts) -> Facts:
    facts = replace(_llama_like(config, facts), tied=_tied_unless_said(config), norms=_POST_NORMS)
    return _with_attention(facts, full_every=2)


def _gemma3(config: Fields, facts: Facts) -> Facts:
    facts = replace(_llama_like(config, facts), tied=_tied_unless_said(config), norms=_POST_NORMS)
    assert facts.attention is not None
    return _with_attention(facts, norm="head", full_every=facts.attention.full_every or 6)


def _tied_unless_said(config: Fields) -> bool:
    return config.boolean("tie_word_embeddings", True)


def _phi3(config: Fields, facts: Facts) -> Facts:
    facts = _with_attention(replace(_llama_like(config, facts), ffn_fused=True), fused=True)
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
    heads = _first(config, ("num_attention_heads", "n_head"), MOST_WIDTH)
    kv_heads = 1 if config.boolean("multi_query", True) else heads
    if new:
        kv_heads = _first(config, ("num_kv_heads", "n_head_kv"), heads)
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
        return _llama_like(config, facts)
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
    routed = replace(_llama_like(Fields(routing | {"head_dim": 1}, config.where), facts), attention=None)
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
    facts = _with_attention(_llama_like(config, facts), bias="all", sinks=True, full_every=2)
    return replace(_with_experts(facts, bias=True), norms=("attn_norm", "post_attention_norm"))


def _glm4(config: Fields, facts: Facts) -> Facts:
    return replace(_llama_like(config, facts), ffn_fused=True, norms=_POST_NORMS)


def _glm4_moe(config: Fields, facts: Facts) -> Facts:
    norm = "head" if config.boolean("use_qk_norm") else "none"
    facts = _with_attention(_llama_like(config, facts), norm=norm)
    return replace(_with_experts(facts, router_bias=True), norms=("attn_norm", "post_attention_norm"))


def _minimax_m2(config: Fields, facts: Facts) -> Facts:
    norm = "full" if config.boolean("use_qk_norm", True) else "none"
    return _with_experts(_with_attention(_llama_like(config, facts), norm=norm), router_bias=True)


def _cohere(config: Fields, facts: Facts) -> Facts:
    norm = "full" if config.boolean("use_qk_norm") else "none"
    facts = _with_attention(_llama_like(config, facts), norm=norm)
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
    return replace(_with_experts(_llama_like(config, facts), every=step, offset=offset), recurrence=linear)


def _minimax_01(config: Fields, facts: Facts) -> Facts:
    facts = _llama_like(config, facts)
    assert facts.attention is not None
    heads, width = facts.attention.heads, facts.attention.head_dim
    kinds = config.value("attn_type_list")
    every = kinds.index(1) + 1 if isinstance(kinds, list) and 1 in kinds else 8
    linear = RecurrenceFacts("lightning", every, every - 1, heads, heads, width, width)
    return replace(facts, recurrence=linear)


def _published_mix(outer: Fields, config: Fields) -> str:
    """Storage mix that the checkpoint says it is in."""
    section = outer.table("quantization_config") or config.table("quantization_config")
    if section is None:
        kind = config.value("torch_dtype") or config.value("dtype")
        return _TYPES.get(str(kind).removeprefix("torch."), "bf16")
    method = str(section.value("quant_method") or section.value("quant_algo") or "").lower()
    if method == "fp8":
        return "fp8_block" if section.value("weight_block_size") else "fp8"
    if method == "bitsandbytes":
        return "int8" if section.value("load_in_8bit") is True else "nf4"
    if method in {"compressed-tensors", "compressed_tensors"}:
        return _compressed(section)
    if method == "modelopt":
        return "nvfp4" if "FP4" in str(section.value("quant_algo")).upper() else "fp8"
    known = {"awq": "awq", "gptq": "gptq", "mxfp4": "mxfp4", "nvfp4": "nvfp4"}
    if method not in known:
        raise BadFile(f"{outer.where}: quantization method '{method[:40]}' is not known; name the storage mix yourself")
    return known[method]


def _compressed(section: Fields) -> str:
    """Mix of a compressed-tensors checkpoint, by the weights of its first group."""
    groups = section.table("config_groups")
    group = groups.table("group_0") if groups else None
    weights = group.table("weights") if group else None
    if weights is None:
        raise BadFile(f"{section.where}: compressed-tensors needs config_groups.group_0.weights")
    bits, kind = weights.integer("num_bits", most=32), weights.value("type")
    if bits == 8:
        return "fp8" if kind == "float" else "int8"
    if bits == 4:
        return "nvfp4" if kind == "float" else "gptq"
    raise BadFile(f"{section.where}: compressed-tensors with {bits} bits is not known; name the storage mix yourself")


_Reader = Callable[[Fields, Facts], Facts]
_READERS: Mapping[str, _Reader] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "mixtral", "ministral", "yi", "granite", "internlm2"), _llama_like),
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
_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
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
