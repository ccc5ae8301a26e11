"""What the parts of a layer cost on a machine: operators through an engine's kernels, bytes through its links."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from stowplan.errors import NotExpressible
from stowplan.kernels import CpuKernels, GpuKernels
from stowplan.models.model import EXPERT_ROLES, Layer
from stowplan.ops import (
    EXPERT_PARTS,
    CacheFormat,
    Kind,
    Operator,
    Part,
    Step,
    distinct_experts,
    embedding_operator,
    ffn_operators,
    mixer_operators,
    output_operator,
)
from stowplan.systems.base import Setup
from stowplan.systems.mechanisms.policy import Policy
from stowplan.work import Work

GPU, H2D, D2H, DRAM, CORES = "gpu0", "gpu0.h2d", "gpu0.d2h", "host.dram", "host.cores"
READ, WRITE, FAULTS, STORAGE = "disk.read", "disk.write", "disk.faults", "storage.attention"
CPU_ATTENTION = "host.attention"
HALF = 2.0
_DESKTOP_CHANNELS = 2


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Operators of one layer in one pass of one GPU batch, by where in the layer they run.

    Attributes:
        before, attention, after: projections into the attention, the attention itself, everything behind it that
            routed experts wait for (output projection, router, dense matrices).
        beside: shared experts, which routed ones do not wait for.
        experts: products of routed experts, for the distinct experts that the pass touches.
        touched: distinct experts that the pass touches on average; 0 in a dense layer.
    """

    before: tuple[Operator, ...]
    attention: Operator
    after: tuple[Operator, ...]
    beside: tuple[Operator, ...]
    experts: tuple[Operator, ...]
    touched: float


@lru_cache(maxsize=1024)
def layer_parts(layer: Layer, step: Step) -> LayerParts:
    """Operators of a layer in a pass."""
    mixing = mixer_operators(layer, step, CacheFormat())
    middle = next(n for n, op in enumerate(mixing) if op.kind is not Kind.MATMUL)
    feeding = ffn_operators(layer, step.tokens)
    routed = tuple(op for op in feeding if op.part in EXPERT_PARTS)
    shared = tuple(op for op in feeding if op.part is Part.SHARED)
    rest = tuple(op for op in feeding if op.part not in (*EXPERT_PARTS, Part.SHARED))
    touched = 0.0
    if layer.experts is not None:
        touched = distinct_experts(layer.experts.total, layer.experts.active, step.tokens)
    return LayerParts(mixing[:middle], mixing[middle], (*mixing[middle + 1 :], *rest), shared, routed, touched)


def as_stored(parts: LayerParts, dense: float, routed: float) -> LayerParts:
    """Operators that read weights in a stored form of so many bytes per byte of the model's format."""
    if dense == routed == 1.0:
        return parts

    def smaller(operators: tuple[Operator, ...], stored: float) -> tuple[Operator, ...]:
        return tuple(replace(op, weight_bytes=op.weight_bytes * stored) for op in operators)

    return replace(
        parts,
        before=smaller(parts.before, dense),
        after=smaller(parts.after, dense),
        beside=smaller(parts.beside, dense),
        experts=smaller(parts.experts, routed),
    )


def dense_bytes(layer: Layer) -> float:
    """Stored bytes of a layer without its routed experts."""
    return float(sum(tensor.bytes for tensor in layer.tensors if tensor.role not in EXPERT_ROLES))


def expert_bytes(layer: Layer) -> float:
    """Stored bytes of all routed experts of a layer."""
    return float(sum(tensor.bytes for tensor in layer.tensors if tensor.role in EXPERT_ROLES))


