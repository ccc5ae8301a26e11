"""Storage mixes: which format each tensor of a model is written in.

A named mix of llama.cpp gives more bits to the tensors that need them, by kind of tensor and position of the layer.
Those rules are data (`models/mixes.toml`); this module evaluates them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import UnknownName
from stowplan.models.facts import Facts
from stowplan.models.formats import Format, fitting_format, formats, load_format
from stowplan.models.model import DENSE_FFN_ROLES, EXPERT_ROLES, SHARED_ROLES, Role
from stowplan.models.shapes import Shape

_ALIASES = {
    "fp32": "f32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "awq_int4": "awq",
    "gptq_int4": "gptq",
    "q3_k": "q3_k_m",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
    "w8a8": "int8",
    "fp8_dynamic": "fp8",
}
_KEPT = "q6_k"
_NEVER_PACKED = ("_norm.weight", "ffn_gate_inp", "ssm_conv1d", "position_embd")
_LINEAR_ROLES = (
    EXPERT_ROLES
    | SHARED_ROLES
    | DENSE_FFN_ROLES
    | {
        Role.ATTN_Q,
        Role.ATTN_K,
        Role.ATTN_V,
        Role.ATTN_QKV,
        Role.ATTN_OUT,
        Role.ATTN_Q_A,
        Role.ATTN_Q_B,
        Role.ATTN_KV_A,
        Role.ATTN_KV_B,
        Role.SSM,
    }
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a mix: the conditions that must hold, and the format that then applies."""

    conditions: tuple[str, ...]
    format: str


@dataclass(frozen=True, slots=True)
class GgufMix:
    """A mix as llama.cpp's quantizer makes it: a base format, and rules by kind of tensor."""

    key: str
    base: str
    rules: Mapping[str, tuple[Rule, ...]]


@dataclass(frozen=True, slots=True)
class CheckpointMix:
    """A mix as GPU engines' checkpoints have it: matrices in one format, everything else in another."""

    key: str
    rest: str
    packed: str
    roles: frozenset[Role]


Mix = GgufMix | CheckpointMix


@cache
def mixes() -> Mapping[str, Mix]:
    """Every named mix by key."""
    data = read_toml(data_folder("models") / "mixes.toml")
    written = data["gguf"]
    found: dict[str, Mix] = {}
    for key, entry in written.items():
        found[key] = _gguf_mix(key, written[entry["extends"]] | entry if "extends" in entry else entry)
    for key, entry in data["checkpoint"].items():
        packed = entry.get("linear") or entry["experts"]
        roles = frozenset(_LINEAR_ROLES) if "linear" in entry else EXPERT_ROLES
        found[key] = CheckpointMix(key, entry["rest"], packed, roles)
    return MappingProxyType(found)


def load_mix(name: str) -> Mix:
    """Mix of that name in any letter case; the name of a GGUF format makes a mix of that format.

    Raises:
        UnknownName: no such mix and no such format.
    """
    wanted = normalised_mix_name(name)
    known = mixes()
    if wanted in known:
        return known[wanted]
    stored = formats().get(wanted)
    if stored is not None and stored.ggml_id is not None:
        return GgufMix(wanted, wanted, MappingProxyType({}))
    raise UnknownName("quantization", name[:60], set(known) | {f.key for f in formats().values() if f.ggml_id})


def sized_mix(mix: Mix, *, routed: bool) -> Mix:
    """The mix that a file of stated size is taken for, before its experts are scaled.

    A single format whose size is stated (``iq1_s_r4@130.2GiB``) names what routed experts are packed in. Who packs a
    model of experts so keeps what every token passes, a few per cent of the weights, at 5 to 8 bits, as the recipes on
    the cards of such files say; six and a half are taken.
    """
    if not routed or not isinstance(mix, GgufMix) or mix.rules:
        return mix
    if load_format(mix.base).bits_per_weight >= load_format(_KEPT).bits_per_weight:
        return mix
    return GgufMix(mix.key, _KEPT, MappingProxyType({"experts": (Rule((), mix.base),)}))


def normalised_mix_name(name: str) -> str:
    """Lower case with underscores, and the usual synonyms replaced."""
    wanted = name.strip().lower().replace("-", "_")
    return _ALIASES.get(wanted, wanted)


def assign_formats(facts: Facts, mix: Mix, shapes: Sequence[Shape]) -> list[Format]:
    """Format of every tensor, in the order of `shapes`."""
    if isinstance(mix, CheckpointMix):
        packed, rest = load_format(mix.packed), load_format(mix.rest)
        return [fitting_format(packed, s.columns) if _is_packed(s, mix.roles) else rest for s in shapes]
    return _Quantizer(facts, mix, shapes).formats()


def _is_packed(shape: Shape, roles: frozenset[Role]) -> bool:
    return shape.role in roles and shape.columns > 1 and shape.name.endswith("weight") and not _exempt(shape.name)


def _exempt(name: str) -> bool:
    return any(part in name for part in _NEVER_PACKED)


