"""Parameters of a layer as vLLM and SGLang hold them: projections fused, in the order of their modules.

Their offloaders choose among these: from the first layer on until a budget is reached, or the last layers of groups.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stowplan.models.model import LatentAttention, Layer, Model, Recurrence, Role, Tensor
from stowplan.ops import EXPERT_PARTS, Part, part_of
from stowplan.plan import Place
from stowplan.systems.base import RAM

_QKV = frozenset({Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_QKV})
_NAMES: Mapping[Role, str] = {
    Role.ATTN_OUT: "self_attn.o_proj.weight",
    Role.ATTN_Q_A: "self_attn.fused_qkv_a_proj.weight",
    Role.ATTN_KV_A: "self_attn.fused_qkv_a_proj.weight",
    Role.ATTN_Q_B: "self_attn.q_b_proj.weight",
    Role.ATTN_KV_B: "self_attn.kv_b_proj.weight",
    Role.ATTN_OTHER: "self_attn.indexer.weight",
    Role.SSM: "linear_attn.in_proj.weight",
    Role.ROUTER: "mlp.gate.weight",
    Role.SHARED_GATE: "mlp.shared_experts.gate_up_proj.weight",
    Role.SHARED_UP: "mlp.shared_experts.gate_up_proj.weight",
    Role.SHARED_DOWN: "mlp.shared_experts.down_proj.weight",
    Role.EXPERT_GATE: "mlp.experts.w13_weight",
    Role.EXPERT_UP: "mlp.experts.w13_weight",
    Role.EXPERT_DOWN: "mlp.experts.w2_weight",
    Role.FFN_GATE: "mlp.gate_up_proj.weight",
    Role.FFN_UP: "mlp.gate_up_proj.weight",
    Role.FFN_DOWN: "mlp.down_proj.weight",
}
_ORDER = (
    "self_attn.fused_qkv_a_proj.weight",
    "self_attn.q_b_proj.weight",
    "self_attn.kv_b_proj.weight",
    "self_attn.qkv_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.norm.weight",
    "self_attn.indexer.weight",
    "linear_attn.in_proj.weight",
    "mlp.gate.weight",
    "mlp.shared_experts.gate_up_proj.weight",
    "mlp.shared_experts.down_proj.weight",
    "mlp.experts.w13_weight",
    "mlp.experts.w2_weight",
    "mlp.gate_up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
EXPERTS = ("experts.w13_weight", "experts.w2_weight")
DENSE = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One fused parameter on one GPU of the group: bytes by part of the layer."""

    name: str
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """All of its bytes."""
        return sum(self.parts.values())


@lru_cache(maxsize=4)
def _all(model: Model, gpus: int) -> tuple[tuple[int, tuple[Parameter, ...]], ...]:
    """Parameters of every layer, with the layer's index."""
    return tuple((layer.index, tuple(parameters(layer, gpus))) for layer in model.layers)


def parameters(layer: Layer, gpus: int) -> list[Parameter]:
    """The parameters of a layer on one of `gpus` GPUs, in module order.

    Matrices are divided over the GPUs, keys and values by whole heads; norms, routers and latent projections are not.
    """
    sizes: dict[str, dict[str, int]] = {}
    for tensor in layer.tensors:
        name = _name(tensor)
        held = sizes.setdefault(name, {})
        part = part_of(tensor).value
        held[part] = held.get(part, 0) + _rank_bytes(tensor, layer, gpus)
    return [Parameter(name, sizes[name]) for name in _ORDER if name in sizes]


def _name(tensor: Tensor) -> str:
    if tensor.role in _QKV:
        return "self_attn.qkv_proj.weight"
    if tensor.role in _NAMES:
        return _NAMES[tensor.role]
    stem = tensor.name.rpartition(".")[0].rpartition(".")[2]
    if stem == "attn_norm":
        return "input_layernorm.weight"
    return "post_attention_layernorm.weight" if tensor.role is Role.FFN_NORM else "self_attn.norm.weight"