class Pricing:
    """Kernels and rates of one engine on one machine.

    Args:
        setup: machine, model and figures; the figures may hold ``storage.attention``, the bytes/s that a computational
            drive attends to inside.
        engine: name of the engine whose kernel constants are used.
        policy: what is done; decides whether copies are pinned.

    Raises:
        NotExpressible: no GPU where the policy needs one, or a GPU without memory of its own.
    """

    def __init__(self, setup: Setup, engine: str, policy: Policy) -> None:
        self.setup, self.engine, self.policy = setup, engine, policy
        machine, figures = setup.machine, setup.figures
        self._unit_clock = 0.0
        if policy.device == "gpu":
            if not machine.gpus:
                raise NotExpressible("it computes on a GPU; choose a machine that has one")
            if machine.gpus[0].unified:
                raise NotExpressible(
                    f"it moves bytes between host and GPU memory, which are one on {machine.gpus[0].name}"
                )
            self.gpu = GpuKernels.build(figures, 0, engine, machine.gpus[0].vendor)
            if figures.get_value(f"{engine}.gpu.weight_only"):
                # Weights are restored to 16 bits inside the product, so its arithmetic is that of 16 bits.
                self.gpu = replace(self.gpu, gemm=dict.fromkeys(self.gpu.gemm, self.gpu.gemm["float"]))
        threads = machine.cores
        self._cpu: CpuKernels | None = None
        if f"{engine}.cpu.operator_gap" in figures:
            stalls = 1.0 if machine.cpu.memory_channels > _DESKTOP_CHANNELS else 0.0
            self._cpu = CpuKernels.build(figures, engine, machine.cpu.isa, threads, stalls=stalls)
        share = figures.get_value(f"{engine}.cpu.dram_share") or 1.0
        dram = figures.value("host.dram") * share
        cores = float(threads)
        if machine.sockets > 1:
            dram *= (figures.get_value(f"{engine}.cpu.sockets") or machine.sockets) / machine.sockets
            cores *= (figures.get_value(f"{engine}.cpu.sockets_cores") or machine.sockets) / machine.sockets
        self.rates: dict[str, float] = {DRAM: dram, CORES: cores}
        if policy.device == "gpu":
            kind = "pinned" if policy.weights.pinned else "pageable"
            # Where nobody states units and clock: bytes per unit and clock of current memory systems.
            self._unit_clock = figures.get_value("gpu0.unit_clock") or figures.value("gpu0.hbm") / 4.5
            self.rates |= {"gpu0.compute": 1.0, "gpu0.hbm": figures.value("gpu0.hbm")}
            self.rates |= {H2D: figures.value(f"gpu0.h2d.{kind}"), D2H: figures.value(f"gpu0.d2h.{kind}")}
        if machine.disks:
            self.rates |= {name: figures.value(name) for name in (READ, WRITE, FAULTS)}
        attended = figures.get_value(f"{engine}.cpu_attention_rate")
        if attended is not None:
            self.rates[CPU_ATTENTION] = attended
        internal = figures.get_value(STORAGE)
        if internal is not None:
            self.rates[STORAGE] = internal

    def on_gpu(self, operators: tuple[Operator, ...], share: float = 1.0) -> Work:
        """Work of a share of some operators on the GPU; every kernel is launched whatever its share."""
        total = Work.zero
        for op in operators:
            work = self.gpu.work(op)
            total = total + Work(work.amounts) * share + Work({}, work.overhead_s)
        return total

    def on_cpu(self, operators: tuple[Operator, ...], share: float = 1.0) -> Work:
        """Work of a share of some operators on the host's cores.

        Raises:
            NotExpressible: the engine has no kernels for them.
        """
        total = Work.zero
        if self._cpu is None:
            raise NotExpressible(f"{self.engine} computes nothing on the CPU")
        for op in operators:
            work = self._cpu.work(op)
            total = total + Work(work.amounts) * share + Work({}, work.overhead_s)
        return total

    def attend_on_cpu(self, op: Operator) -> Work:
        """Attention on the host: by an engine's own rate of it where one is known, else by its kernels.

        An engine may write a copy of the cache for every query head first; it passes over those so many times.
        """
        if CPU_ATTENTION not in self.rates:
            return self.on_cpu((op,))
        value = self.setup.figures.get_value
        passes = value(f"{self.engine}.cpu_attention_copies") if op.group > 1 else None
        read = op.kv_read * (1.0 if passes is None else passes * op.group)
        traffic = value(f"{self.engine}.cpu_attention_traffic") or 1.0
        return Work({DRAM: traffic * read, CPU_ATTENTION: read})

    def copy(self, size: float, resource: str = H2D, *, pinned: bool = True) -> Work:
        """Copy between host and GPU memory; a pageable one takes as much longer as the link then gives less."""
        kind = "pinned" if self.policy.weights.pinned else "pageable"
        direction = resource.split(".")[1]
        wanted = self.setup.figures.value(f"gpu0.{direction}.{'pinned' if pinned else 'pageable'}")
        given = self.setup.figures.value(f"gpu0.{direction}.{kind}")
        return Work({resource: size * given / wanted, DRAM: size})

    def read(self, size: float, *, mapped: bool = False) -> Work:
        """Read from disk into host memory.

        Raises:
            NotExpressible: no disk.
        """
        if READ not in self.rates:
            raise NotExpressible("part of it would be on disk, but the machine has none; add one to --on")
        return Work({FAULTS if mapped else READ: size, DRAM: size})

    def unpack(self, size: float, per_unit_clock: float | None) -> Work:
        """Restoring `size` bytes on the GPU from a stored form; nothing where no rate is given."""
        if per_unit_clock is None or not size:
            return Work.zero
        return Work({"gpu0.compute": size / (per_unit_clock * self._unit_clock), "gpu0.hbm": 2.0 * size})

    def rebuild(self, size: float) -> Work:
        """Bytes of fp16 keys and values from kept inputs: two FLOPs per input and element of every past token."""
        flops = size / HALF * 2.0 * self.setup.model.hidden
        return Work({"gpu0.compute": flops / self.gpu.gemm["float"]})

    def edges(self, step: Step) -> Work:
        """Embedding, logits and the system's own time of one pass."""
        operators = (embedding_operator(self.setup.model, step), output_operator(self.setup.model, step))
        own = Work({}, self.policy.overheads.step)
        return (self.on_gpu(operators) if self.policy.device == "gpu" else self.on_cpu(operators)) + own
