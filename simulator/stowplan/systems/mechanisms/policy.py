"""What an offloading system does with weights, cache and experts: one frozen record per subject, neutral by default.

The neutral policy keeps everything on the GPU and computes it there. Shares are of a layer's bytes and the same in
every layer, so that layers of one class are alike; whole layers spread evenly over the depth come to the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stowplan.errors import InputError
from stowplan.routing.caches import POLICIES

Place = Literal["gpu", "cpu", "storage"]


def _shares(owner: str, **given: float) -> None:
    for name, value in given.items():
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{owner}: {name} is {value}, but it is a share from 0 to 1")


def _sum(gpu: float, ram: float) -> float:
    """Both shares together, forgiving what rounding adds."""
    return max(0.0, gpu + ram - 1e-9)


class _OverTiers:
    """What is shared out over GPU memory, host memory and, for the rest, the disk."""

    __slots__ = ()

    gpu: float
    ram: float

    @property
    def disk(self) -> float:
        """Share on disk."""
        return max(0.0, 1.0 - self.gpu - self.ram)

    @property
    def away(self) -> float:
        """Share that is not in GPU memory."""
        return max(0.0, 1.0 - self.gpu)


@dataclass(frozen=True, slots=True)
class Weights(_OverTiers):
    """Weights other than routed experts.

    Attributes:
        gpu, ram: shares of a layer in GPU memory and in host memory; the rest is on disk.
        prefetch: layers whose weights may be on their way while one computes; 0 copies first and computes then.
        pieces: parts of a layer that are copied and computed one behind the other (a pipeline inside the layer).
        zero_copy: kernels read host memory themselves, so copying is part of computing and nothing is buffered.
        pinned: whether host memory is page-locked.
        direct: whether reads from disk go straight to the GPU, not through a buffer in host memory.
        mapped: whether what is on disk comes by page faults of a memory-mapped file.
        cpu: share of what is not in GPU memory that the CPU computes where it lies in decode, instead of the GPU after
            a copy; prompts are copied.
        stored: bytes that are stored and moved per byte of the model's format.
        unpack: bytes of the model's format that the GPU restores per unit and clock; None where products read the
            stored form.
    """

    gpu: float = 1.0
    ram: float = 0.0
    prefetch: int = 0
    pieces: int = 1
    zero_copy: bool = False
    pinned: bool = True
    direct: bool = False
    mapped: bool = False
    cpu: float = 0.0
    stored: float = 1.0
    unpack: float | None = None

    def __post_init__(self) -> None:
        _shares("weights", gpu=self.gpu, ram=self.ram, together=_sum(self.gpu, self.ram), cpu=self.cpu)
        if self.prefetch < 0 or self.pieces < 1 or not 0.0 < self.stored <= 1.0:
            raise InputError("weights: prefetch is at least 0, pieces at least 1, stored above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Cache(_OverTiers):
    """The KV cache.

    Attributes:
        gpu, ram: shares in GPU memory and in host memory; the rest is on disk.
        attend: where decode attention of the part that is away from the GPU runs.
        prefetch: layers whose cache may be on its way while one computes; 0 copies when the layer's attention begins.
        slices: groups of heads that are brought and attended to one after another, the next while one is attended to; 1
            brings whole layers.
        slots: slices that have room on the GPU at a time; None for one, or two where the next comes meanwhile.
        rounded: whether host memory is taken in blocks of a power of two bytes, one for the keys and one for the values
            of every slice, as PyTorch's allocator of page-locked memory gives it.
        bits: stored bytes per byte of an fp16 cache.
        residual: newest tokens that stay in fp16 beside a smaller format.
        unpack: stored bytes turned into fp16 per unit and clock by a kernel of its own; None where attention reads the
            stored form.
        kept: share of the tokens that are kept at all (eviction).
        read: share of the kept tokens that one decode step reads (selection).
        scan: share of the kept cache's bytes that is read, on the GPU, to select them, from a copy that lies there.
        locality: share of the selected tokens that the last step has left on the GPU.
        whole_layers: first layers that read everything, for nothing has been seen to select by.
        windowed: whether a layer with a sliding window drops what no later query sees; else it keeps and moves all.
        recompute: share of the cache that is not kept but rebuilt from kept inputs of the layer.
        pinned: whether host memory is page-locked.
        mapped: whether what is on disk comes by page faults of a memory-mapped file.
    """

    gpu: float = 1.0
    ram: float = 0.0
    attend: Place = "gpu"
    prefetch: int = 0
    slices: int = 1
    slots: int | None = None
    rounded: bool = False
    bits: float = 1.0
    residual: int = 0
    unpack: float | None = None
    kept: float = 1.0
    read: float = 1.0
    scan: float = 0.0
    locality: float = 0.0
    whole_layers: int = 0
    windowed: bool = True
    recompute: float = 0.0
    pinned: bool = True
    mapped: bool = False

    def __post_init__(self) -> None:
        _shares(
            "cache",
            gpu=self.gpu,
            ram=self.ram,
            together=_sum(self.gpu, self.ram),
            kept=self.kept,
            read=self.read,
            scan=self.scan,
            locality=self.locality,
            recompute=self.recompute,
        )
        if min(self.prefetch, self.residual, self.whole_layers) < 0 or self.slices < 1 or not 0.0 < self.bits <= 1.0:
            raise InputError(
                "cache: prefetch, residual and whole_layers are at least 0, slices at least 1, bits above 0 to 1"
            )
        if self.slots is not None and self.slots < 1:
            raise InputError("cache: slots is at least 1")
        if self.gpu not in (0.0, 1.0) and self.attend == "gpu" and self.read < 1.0:
            raise InputError("cache: a selection needs the cache whole on one tier")


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts.

    Attributes:
        gpu, ram: shares in GPU memory (a cache) and in host memory; the rest is on disk.
        selective: only experts that tokens need are moved; otherwise all of a layer, as if it were dense.
        policy: what the cache throws out, one of `stowplan.routing.caches.POLICIES`; ``uniform`` for an arbitrary fixed
            set, which holds its share of what is asked.
        shallow: first layers whose experts all stay on the GPU, out of the same room.
        accuracy: share of the missed experts that a predictor names in time; 0 for none.
        lookahead: layers by which the predictor is ahead of the router.
        miss: who serves a miss: ``load`` copies it, ``cpu`` computes it where it lies, ``both`` divides the misses of a
            layer so that copying and computing end together.
        low: share of the misses that are served by a smaller copy; `low_stored` its bytes per byte of the full one;
            `low_gpu` the share of the smaller copies that are on the GPU.
        stored, unpack: as for `Weights`.
        pinned: whether host memory is page-locked.
        returned: whether every expert that comes pushes one out, which is copied back behind it.
        deferred: share of the CPU's work of a layer that may end while the next layer's attention runs.
    """

    gpu: float = 1.0
    ram: float = 0.0
    selective: bool = True
    policy: str = "uniform"
    shallow: int = 0
    accuracy: float = 0.0
    lookahead: int = 1
    miss: Literal["load", "cpu", "both"] = "load"
    low: float = 0.0
    low_stored: float = 1.0
    low_gpu: float = 0.0
    stored: float = 1.0
    unpack: float | None = None
    pinned: bool = True
    returned: bool = False
    deferred: float = 0.0

    def __post_init__(self) -> None:
        _shares(
            "experts",
            gpu=self.gpu,
            ram=self.ram,
            together=_sum(self.gpu, self.ram),
            accuracy=self.accuracy,
            low=self.low,
            low_gpu=self.low_gpu,
            deferred=self.deferred,
        )
        if self.policy != "uniform" and self.policy not in POLICIES:
            raise InputError(f"experts: policy '{self.policy}' is not uniform or one of {', '.join(POLICIES)}")
        if self.shallow < 0 or self.lookahead < 1 or not 0.0 < self.low_stored <= 1.0 or not 0.0 < self.stored <= 1.0:
            raise InputError("experts: shallow is at least 0, lookahead at least 1, stored and low_stored above 0 to 1")

    @property
    def disk(self) -> float:
        """Share on disk."""
        return max(0.0, 1.0 - self.gpu - self.ram)


