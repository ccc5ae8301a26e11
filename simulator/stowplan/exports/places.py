"""Bytes of a plan by layer, part and tier, and how two plans differ, in sentences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from stowplan.models import model_kv_bytes_per_token
from stowplan.models.model import Layer, Model, Role
from stowplan.ops import EXPERT_PARTS, FFN_PARTS, Part, part_of
from stowplan.plan import Place, Plan, expand
from stowplan.systems.base import DISK, RAM, Setup
from stowplan.units import format_bytes

Flags = TypeVar("Flags")

GPU = "gpu"
TIERS = (GPU, RAM, DISK)
_TITLES = {GPU: "GPU", RAM: "RAM", DISK: "disk"}
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", (Part.MIXER.value,)),
    ("experts", tuple(part.value for part in EXPERT_PARTS)),
    ("feed-forward matrices", tuple(part.value for part in FFN_PARTS)),
    ("shared experts", (Part.SHARED.value,)),
)
_NOTICEABLE = 0.005  # share of a family's bytes in a layer


def tier_of(place: str) -> str:
    """The tier of a place: all GPUs are one."""
    return GPU if place.startswith("gpu") else place


def shares_of(place: Place) -> dict[str, float]:
    """Share of a part on each tier."""
    if isinstance(place, str):
        return {tier_of(place): 1.0}
    found: dict[str, float] = defaultdict(float)
    for name, share in place.items():
        found[tier_of(name)] += share
    return dict(found)


@lru_cache(maxsize=1024)
def part_bytes(layer: Layer) -> Mapping[str, int]:
    """Stored bytes of the parts of a layer, cache left out."""
    sizes: Counter[str] = Counter()
    for tensor in layer.tensors:
        sizes[part_of(tensor).value] += tensor.bytes
    return MappingProxyType(dict(sizes))


def bytes_by_tier(model: Model, layers: Sequence[Mapping[str, Place]]) -> dict[str, float]:
    """Weights of the layers on each tier."""
    found = dict.fromkeys(TIERS, 0.0)
    for layer, places in zip(model.layers, layers, strict=True):
        for part, size in part_bytes(layer).items():
            for tier, share in shares_of(places[part]).items():
                found[tier] += share * size
    return found


def layers_of(model: Model, plan: Plan) -> list[dict[str, Place]]:
    """Places of every layer of a plan."""
    return expand(plan.layers, len(model.layers), where="plan")


def room_on_gpus(setup: Setup, plan: Plan, share: float) -> float:
    """Bytes of layers that may be on GPUs where an engine keeps embedding and output there as well.

    They are the plan's own, less what embedding and output displace.

    Args:
        setup: model and machine.
        plan: the plan.
        share: of the GPUs' memory that the engine takes.
    """
    model, layers = setup.model, layers_of(setup.model, plan)
    held = bytes_by_tier(model, layers)[GPU]
    edges = {GPU: 0.0, RAM: 0.0, DISK: 0.0}
    for tensor in model.globals:
        table = tensor.role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)
        edges[tier_of(plan.embedding if table else plan.output)] += tensor.bytes
    cached = sum(shares_of(places[Part.KV.value]).get(GPU, 0.0) for places in layers) / len(layers)
    cache = cached * model_kv_bytes_per_token(model) * plan.workload.capacity * plan.workload.batch
    free = share * sum(gpu.memory.value for gpu in setup.machine.gpus) - held - edges[GPU] - cache
    return held - max(0.0, edges[RAM] + edges[DISK] - max(0.0, free))


def misplaced(model: Model, wanted: Sequence[Mapping[str, Place]], got: Sequence[Mapping[str, Place]]) -> float:
    """Bytes that are on another tier than wanted."""
    total = 0.0
    for layer, first, second in zip(model.layers, wanted, got, strict=True):
        for part, size in part_bytes(layer).items():
            before, after = shares_of(first[part]), shares_of(second[part])
            total += size * sum(max(0.0, share - after.get(tier, 0.0)) for tier, share in before.items())
    return total


def distance(
    model: Model, wanted: Sequence[Mapping[str, Place]], got: Sequence[Mapping[str, Place]]
) -> tuple[float, float]:
    """How far one placement is from another: bytes by which the GPUs' shares of each part differ over the whole model,
    and, where that is equal, bytes that are elsewhere layer by layer (a third of every layer does what every third
    layer does).
    """
    change: dict[str, float] = defaultdict(float)
    for layer, first, second in zip(model.layers, wanted, got, strict=True):
        for part, size in part_bytes(layer).items():
            change[part] += size * (shares_of(first[part]).get(GPU, 0.0) - shares_of(second[part]).get(GPU, 0.0))
    return float(round(sum(map(abs, change.values())))), misplaced(model, wanted, got)


def nearest_of(
    model: Model,
    wanted: Sequence[Mapping[str, Place]],
    room: float,
    candidates: Iterable[Flags],
    realised: Callable[[Flags], Sequence[Mapping[str, Place]]],
) -> Flags | None:
    """The candidate whose placement is nearest to the one wanted; None where all need more than `room` on the GPUs.

    Args:
        model: what is placed.
        wanted: places of every layer's parts.
        room: bytes of weights that the GPUs may hold.
        candidates: flags of an engine; the first of those that are equally near is taken.
        realised: the placement that the engine makes of flags.
    """
    best: tuple[tuple[float, float], Flags] | None = None
    for flags in candidates:
        got = realised(flags)
        if bytes_by_tier(model, got)[GPU] > room * (1 + 1e-9):
            continue
        cost = distance(model, wanted, got)
        if best is None or cost < best[0]:
            best = cost, flags
    return None if best is None else best[1]


def differences(model: Model, wanted: Plan, got: Plan, title: str) -> list[str]:
    """What an engine does otherwise than a plan wants, a sentence each."""
    before, after = layers_of(model, wanted), layers_of(model, got)
    found: list[str] = []
    for family, parts in _FAMILIES:
        moved: dict[tuple[str, str], list[int]] = defaultdict(list)
        size: Counter[tuple[str, str]] = Counter()
        for layer, first, second in zip(model.layers, before, after, strict=True):
            sizes = {part: each for part, each in part_bytes(layer).items() if part in parts}
            for source, target, share in _moves(sizes, first, second):
                if share > _NOTICEABLE * sum(sizes.values()):
                    moved[source, target].append(layer.index)
                    size[source, target] += round(share)
        for (source, target), indices in moved.items():
            found.append(
                f"{title} cannot keep the {family} of {_layers(indices, len(model.layers))} in {_TITLES[source]} as "
                f"the plan does; they go to {_TITLES[target]} ({format_bytes(size[source, target])})"
            )
    found += _cache_difference(before, after, title)
    for name, one, other in (("embedding", wanted.embedding, got.embedding), ("output", wanted.output, got.output)):
        if tier_of(one) != tier_of(other):
            found.append(f"{title} keeps the {name} in {_TITLES[tier_of(other)]}, the plan in {_TITLES[tier_of(one)]}")
    return found


def _moves(
    sizes: Mapping[str, int], first: Mapping[str, Place], second: Mapping[str, Place]
) -> Iterable[tuple[str, str, float]]:
    """(from, to, bytes) between tiers of one family in one layer."""
    change = dict.fromkeys(TIERS, 0.0)
    for part, size in sizes.items():
        for tier, share in shares_of(first[part]).items():
            change[tier] += size * share
        for tier, share in shares_of(second[part]).items():
            change[tier] -= size * share
    for source in TIERS:
        for target in TIERS:
            amount = min(change[source], -change[target])
            if amount > 0:
                change[source] -= amount
                change[target] += amount
                yield source, target, amount


def _cache_difference(
    before: Sequence[Mapping[str, Place]], after: Sequence[Mapping[str, Place]], title: str
) -> list[str]:
    kv = Part.KV.value
    moved = [
        index for index, (a, b) in enumerate(zip(before, after, strict=True)) if shares_of(a[kv]) != shares_of(b[kv])
    ]
    if not moved:
        return []
    target = max(shares_of(after[moved[0]][kv]).items(), key=lambda pair: pair[1])[0]
    return [f"{title} keeps the cache of {_layers(moved, len(before))} in {_TITLES[target]}, other than the plan"]


def _layers(indices: Sequence[int], total: int) -> str:
    if len(indices) == total:
        return "all layers"
    if len(indices) == indices[-1] - indices[0] + 1:
        return f"layer {indices[0]}" if len(indices) == 1 else f"layers {indices[0]}-{indices[-1]}"
    return f"{len(indices)} of {total} layers"
