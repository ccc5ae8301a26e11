"""Models from GGUF files: the real format and size of every tensor, facts from the metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, InputError
from stowplan.models.facts import MOST_EXPERTS, MOST_LAYERS, MOST_WIDTH, RecurrenceFacts
from stowplan.models.fields import Fields
from stowplan.models.gguf_header import MetaValue, TensorInfo, read_header
from stowplan.models.model import Attention, Experts, LatentAttention, Layer, Mixer, Model, Role, Tensor
from stowplan.models.names import layer_and_role
from stowplan.models.shapes import recurrence_mixer

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf\Z", re.DOTALL)
_MOST_PARTS = 1000
# Architectures with sliding windows: every how manieth layer sees everything (0: none does).
_FULL_EVERY = MappingProxyType(
    {"gpt-oss": 2, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "llama4": 4, "exaone4": 4}
)


def read_gguf(path: Path, quant: str | None = None) -> Model:
    """Model of a GGUF file, or of all its parts when it is split.

    Raises:
        BadFile: unreadable, truncated or corrupt, a part missing, or facts missing from the metadata.
        InputError: a storage mix was asked for, but the file states its own.
    """
    if quant is not None:
        raise InputError(f"{path}: the file has its own formats; leave the quantization '{quant[:40]}' out")
    metadata: dict[str, MetaValue] = {}
    tensors: list[TensorInfo] = []
    for part in _parts(path):
        header = read_header(part)
        metadata = header.metadata | metadata
        tensors.extend(header.tensors)
    twice = [name for name, number in Counter(t.name for t in tensors).items() if number > 1]
    if twice:
        raise BadFile(f"{path}: tensor '{twice[0][:60]}' is in more than one part")
    return _model(path, metadata, tensors)


def _parts(path: Path) -> list[Path]:
    matched = _PART.match(path.name)
    if matched is None:
        return [path]
    total = int(matched[3])
    if not 1 <= total <= _MOST_PARTS:
        raise BadFile(f"{path}: says it is split into {total} parts; 1 to {_MOST_PARTS} are possible")
    parts = [path.with_name(f"{matched[1]}-{index:05d}-of-{matched[3]}.gguf") for index in range(1, total + 1)]
    for part in parts:
        if not part.exists():
            raise BadFile(f"{part}: is missing; all {total} parts of a split model are needed")
    return parts


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Metadata of one architecture, under its own prefix."""

    fields: Fields
    prefix: str

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = MOST_WIDTH) -> int:
        return self.fields.integer(self.prefix + name, default, least=least, most=most)

    def optional(self, name: str, *, least: int = 1) -> int | None:
        return self.fields.optional(self.prefix + name, least=least, most=MOST_WIDTH)

    def per_layer(self, name: str, index: int, default: int | None = None) -> int:
        """A number that is given once or for every layer; 0 where a layer has none."""
        value = self.fields.value(self.prefix + name)
        if not isinstance(value, list):
            return self.integer(name, default, least=0)
        if index >= len(value) or not isinstance(value[index], int) or not 0 <= value[index] <= MOST_WIDTH:
            raise BadFile(f"{self.fields.where}: metadata entry '{self.prefix}{name}' has no number for layer {index}")
        return int(value[index])


def _model(path: Path, metadata: dict[str, MetaValue], tensors: list[TensorInfo]) -> Model:
    fields = Fields(metadata, str(path))
    architecture = fields.text("general.architecture")
    meta = _Metadata(fields, f"{architecture}.")
    drafting = meta.integer("nextn_predict_layers", 0, least=0, most=MOST_LAYERS)
    count = meta.integer("block_count", most=MOST_LAYERS) - drafting
    recurrent = {
        layer for info in tensors if ".ssm_" in info.name and (layer := layer_and_role(info.name)[0]) is not None
    }
    outside: list[Tensor] = []
    inside: list[list[Tensor]] = [[] for _ in range(max(count, 0))]
    for info in tensors:
        tensor = _tensor(info, recurrent)
        if tensor.layer is None:
            outside.append(tensor)
        elif tensor.layer < count:
            inside[tensor.layer].append(tensor)
        elif tensor.layer >= count + drafting:
            raise BadFile(f"{path}: tensor '{tensor.name[:60]}' belongs to a layer beyond the {count} there are")
    if count < 1 or not all(inside):
        raise BadFile(f"{path}: has no tensors for some of its {count} layers; is a part of the model missing?")
    vocabulary = [t.rows for t in outside if t.role in {Role.TOKEN_EMBEDDING, Role.OUTPUT} and t.columns > 1]
    left_out = f"; {drafting} layers for speculative decoding left out" if drafting else ""
    experts = _experts(meta)
    routed = frozenset({Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN})
    return Model(
        key=_key(path),
        name=fields.text("general.name", _key(path)),
        architecture=architecture,
        quant=_label(metadata, tensors),
        hidden=meta.integer("embedding_length"),
        vocabulary=vocabulary[0] if vocabulary else meta.integer("vocab_size", most=2**26),
        max_context=meta.integer("context_length", most=2**40),
        layers=tuple(
            Layer(
                index,
                _mixer(meta, architecture, index, stored, index in recurrent),
                experts if any(t.role in routed for t in stored) else None,
                tuple(stored),
            )
            for index, stored in enumerate(inside)
        ),
        globals=tuple(outside),
        tied=not any(t.role is Role.OUTPUT for t in outside),
        origin=f"{path}{left_out}",
    )