@dataclass(frozen=True, slots=True)
class Overheads:
    """Time of a system's own code that no resource of the machine explains; seconds.

    Attributes:
        step: once per pass through the model.
        layer: once per layer and pass.
        expert: once per expert that a layer of a pass handles.
        hop: once each time that work passes between GPU and CPU.
    """

    step: float = 0.0
    layer: float = 0.0
    expert: float = 0.0
    hop: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that a system decides.

    Attributes:
        weights, cache, experts: see there.
        overheads: see there.
        device: ``gpu``, or ``cpu`` for a system that computes everything on the host.
        batches: GPU batches that share one pass over the weights (a block schedule); the workload's batch is divided.
        chunk: prompt tokens of a sequence in one pass; None for the whole prompt.
        slack: share of GPU memory that a plan leaves free for the allocator, for one byte too many is a cliff.
        one_thread: whether one thread launches the GPU's work and does the CPU's, so that they take turns.
    """

    weights: Weights = field(default_factory=Weights)
    cache: Cache = field(default_factory=Cache)
    experts: Experts = field(default_factory=Experts)
    overheads: Overheads = field(default_factory=Overheads)
    device: Literal["gpu", "cpu"] = "gpu"
    batches: int = 1
    chunk: int | None = None
    slack: float = 0.02
    one_thread: bool = False

    def __post_init__(self) -> None:
        if self.batches < 1 or (self.chunk is not None and self.chunk < 1) or not 0.0 <= self.slack < 1.0:
            raise InputError("policy: batches and chunk are at least 1, slack from 0 to below 1")
