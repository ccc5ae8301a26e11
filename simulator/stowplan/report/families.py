"""What belongs together in every picture of a page, so that one colour means one thing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

_LAYER_TASK = re.compile(r"(?:blk\.|layer )(\d+)[. ]")
_SLOT_TASK = re.compile(r"(\d+)\.\d+ ")
_SHORT = {
    "attn_q": "Q",
    "attn_k": "K",
    "attn_v": "V",
    "attn_qkv": "QKV",
    "attn_output": "out",
    "attn_q_a": "Q down",
    "attn_q_b": "Q up",
    "attn_kv_a_mqa": "KV down",
    "attn_kv_b": "KV up",
    "attn_other": "attention extras",
    "ssm": "state-space",
    "ffn_gate_inp": "router",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "ffn_gate_exps": "experts gate",
    "ffn_up_exps": "experts up",
    "ffn_down_exps": "experts down",
    "ffn_gate_shexp": "shared gate",
    "ffn_up_shexp": "shared up",
    "ffn_down_shexp": "shared down",
    "token_embd": "embedding",
    "output": "output",
}
_WAYS = {"weights": "copy weights", "pages": "read pages", "input": "copy input", "residual": "copy back"}


class Family(StrEnum):
    """Groups of tensors and of tasks; the value is the class that colours them."""

    SYSTEM = "system"
    BUFFERS = "buffers"
    CACHE = "cache"
    ATTENTION = "attention"
    SHARED = "shared"
    OUTPUT = "output"
    FFN = "ffn"
    EXPERTS = "experts"
    OTHER = "other"
    COPY = "copy"
    DISK = "disk"


LABEL = {
    Family.SYSTEM: "runtime",
    Family.BUFFERS: "buffers",
    Family.CACHE: "KV cache",
    Family.ATTENTION: "attention",
    Family.SHARED: "shared experts",
    Family.OUTPUT: "embedding, output",
    Family.FFN: "feed-forward",
    Family.EXPERTS: "experts",
    Family.OTHER: "other",
    Family.COPY: "copies",
    Family.DISK: "SSD",
}

COLOUR = {
    Family.SYSTEM: "#8c8c8c",
    Family.BUFFERS: "#b3b3b3",
    Family.CACHE: "#56b4e9",
    Family.ATTENTION: "#0072b2",
    Family.SHARED: "#f0e442",
    Family.OUTPUT: "#009e73",
    Family.FFN: "#d55e00",
    Family.EXPERTS: "#e69f00",
    Family.OTHER: "#a0a0a0",
    Family.COPY: "#cc79a7",
    Family.DISK: "#7a6a58",
}
"""Okabe and Ito's palette, which colour-blind readers tell apart, and greys for what is not the model."""


def family_of_part(part: str) -> Family:
    """Family of a part of a layer, by the part's name in a plan."""
    if part.endswith("_exps"):
        return Family.EXPERTS
    if part.startswith("ffn"):
        return Family.FFN
    return {"attention": Family.ATTENTION, "kv": Family.CACHE, "shared_experts": Family.SHARED}.get(part, Family.OTHER)


def family_of_operator(name: str) -> Family:
    """Family of an operator, by the stem of its tensor."""
    if name in {"attention", "recurrence"}:
        return Family.CACHE
    if name.endswith("_shexp"):
        return Family.SHARED
    if name.startswith(("attn", "ssm")) or name == "ffn_gate_inp":
        return Family.ATTENTION
    if name.startswith("ffn"):
        return family_of_part(name)
    return Family.OUTPUT if name in {"output", "token_embd", "logits", "sample"} else Family.OTHER


def family_of_task(name: str, kind: str) -> Family:
    """Family of a simulated task: copies and disk by their kind, the rest by operator."""
    if kind in {"copy", "disk"}:
        return Family.COPY if kind == "copy" else Family.DISK
    return family_of_operator(operator_of(name))


def layer_of(name: str) -> int | None:
    """Layer, or position in the schedule, that a task belongs to; None outside the layers."""
    found = _LAYER_TASK.match(name) or _SLOT_TASK.match(name)
    return int(found[1]) if found else None


def unit_word(names: Iterable[str]) -> str:
    """What `layer_of` counts in a step: layers, or the modules of a block schedule."""
    return "layer" if any(_LAYER_TASK.match(name) for name in names) else "module"


def operator_of(name: str) -> str:
    """Stem of the operator that a task is, or is a copy for."""
    stem = _SLOT_TASK.sub("", _LAYER_TASK.sub("", name))
    return stem.split(" ")[0]


def short_name(name: str) -> str:
    """A task or an operator in a word or two, its layer left out."""
    stem = _SLOT_TASK.sub("", _LAYER_TASK.sub("", name))
    operator, _, way = stem.partition(" ")
    if operator in _SHORT:
        return f"{_WAYS.get(way, way)}: {_SHORT[operator]}" if way else _SHORT[operator]
    return _WAYS.get(stem, stem)