def _tensor(info: TensorInfo, recurrent: set[int]) -> Tensor:
    """Rows, columns and matrices of a stored shape; a vector, or one vector per expert, has one column."""
    shape = info.shape
    stacked = shape[2] * (shape[3] if len(shape) > 3 else 1) if len(shape) > 2 else 1
    if len(shape) == 1:
        rows, columns, count = shape[0], 1, 1
    elif info.name.endswith(".bias"):
        rows, columns, count = shape[0], 1, shape[1] * stacked
    else:
        rows, columns, count = shape[1], shape[0], stacked
    layer, _ = layer_and_role(info.name)
    layer, role = layer_and_role(info.name, recurrent=layer in recurrent, vector=columns == 1)
    return Tensor(info.name, role, layer, rows, columns, count, info.format.key, info.bytes)


def _mixer(meta: _Metadata, architecture: str, index: int, stored: list[Tensor], recurrent: bool) -> Mixer:
    if recurrent:
        return recurrence_mixer(_recurrence(meta))
    heads = meta.per_layer("attention.head_count", index)
    if heads < 1:
        raise BadFile(f"{meta.fields.where}: layer {index} has neither attention heads nor a recurrent mixer")
    if any(t.role is Role.ATTN_KV_A for t in stored):
        rope = meta.integer("rope.dimension_count")
        width = meta.optional("attention.key_length_mla") or meta.integer("attention.key_length")
        value = meta.optional("attention.value_length_mla") or meta.integer("attention.value_length")
        if width <= rope:
            raise BadFile(f"{meta.fields.where}: keys of {width} cannot hold a rotary part of {rope}")
        return LatentAttention(
            heads,
            meta.integer("attention.kv_lora_rank"),
            rope,
            width - rope,
            value,
            selected=meta.optional("attention.indexer.top_k"),
        )
    kv_heads = meta.per_layer("attention.head_count_kv", index, heads) or heads
    if heads % kv_heads:
        raise BadFile(f"{meta.fields.where}: {heads} heads cannot share {kv_heads} key/value heads evenly")
    width = meta.integer("attention.key_length", max(meta.integer("embedding_length") // heads, 1))
    value = meta.integer("attention.value_length", width)
    return Attention(heads, kv_heads, width, value, _window(meta, architecture, index))


def _window(meta: _Metadata, architecture: str, index: int) -> int | None:
    """Window of a layer; the metadata's pattern, where there is one, else what the architecture is known for."""
    name = "attention.sliding_window"
    window = meta.integer(name, 8192 if architecture == "llama4" else 0, least=0, most=2**26)
    if not window:
        return None
    pattern = meta.fields.value(f"{meta.prefix}{name}_pattern")
    if isinstance(pattern, list):
        return window if index < len(pattern) and pattern[index] else None
    every = pattern if isinstance(pattern, int) else _FULL_EVERY.get(architecture)
    if every is None or (every > 0 and (index + 1) % every == 0):
        return None
    return window


def _recurrence(meta: _Metadata) -> RecurrenceFacts:
    inner, state = meta.integer("ssm.inner_size"), meta.integer("ssm.state_size")
    rank, conv = meta.integer("ssm.time_step_rank"), meta.integer("ssm.conv_kernel", most=1024)
    groups = meta.integer("ssm.group_count", 0, least=0)
    if not groups:
        return RecurrenceFacts("mamba", 1, 0, inner=inner, state=state, rank=rank, conv=conv)
    return RecurrenceFacts(
        "gated-delta",
        1,
        0,
        key_heads=groups,
        value_heads=rank,
        key_dim=state,
        value_dim=max(inner // rank, 1),
        conv=conv,
    )


def _experts(meta: _Metadata) -> Experts | None:
    total = meta.integer("expert_count", 0, least=0, most=MOST_EXPERTS)
    if not total:
        return None
    return Experts(total, meta.integer("expert_used_count", most=total))


def _label(metadata: dict[str, MetaValue], tensors: list[TensorInfo]) -> str:
    """Mix by the file's own number, else the format that most bytes are in."""
    number = metadata.get("general.file_type")
    named = file_types().get(number) if isinstance(number, int) else None
    if named:
        return named
    sizes: Counter[str] = Counter()
    for info in tensors:
        sizes[info.format.key] += info.bytes
    return sizes.most_common(1)[0][0] if sizes else "f32"


@cache
def file_types() -> Mapping[int, str]:
    """Mix by the number that GGUF files carry as ``general.file_type``."""
    numbers = read_toml(data_folder("models") / "mixes.toml")["file_types"]
    return MappingProxyType({number: key for key, number in numbers.items()})


def _key(path: Path) -> str:
    matched = _PART.match(path.name)
    return matched[1] if matched else path.stem
