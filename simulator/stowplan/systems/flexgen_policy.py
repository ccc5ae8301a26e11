"""FlexGen's policy: percentages, batch shape and switches, and what FlexGen's own rounding makes of them.

Weights are rounded to whole tensors inside each half of a layer: tensors are laid end to end, and the one whose middle
falls below the disk's percentage goes to disk, below disk and host together to host memory, the rest to the GPU. The
cache is rounded down to whole sequences of a GPU batch. Hidden states live on one tier altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stowplan.errors import NotExpressible
from stowplan.models.model import (
    DENSE_FFN_ROLES,
    EXPERT_ROLES,
    SHARED_ROLES,
    Layer,
    Model,
    Role,
    Tensor,
)
from stowplan.ops import Part, output_tensor, part_of
from stowplan.plan import Place, Plan
from stowplan.systems.base import DISK, RAM

GPU = "gpu0"
TIERS = (GPU, RAM, DISK)
HALF = 2.0
"""Bytes of an fp16 element."""
COMPRESSED = 0.5 + 2 * HALF / 64
"""Bytes of an element in 4-bit groups of 64, each with an fp16 minimum and scale."""

Percent = Annotated[int, Field(ge=0, le=100)]


class FlexgenSettings(BaseModel):
    """Settings of a FlexGen plan; the names are those of its flags.

    Attributes:
        percent: weights on GPU and host, cache on GPU and host, hidden states on GPU and host; the rest is on disk.
        gpu_batch_size: sequences that the GPU computes at once.
        num_gpu_batches: GPU batches that share one pass over the weights.
        cpu_cache_compute: decode attention on the CPU for the cache that is not on the GPU.
        compress_weight, compress_cache: 4-bit groups of 64.
        overlap: copies run beside the computation.
        sep_layer: attention and MLP are scheduled as separate layers.
        pin_weight: weights in host memory are page-locked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    percent: tuple[Percent, Percent, Percent, Percent, Percent, Percent] = (100, 0, 100, 0, 100, 0)
    gpu_batch_size: Annotated[int, Field(ge=1, le=2**16)] = 4
    num_gpu_batches: Annotated[int, Field(ge=1, le=2**10)] = 1
    cpu_cache_compute: bool = False
    compress_weight: bool = False
    compress_cache: bool = False
    overlap: bool = True
    sep_layer: bool = True
    pin_weight: bool = True

    @property
    def batch(self) -> int:
        """Sequences of one block."""
        return self.gpu_batch_size * self.num_gpu_batches

    @property
    def cache_bytes(self) -> float:
        """Stored bytes of one cache element."""
        return COMPRESSED if self.compress_cache else HALF


def settings_of(plan: Plan) -> FlexgenSettings:
    """Settings that a plan holds.

    Raises:
        NotExpressible: an unknown setting, a wrong type, or a combination that FlexGen refuses.
    """
    try:
        settings = FlexgenSettings.model_validate(plan.settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotExpressible(f"plan: settings.{field}: {first['msg']}") from error
    return checked(settings)


def checked(settings: FlexgenSettings) -> FlexgenSettings:
    """The settings, if FlexGen takes them.

    Raises:
        NotExpressible: a pair of percentages above 100, hidden states on two tiers, or a compressed cache that is on
            two tiers or attended to by the CPU.
    """
    percent = settings.percent
    for first, name in ((0, "weights"), (2, "cache"), (4, "hidden states")):
        if percent[first] + percent[first + 1] > 100:
            raise NotExpressible(
                f"--percent: {name} have {percent[first]} + {percent[first + 1]} = "
                f"{percent[first] + percent[first + 1]} %; GPU and host together may have 100"
            )
    if not _pure(percent[4:]):
        raise NotExpressible(
            f"--percent: hidden states have {percent[4]} {percent[5]}, but FlexGen keeps them on one tier; "
            "use 100 0, 0 100 or 0 0"
        )
    if settings.compress_cache and not _pure(percent[2:4]):
        raise NotExpressible(
            f"--percent: a compressed cache cannot be on two tiers ({percent[2]} {percent[3]}); use 100 0, 0 100 or 0 0"
        )
    if settings.compress_cache and settings.cpu_cache_compute:
        raise NotExpressible("--cpu-cache-compute needs an uncompressed cache; drop it or --compress-cache")
    return settings


def _pure(pair: Sequence[int]) -> bool:
    return tuple(pair) in {(100, 0), (0, 100), (0, 0)}


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored tensor: its part of the layer (None outside layers), elements, and whether 4 bits may store it."""

    part: Part | None
    elements: int
    matrix: bool

    def size(self, compress: bool) -> float:
        """Stored bytes."""
        return self.elements * (COMPRESSED if compress and self.matrix else HALF)


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are rounded together: one half of a layer, the embedding, or the output.

    Attributes:
        kind: ``input``, ``attention``, ``mlp`` or ``output``.
        pieces: in FlexGen's order: each matrix and its bias, then the norm.
    """

    kind: str
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        """Weights of the group."""
        return sum(piece.elements for piece in self.pieces)


_MLP_ROLES = DENSE_FFN_ROLES | EXPERT_ROLES | SHARED_ROLES | {Role.ROUTER, Role.FFN_NORM}


def layer_groups(layer: Layer) -> tuple[Group, Group]:
    """Attention half and MLP half of a layer."""
    attention = [tensor for tensor in layer.tensors if tensor.role not in _MLP_ROLES]
    mlp = [tensor for tensor in layer.tensors if tensor.role in _MLP_ROLES]
    return Group("attention", _ordered(attention)), Group("mlp", _ordered(mlp))


def _ordered(tensors: Sequence[Tensor]) -> tuple[Piece, ...]:
    """Matrices in order, each followed by its bias; norms at the end."""
    stems = {tensor.name.removesuffix(".weight"): n for n, tensor in enumerate(tensors) if tensor.columns > 1}

    def position(numbered: tuple[int, Tensor]) -> tuple[int, int]:
        n, tensor = numbered
        if tensor.columns > 1:
            return n, 0
        return stems.get(tensor.name.removesuffix(".bias"), len(tensors)), 1

    ordered = sorted(enumerate(tensors), key=position)
    return tuple(Piece(part_of(tensor), tensor.elements, tensor.columns > 1) for _, tensor in ordered)


def edge_groups(model: Model) -> tuple[Group, Group]:
    """Embedding and output; FlexGen keeps a tied matrix twice."""
    tables = [t for t in model.globals if t.role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)]
    norms = [t for t in model.globals if t.role is Role.OUTPUT_NORM]
    final = [*norms, output_tensor(model)]
    return (
        Group("input", tuple(Piece(None, t.elements, t.columns > 1) for t in tables)),
        Group("output", tuple(Piece(None, t.elements, t.columns > 1) for t in final)),
    )


