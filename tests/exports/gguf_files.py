"""GGUF files that llama.cpp itself loads, written from stowplan's models; their weights are holes that read as zero."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.models import Facts, Model, build_model, formats, load_facts
from stowplan.models.model import Tensor

_ALIGNMENT = 32


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _entry(value: Any) -> bytes:
    """Type number and value of one metadata entry."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _text(str(value))


def metadata(facts: Facts) -> dict[str, Any]:
    """What llama.cpp wants to know of a dense or routed model with plain attention, vocabulary left out."""
    prefix, soft, moe = facts.architecture, facts.attention, facts.experts
    assert soft is not None
    found: dict[str, Any] = {
        "general.architecture": prefix,
        "general.name": facts.name,
        "general.file_type": 15,
        "tokenizer.ggml.model": "no_vocab",
        f"{prefix}.vocab_size": facts.vocabulary,
        f"{prefix}.block_count": facts.layers,
        f"{prefix}.context_length": facts.max_context,
        f"{prefix}.embedding_length": facts.hidden,
        f"{prefix}.feed_forward_length": facts.ffn or 256,
        f"{prefix}.rope.freq_base": 10000.0,
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{prefix}.attention.head_count": soft.heads,
        f"{prefix}.attention.head_count_kv": soft.kv_heads,
        f"{prefix}.attention.key_length": soft.head_dim,
        f"{prefix}.attention.value_length": soft.value_dim,
    }
    if moe:
        found |= {
            f"{prefix}.expert_count": moe.total,
            f"{prefix}.expert_used_count": moe.active,
            f"{prefix}.expert_feed_forward_length": moe.ffn,
        }
    return found


def _shape(tensor: Tensor) -> list[int]:
    shape = [tensor.columns, tensor.rows] if tensor.columns > 1 else [tensor.rows]
    return shape + ([tensor.count] if tensor.count > 1 else [])


def _header(entries: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[bytes, int]:
    """Header, padded to the start of the data, and the bytes of the data."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries))]
    parts += [_text(key) + _entry(value) for key, value in entries.items()]
    offset = 0
    for tensor in tensors:
        shape, number = _shape(tensor), formats()[tensor.format].ggml_id
        assert number is not None
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", number, offset))
        offset += -(-tensor.bytes // _ALIGNMENT) * _ALIGNMENT
    content = b"".join(parts)
    return content + bytes(-len(content) % _ALIGNMENT), offset


def write_gguf(path: Path, facts: Facts, quant: str, seed: int | None = None) -> Model:
    """A file of a model, and the model that it holds.

    Without a seed the weights are a hole (they read as zero); with one they are random, for f16 and f32 alone.
    """
    model = build_model(facts, quant)
    start, size = _header(metadata(facts), model.tensors)
    with path.open("wb") as stream:
        stream.write(start)
        if seed is not None:
            draw = np.random.default_rng(seed)
            for tensor in model.tensors:
                kind = {"f16": np.float16, "f32": np.float32}[tensor.format]
                values = draw.standard_normal(tensor.elements) / 8 if tensor.columns > 1 else np.ones(tensor.elements)
                stream.write(values.astype(kind).tobytes())
                stream.write(bytes(-tensor.bytes % _ALIGNMENT))
        stream.truncate(len(start) + size)
    return model


def small(key: str, layers: int = 6) -> Facts:
    """The same kind of model as a known one, with little of everything."""
    facts = load_facts(key)
    assert facts.attention is not None
    attention = replace(facts.attention, heads=4, kv_heads=2, head_dim=64, value_dim=64)
    experts = replace(facts.experts, total=8, active=2, ffn=256, shared_ffn=0) if facts.experts else None
    ffn = 512 if facts.ffn else 0
    return replace(
        facts, layers=layers, hidden=256, vocabulary=512, attention=attention, experts=experts, ffn=ffn, published=None
    )