def _rank_bytes(tensor: Tensor, layer: Layer, gpus: int) -> int:
    whole = tensor.columns == 1 or tensor.role in (Role.ROUTER, Role.ATTN_Q_A, Role.ATTN_KV_A, Role.ATTN_OTHER)
    if gpus == 1 or whole:
        return tensor.bytes
    heads = layer.mixer.kv_heads if not isinstance(layer.mixer, LatentAttention | Recurrence) else gpus
    share = min(gpus, heads) if tensor.role in (Role.ATTN_K, Role.ATTN_V) else gpus
    return -(-tensor.bytes // share)


def chosen(name: str, segments: Collection[str]) -> bool:
    """Whether a parameter is meant by any of some names of whole dotted segments; by none given, all are."""
    return not segments or any(f".{segment}." in f".{name}." for segment in segments)


Moved = frozenset[tuple[int, str]]
"""Parameters in host memory, by layer and name."""


def greedy(model: Model, gpus: int, budget: int, segments: Collection[str] = ()) -> Moved:
    """From the first layer on, parameter by parameter, until the budget is reached or passed."""
    moved: set[tuple[int, str]] = set()
    spent = 0
    for index, held in _all(model, gpus):
        for parameter in held:
            if spent >= budget:
                return frozenset(moved)
            if chosen(parameter.name, segments):
                moved.add((index, parameter.name))
                spent += parameter.bytes
    return frozenset(moved)


def grouped(model: Model, gpus: int, size: int, count: int, segments: Collection[str] = ()) -> Moved:
    """The last `count` layers of every `size`: layer i where i mod size >= size - count."""
    return frozenset(
        (index, parameter.name)
        for index, held in _all(model, gpus)
        if index % size >= size - count
        for parameter in held
        if chosen(parameter.name, segments)
    )


def budget_for(model: Model, gpus: int, moved: Moved) -> int:
    """Bytes that make `greedy` end exactly behind its last parameter: half of that one below all."""
    sizes = [
        parameter.bytes for index, held in _all(model, gpus) for parameter in held if (index, parameter.name) in moved
    ]
    return sum(sizes) - sizes[-1] // 2 if sizes else 0


def places(model: Model, gpus: int, moved: Moved, resident: float = 1.0) -> list[dict[str, Place]]:
    """Places of the parts of every layer: shares by bytes, the rest divided over the GPUs.

    Args:
        model: the model.
        gpus: GPUs that share each layer.
        moved: parameters in host memory.
        resident: share of every layer's experts that is on the GPU.
    """
    found: list[dict[str, Place]] = []
    for index, held in _all(model, gpus):
        total: dict[str, int] = {}
        away: dict[str, float] = {}
        for parameter in held:
            for part, size in parameter.parts.items():
                total[part] = total.get(part, 0) + size
                if (index, parameter.name) in moved:
                    away[part] = away.get(part, 0.0) + size
        shares = {part: away.get(part, 0.0) / size for part, size in total.items()}
        for part in EXPERT_PARTS:
            if part.value in shares and resident < 1.0:
                shares[part.value] = 1.0 - resident
        found.append({part: _place(share, gpus) for part, share in shares.items()} | {Part.KV.value: _place(0.0, gpus)})
    return found


def _place(away: float, gpus: int) -> Place:
    if away >= 1.0:
        return RAM
    here = {f"gpu{i}": (1.0 - away) / gpus for i in range(gpus)}
    if away:
        here[RAM] = away
    return next(iter(here)) if len(here) == 1 else here


def usable_gpus(model: Model, count: int) -> int:
    """The most GPUs, up to `count`, over which the heads of every layer divide evenly."""
    heads = {layer.mixer.heads for layer in model.layers if not isinstance(layer.mixer, Recurrence)}
    return max(each for each in range(1, max(1, count) + 1) if all(number % each == 0 for number in heads))


def gpus_used(layers: Sequence[Mapping[str, Place]]) -> int:
    """How many GPUs a placement names."""
    named = {
        name
        for parts in layers
        for place in parts.values()
        for name in ([place] if isinstance(place, str) else place)
        if name.startswith("gpu")
    }
    return len(named)
