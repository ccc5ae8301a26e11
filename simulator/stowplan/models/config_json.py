"""Facts from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stowplan.errors import BadFile
from stowplan.models.config_types import ARCHITECTURES, READERS, first_of, llama_like
from stowplan.models.facts import MOST_LAYERS, MOST_WIDTH, Facts, check_facts
from stowplan.models.fields import Fields
from stowplan.models.jsonfile import read_json

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
    merged = {**_outer_values(table), **inner} if isinstance(inner, Mapping) else dict(table)
    kind = str(merged.get("model_type") or "")[:60]
    for name, value in _DEFAULTS.get(kind, {}).items():
        merged.setdefault(name, value)
    config = Fields(merged, where)
    reader = READERS.get(kind)
    facts = (reader or llama_like)(config, _common(config, key, where))
    if reader is None:
        facts = replace(
            facts, origin=f"{where}; model type '{kind or 'unnamed'}' is not known and was read as Llama-like"
        )
    facts = replace(facts, quant=_published_mix(outer, config))
    check_facts(facts, where)
    return facts


def _outer_values(table: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a multimodal config that its text part may leave out."""
    return {name: table[name] for name in ("tie_word_embeddings", "torch_dtype", "dtype") if name in table}


def _common(config: Fields, key: str, where: str) -> Facts:
    """What all types share under the same names."""
    name = config.text("_name_or_path", key)
    return Facts(
        key=key,
        name=name.rstrip("/").rsplit("/", 1)[-1] or key,
        architecture=ARCHITECTURES.get(str(config.value("model_type")), "llama"),
        hidden=first_of(config, ("hidden_size", "n_embd", "d_model"), MOST_WIDTH),
        layers=first_of(config, ("num_hidden_layers", "n_layer", "n_layers"), MOST_LAYERS),
        vocabulary=config.integer("vocab_size", most=2**26),
        max_context=first_of(
            config, ("max_position_embeddings", "max_seq_len", "seq_length", "n_positions"), 2**40, 2048
        ),
        tied=config.boolean("tie_word_embeddings"),
        attention=None,
        origin=where,
    )


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