def homes(group: Group, gpu: int, cpu: int) -> tuple[str, ...]:
    """Tier of each tensor of a group for `gpu` and `cpu` per cent of weights."""
    disk, total, cumulated = 100 - gpu - cpu, group.elements, 0
    found: list[str] = []
    for piece in group.pieces:
        middle = 100 * (2 * cumulated + piece.elements)  # in units of total / 200, so that the comparison is exact
        cumulated += piece.elements
        if middle < 2 * disk * total:
            found.append(DISK)
        elif middle < 2 * (disk + cpu) * total:
            found.append(RAM)
        else:
            found.append(GPU)
    return tuple(found)


def weight_shares(groups: Sequence[Group], gpu: int, cpu: int) -> dict[str, float]:
    """Realised share of the weights of some groups on each tier that holds any."""
    sizes = dict.fromkeys(TIERS, 0)
    for group in groups:
        for piece, home in zip(group.pieces, homes(group, gpu, cpu), strict=True):
            sizes[home] += piece.elements
    total = sum(sizes.values())
    return {tier: size / total for tier, size in sizes.items() if size}


def cache_shares(settings: FlexgenSettings) -> dict[str, float]:
    """Realised share of the cache on each tier: whole sequences of a GPU batch, rounded down on GPU and host."""
    gpu, cpu = settings.percent[2:4]
    size = settings.gpu_batch_size
    on_gpu = size * gpu // 100
    on_cpu = size - on_gpu if gpu + cpu == 100 else size * cpu // 100
    counts = {GPU: on_gpu, RAM: on_cpu, DISK: size - on_gpu - on_cpu}
    return {tier: count / size for tier, count in counts.items() if count}


def hidden_tier(settings: FlexgenSettings) -> str:
    """Tier of the hidden states."""
    return GPU if settings.percent[4] else RAM if settings.percent[5] else DISK


def as_place(shares: dict[str, float]) -> Place:
    """Shares as a plan stores them: one place's name, or shares by place."""
    return next(iter(shares)) if len(shares) == 1 else dict(shares)


def layer_places(layer: Layer, settings: FlexgenSettings) -> dict[str, Place]:
    """Realised places of the parts of one layer."""
    gpu, cpu = settings.percent[:2]
    sizes: dict[str, dict[str, int]] = {}
    for group in layer_groups(layer):
        for piece, home in zip(group.pieces, homes(group, gpu, cpu), strict=True):
            by_tier = sizes.setdefault((piece.part or Part.MIXER).value, {})
            by_tier[home] = by_tier.get(home, 0) + piece.elements
    places: dict[str, Place] = {}
    for part, by_tier in sizes.items():
        total = sum(by_tier.values())
        places[part] = as_place({tier: by_tier[tier] / total for tier in TIERS if tier in by_tier})
    places[Part.KV.value] = as_place(cache_shares(settings))
    return places


def table_home(group: Group, settings: FlexgenSettings) -> str:
    """Tier of the token matrix of the embedding or the output."""
    placed = zip(group.pieces, homes(group, *settings.percent[:2]), strict=True)
    return max(placed, key=lambda pair: pair[0].elements)[1]
