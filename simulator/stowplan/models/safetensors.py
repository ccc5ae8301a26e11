"""Models from safetensors checkpoints: real sizes from the headers, structure from the ``config.json`` beside them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from stowplan.errors import BadFile, InputError
from stowplan.models.build import build_model
from stowplan.models.config_json import read_config
from stowplan.models.facts import Facts
from stowplan.models.fields import Fields
from stowplan.models.jsonfile import parse_json, read_json
from stowplan.models.model import Layer, Model, Role, Tensor

LARGEST_HEADER = 128 * 2**20
LARGEST_INDEX = 64 * 2**20
_MOST_SHARDS = 2000
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8"}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,4})\.(.+)\Z")
_SIDE = re.compile(
    r"[._](weight_scale_inv|weight_scale|weight_packed|weight_shape|input_scale|scales|qzeros|qweight|g_idx|blocks|weight)\Z"
)


_ATTENTION_STEMS = MappingProxyType(
    {
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "out_proj": "attn_output",
        "dense": "attn_output",
        "qkv_proj": "attn_qkv",
        "query_key_value": "attn_qkv",
        "q_a_proj": "attn_q_a",
        "q_b_proj": "attn_q_b",
        "kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "kv_b_proj": "attn_kv_b",
        "q_a_layernorm": "attn_q_a_norm",
        "kv_a_layernorm": "attn_kv_a_norm",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "sinks": "attn_sinks",
    }
)


def _stems() -> Mapping[str, tuple[str, ...]]:
    """Tensors of this project by the names that checkpoints give them within a layer."""
    table: dict[str, tuple[str, ...]] = {}
    for module in ("self_attn", "attention", "self_attention"):
        table |= {f"{module}.{name}": (stem,) for name, stem in _ATTENTION_STEMS.items()}
    for module in ("mlp", "feed_forward"):
        table |= {f"{module}.{part}_proj": (f"ffn_{part}",) for part in ("gate", "up", "down")}
        table[f"{module}.gate_up_proj"] = ("ffn_up",)
        table |= {f"{module}.{router}": ("ffn_gate_inp",) for router in ("gate", "router")}
        table[f"{module}.experts.gate_up_proj"] = ("ffn_gate_exps", "ffn_up_exps")
        table[f"{module}.experts.down_proj"] = ("ffn_down_exps",)
        for shared in ("shared_expert", "shared_experts"):
            table |= {f"{module}.{shared}.{part}_proj": (f"ffn_{part}_shexp",) for part in ("gate", "up", "down")}
        table[f"{module}.shared_expert_gate"] = ("ffn_gate_inp_shexp",)
    table |= {"fc1": ("ffn_up",), "fc2": ("ffn_down",), "mlp.dense_h_to_4h": ("ffn_up",)}
    table |= {"mlp.dense_4h_to_h": ("ffn_down",), "input_layernorm": ("attn_norm",)}
    table |= {"pre_feedforward_layernorm": ("ffn_norm",), "post_feedforward_layernorm": ("post_ffw_norm",)}
    table["block_sparse_moe.gate"] = ("ffn_gate_inp",)
    return MappingProxyType(table)


_STEMS = _stems()
_OUTSIDE = MappingProxyType(
    {
        "embed_tokens": "token_embd.weight",
        "word_embeddings": "token_embd.weight",
        "embed_positions": "position_embd.weight",
        "lm_head": "output.weight",
        "norm": "output_norm.weight",
        "final_layer_norm": "output_norm.weight",
    }
)
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe|feed_forward)\.experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)\Z")
_EXPERT_STEMS = MappingProxyType(
    {
        "gate_proj": "ffn_gate_exps",
        "w1": "ffn_gate_exps",
        "up_proj": "ffn_up_exps",
        "w3": "ffn_up_exps",
        "down_proj": "ffn_down_exps",
        "w2": "ffn_down_exps",
    }
)


@dataclass(slots=True)
class _Stored:
    """What a checkpoint holds of one tensor: bytes with scales, and the type of its largest piece."""

    bytes: int = 0
    largest: int = 0
    kind: str = ""

    def add(self, size: int, kind: str) -> None:
        self.bytes += size
        if size > self.largest:
            self.largest, self.kind = size, kind


def read_checkpoint(path: Path, quant: str | None = None) -> Model:
    """Model of a safetensors checkpoint.

    Args:
        path: the folder, one of its .safetensors files or the index; ``config.json`` must lie beside.
        quant: must be None; the checkpoint has its own formats.

    Raises:
        BadFile: unreadable, truncated or corrupt, or without ``config.json``.
        InputError: a storage mix was asked for.
    """
    if quant is not None:
        raise InputError(f"{path}: the checkpoint has its own formats; leave the quantization '{quant[:40]}' out")
    folder = path if path.is_dir() else path.parent
    facts = read_config(folder)
    if facts.latent:
        facts = replace(facts, latent=replace(facts.latent, joined=True))
    second_norm = facts.norms[1] if len(facts.norms) > 1 else facts.norms[0]
    found: dict[str, _Stored] = defaultdict(_Stored)
    for shard in _shards(path, folder):
        for name, kind, size in read_header(shard):
            homes = _homes(name, second_norm)
            for home in homes:
                found[home].add(size // len(homes), kind)
    return _with_sizes(build_model(facts), facts, found, str(folder))


def read_header(path: Path) -> list[tuple[str, str, int]]:
    """Name, type and bytes of every tensor of one safetensors file.

    Raises:
        BadFile: truncated, corrupt, or with tensors that overlap or go beyond the file.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise BadFile(f"{path}: is truncated or no safetensors file: its header would take {length} bytes")
            content = stream.read(length)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_header(content, size - 8 - length, str(path))