class _Quantizer:
    """Walks the tensors in layer order and counts, as llama.cpp's quantizer does."""

    def __init__(self, facts: Facts, mix: GgufMix, shapes: Sequence[Shape]) -> None:
        self._mix = mix
        self._shapes = shapes
        self._layers = facts.layers
        self._plain = load_format(mix.base).family == "float"
        self._f32 = load_format("f32")
        self._tied = facts.tied
        self._value_tensors = sum(_kind(s.name) in {"attn_v", "attn_qkv", "attn_kv_b"} for s in shapes)
        self._values_seen = 0
        experts = facts.experts.total if facts.experts else 0
        soft = facts.attention
        shared = soft.heads // soft.kv_heads if soft and facts.block_kind(0) == "attention" else 0
        self._model_conditions = {
            "gqa4": shared >= 4,
            "experts4": experts >= 4,
            "experts8": experts == 8,
            "falcon": facts.architecture == "falcon",
        }
        # Llama and Qwen models of 80 layers with grouped heads count as the 70B size: their value matrices are small,
        # so they get more bits.
        self._is_70b = facts.layers == 80 and shared > 1 and facts.architecture in {"llama", "qwen2"}
        self._eight_experts = experts == 8
        # Experts that were published in four bits are copied, not packed anew.
        self._keeps_experts = facts.quant == "mxfp4"
        self._counts_downs = mix.base.startswith(("iq1", "iq2"))
        self._downs_seen = 0

    def formats(self) -> list[Format]:
        return [self._format_of(shape) for shape in self._shapes]

    def _format_of(self, shape: Shape) -> Format:
        if shape.columns == 1 or not shape.name.endswith("weight") or _exempt(shape.name):
            return self._f32
        if self._keeps_experts and shape.role in EXPERT_ROLES:
            return load_format("mxfp4")
        if self._plain:
            return load_format(self._mix.base)
        kind = _kind(shape.name)
        chosen = self._choose(kind, shape)
        return fitting_format(load_format(chosen), shape.columns)

    def _choose(self, kind: str, shape: Shape) -> str:
        base, rules = self._mix.base, self._mix.rules
        if kind == "output" or (kind == "embedding" and self._tied):
            if self._model_conditions["falcon"] or shape.columns % load_format(base).block:
                return "q8_0"
            return self._match(rules.get("output"), 0, 1) or ("q8_0" if base == "q8_0" else "q6_k")
        if shape.role in EXPERT_ROLES and "experts" in rules:
            return self._match(rules["experts"], 0, 1) or base
        position, total = shape.layer or 0, self._layers
        if kind in {"attn_v", "attn_qkv", "attn_kv_b"}:
            position, total = self._values_seen, self._value_tensors
            self._values_seen += 1
        if kind == "ffn_down" and self._counts_downs:  # these mixes count tensors, shared experts' too, not layers
            position = self._downs_seen
            self._downs_seen += 1
        # Latent attention's joint matrix is judged as a value matrix.
        chosen = self._match(rules.get("attn_v" if kind == "attn_kv_b" else kind), position, total) or base
        if kind == "attn_v":
            if self._is_70b and chosen in {"q3_k", "q4_k"}:
                chosen = "q5_k"
            if self._eight_experts and not self._counts_downs:
                chosen = "q8_0"
        if kind == "attn_k" and self._eight_experts and not self._counts_downs:
            chosen = "q8_0"
        return chosen

    def _match(self, rules: Iterable[Rule] | None, position: int, total: int) -> str | None:
        for rule in rules or ():
            if all(self._holds(condition, position, total) for condition in rule.conditions):
                return rule.format
        return None

    def _holds(self, condition: str, position: int, total: int) -> bool:
        wanted = not condition.startswith("!")
        condition = condition.removeprefix("!")
        if condition in self._model_conditions:
            return self._model_conditions[condition] is wanted
        return _POSITIONS[condition](position, total) is wanted


def _more_bits(i: int, n: int) -> bool:
    """First eighth, last eighth, and each third layer between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


_POSITIONS: Mapping[str, Callable[[int, int], bool]] = MappingProxyType(
    {
        "more-bits": _more_bits,
        "first-sixteenth": lambda i, n: i < n // 16,
        "first-eighth": lambda i, n: i < n // 8,
        "middle": lambda i, n: n // 8 <= i < 7 * n // 8,
        "first-two": lambda i, _: i < 2,
        "first-four": lambda i, _: i < 4,
    }
)
_KINDS = {
    "token_embd": "embedding",
    "output": "output",
    "attn_q": "attn_q",
    "attn_k": "attn_k",
    "attn_v": "attn_v",
    "attn_qkv": "attn_qkv",
    "attn_kv_b": "attn_kv_b",
    "attn_output": "attn_output",
}


def _kind(name: str) -> str:
    """What llama.cpp's quantizer takes a tensor for, by its name."""
    stem, _, suffix = name.rpartition(".")
    stem = stem.rpartition(".")[2]
    if suffix != "weight":
        return "other"
    for part in ("ffn_up", "ffn_gate", "ffn_down"):
        if stem.startswith(part):
            return part
    return _KINDS.get(stem, "other")


def _gguf_mix(key: str, entry: dict[str, Any]) -> GgufMix:
    rules = {kind: tuple(map(_rule, lines)) for kind, lines in entry.items() if isinstance(lines, list)}
    return GgufMix(key, entry["base"], MappingProxyType(rules))


def _rule(line: str) -> Rule:
    conditions, _, chosen = line.rpartition(":")
    return Rule(tuple(conditions.split()), chosen.strip())
