"""Complete GGUF files of random weights, which engines load and run like any other model."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.models.build import build_model
from stowplan.models.facts import AttentionFacts, Facts
from stowplan.models.formats import formats
from stowplan.models.model import Model, Tensor

Blocks = NDArray[np.uint8]
_ALIGNMENT = 32
_PATTERN_BYTES = 2**20
_BYTE_TOKENS = 256


def llama_facts(key: str, *, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int) -> Facts:
    """A Llama-style model of 32,000 tokens of vocabulary with an output matrix of its own."""
    width = hidden // heads
    return Facts(
        key=key,
        name=key,
        architecture="llama",
        origin="written by a test",
        hidden=hidden,
        layers=layers,
        vocabulary=32000,
        max_context=8192,
        tied=False,
        ffn=ffn,
        attention=AttentionFacts(heads=heads, kv_heads=kv_heads, head_dim=width, value_dim=width),
    )


def write_random_gguf(path: Path, facts: Facts, mix: str, seed: int = 0, *, holes: bool = False) -> Model:
    """A GGUF file of `facts` in the storage mix `mix`; returns the model as stowplan builds it.

    Weights repeat a random pattern of about one MiB: kernels' times do not depend on it, and writing stays quick. With
    `holes` there are none: the file has its size, for what reads headers only.
    """
    model = build_model(facts, mix)
    rng = np.random.default_rng(seed)
    patterns: dict[str, bytes] = {}
    with path.open("wb") as file:
        header = _header(facts, model)
        file.write(header)
        if holes:
            file.truncate(len(header) + sum(t.bytes + -t.bytes % _ALIGNMENT for t in model.tensors))
            return model
        for tensor in model.tensors:
            if tensor.format not in patterns:
                patterns[tensor.format] = _PATTERNS[tensor.format](rng).tobytes()
            for piece in _repeated(patterns[tensor.format], tensor.bytes):
                file.write(piece)
            file.write(bytes(-tensor.bytes % _ALIGNMENT))
    return model


def _header(facts: Facts, model: Model) -> bytes:
    attention = facts.attention
    assert attention is not None
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(_BYTE_TOKENS))]
    tokens += [f"token{i}" for i in range(facts.vocabulary - len(tokens))]
    kinds = [2, 3, 3] + [6] * _BYTE_TOKENS
    metadata: Mapping[str, Any] = {
        "general.architecture": "llama",
        "general.name": facts.name,
        "general.alignment": _ALIGNMENT,
        "llama.block_count": facts.layers,
        "llama.context_length": facts.max_context,
        "llama.embedding_length": facts.hidden,
        "llama.feed_forward_length": facts.ffn,
        "llama.attention.head_count": attention.heads,
        "llama.attention.head_count_kv": attention.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": attention.head_dim,
        "llama.vocab_size": facts.vocabulary,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * facts.vocabulary,
        "tokenizer.ggml.token_type": kinds + [1] * (facts.vocabulary - len(kinds)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(model.tensors), len(metadata))]
    parts += [_text(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for tensor in model.tensors:
        shape = _shape(tensor)
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", formats()[tensor.format].ggml_id or 0, offset))
        offset += tensor.bytes + -tensor.bytes % _ALIGNMENT
    content = b"".join(parts)
    return content + bytes(-len(content) % _ALIGNMENT)


def _shape(tensor: Tensor) -> list[int]:
    """Fastest dimension first, as GGUF has it."""
    return [tensor.columns, tensor.rows] if tensor.columns > 1 else [tensor.rows]


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    entries = [_value(item) for item in value]
    kind = 5 if isinstance(value[0], int) else struct.unpack("<I", entries[0][:4])[0]  # token types are signed
    return struct.pack("<IIQ", 9, kind, len(entries)) + b"".join(entry[4:] for entry in entries)


def _repeated(pattern: bytes, size: int) -> Iterator[bytes]:
    while size > 0:
        yield pattern[:size]
        size -= len(pattern)


def _blocks(scales: int, codes: int, tail: int = 0) -> Callable[[np.random.Generator], Blocks]:
    """Blocks of `scales` half floats near 0.01, `codes` random bytes and `tail` half floats."""

    def make(rng: np.random.Generator) -> Blocks:
        count = _PATTERN_BYTES // (2 * scales + codes + 2 * tail)

        def halves(number: int) -> Blocks:
            values = rng.uniform(5e-3, 1.5e-2, (count, number)).astype("<f2")
            return values.view(np.uint8).reshape(count, 2 * number)

        return np.hstack([halves(scales), rng.integers(0, 256, (count, codes), dtype=np.uint8), halves(tail)])

    return make


def _floats(kind: str) -> Callable[[np.random.Generator], Blocks]:
    return lambda rng: rng.uniform(-0.05, 0.05, _PATTERN_BYTES // 4).astype(kind).view(np.uint8)


_PATTERNS: Mapping[str, Callable[[np.random.Generator], Blocks]] = {
    "f32": _floats("<f4"),
    "f16": _floats("<f2"),
    "q8_0": _blocks(1, 32),
    "q4_0": _blocks(1, 16),
    "q4_k": _blocks(2, 140),
    "q6_k": _blocks(0, 208, 1),
}