def parse_header(content: bytes, data_bytes: int, where: str) -> list[tuple[str, str, int]]:
    """Tensors that a header describes; `data_bytes` is what follows it."""
    header = parse_json(content, where)
    table = Fields(header, where)
    tensors: list[tuple[str, str, int]] = []
    places: list[tuple[int, int, str]] = []
    for name in header:
        if name == "__metadata__":
            continue
        entry = table.table(name)
        offsets = entry.value("data_offsets") if entry else None
        if (
            entry is None
            or not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(type(offset) is int for offset in offsets)
            or not 0 <= offsets[0] <= offsets[1]
        ):
            raise BadFile(f"{where}: tensor '{name[:60]}' has no valid data_offsets")
        if offsets[1] > data_bytes:
            raise BadFile(f"{where}: is truncated: tensor '{name[:60]}' ends {offsets[1] - data_bytes} bytes too late")
        tensors.append((name, entry.text("dtype"), offsets[1] - offsets[0]))
        places.append((offsets[0], offsets[1], name))
    end, before = 0, ""
    for first, last, name in sorted(places):
        if first < end:
            raise BadFile(f"{where}: tensors '{before[:60]}' and '{name[:60]}' are in the same place")
        end, before = last, name
    return tensors


def _shards(path: Path, folder: Path) -> list[Path]:
    """Files of the checkpoint: those of the index, or all there are."""
    if path.suffix == ".safetensors" and "-of-" not in path.name:
        return [path]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BadFile(f"{folder}: holds no .safetensors file")
        return files
    weights = Fields(read_json(index, LARGEST_INDEX), str(index)).value("weight_map")
    if not isinstance(weights, dict):
        raise BadFile(f"{index}: field 'weight_map' must be a table")
    names = {name for name in weights.values() if isinstance(name, str)}
    if len(names) > _MOST_SHARDS or not all(name == Path(name).name and name not in {"", ".."} for name in names):
        raise BadFile(f"{index}: 'weight_map' must name files of this folder")
    return [folder / name for name in sorted(names)]


def _homes(name: str, second_norm: str) -> tuple[str, ...]:
    """Names of this project's tensors that a checkpoint's tensor belongs to; its own name where it is unknown."""
    matched = _LAYER.search(name)
    base, side = (matched[2], "weight") if matched else (name, "weight")
    if base.endswith(("_bias", ".bias")):
        base, side = base[:-5], "bias"
    elif piece := _SIDE.search(base):
        base = base[: piece.start()]
    if matched is None:
        return (name if "vis" in base else _OUTSIDE.get(base.rsplit(".", 1)[-1], name),)
    if base == "post_attention_layernorm":
        return (f"blk.{int(matched[1])}.{second_norm}.{side}",)
    expert = _EXPERT.search(base)
    stems = (_EXPERT_STEMS[expert[1]],) if expert else _STEMS.get(base, ())
    return tuple(f"blk.{int(matched[1])}.{stem}.{side}" for stem in stems) or (f"{matched[1]}|{name}",)


def _with_sizes(model: Model, facts: Facts, found: dict[str, _Stored], where: str) -> Model:
    """The model with real sizes; what has no counterpart is shared out among its layer's tensors that found none."""
    packed = max((t for t in model.tensors if t.role is not Role.TOKEN_EMBEDDING), key=lambda t: t.bytes).format
    known = {t.name for t in model.tensors}
    strays: dict[int | None, int] = defaultdict(int)
    for name, stored in found.items():
        if name not in known:
            number = name.partition("|")[0] if "|" in name else ""
            strays[int(number) if number.isdecimal() and int(number) < facts.layers else None] += stored.bytes

    def place(tensors: tuple[Tensor, ...], layer: int | None) -> tuple[Tensor, ...]:
        placed = [_sized(t, found.get(t.name), packed) for t in tensors]
        homeless = [i for i, t in enumerate(tensors) if t.name not in found]
        left, weights = strays[layer], sum(tensors[i].elements for i in homeless)
        for i in homeless:
            share = left * tensors[i].elements // weights
            left, weights = left - share, weights - tensors[i].elements
            placed[i] = replace(placed[i], bytes=share)
        if left:
            name = "other" if layer is None else f"blk.{layer}.other"
            placed.append(Tensor(name, Role.OTHER, layer, left, 1, 1, "i8", left))
        return tuple(placed)

    layers = tuple(
        Layer(layer.index, layer.mixer, layer.experts, place(layer.tensors, layer.index)) for layer in model.layers
    )
    return replace(model, layers=layers, globals=place(model.globals, None), origin=where)


def _sized(tensor: Tensor, stored: _Stored | None, packed: str) -> Tensor:
    if stored is None:
        return tensor
    return replace(tensor, format=_PLAIN.get(stored.kind, packed), bytes=stored.bytes)
