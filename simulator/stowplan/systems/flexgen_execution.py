"""FlexGen's execution: the block schedule, iteration by iteration.

The device is synchronised after every iteration (see `flexgen_schedule`), so a step is exactly the sum of its
iterations, and few of them differ. During an iteration the weights of the next unit come in (with the first GPU batch
only), the cache of the next GPU batch comes in, and results of the previous one leave.

What the main thread does itself (copying pageable memory to a page-locked buffer, attention on the CPU) delays the
launch of the computation; copies by the GPU and the disk threads run beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

from stowplan.engine import GraphBuilder, blame, simulate
from stowplan.engine.graph import Graph
from stowplan.errors import NotExpressible
from stowplan.kernels import GpuKernels
from stowplan.models.model import Layer
from stowplan.ops import (
    CacheFormat,
    Kind,
    Operator,
    Step,
    embedding_operator,
    ffn_operators,
    mixer_operators,
    output_operator,
)
from stowplan.plan import Workload
from stowplan.systems.base import DISK, RAM, Setup
from stowplan.systems.flexgen_policy import (
    GPU,
    HALF,
    FlexgenSettings,
    cache_shares,
    hidden_tier,
    homes,
)
from stowplan.systems.flexgen_schedule import Slot, Unit, layer_list, slots_of
from stowplan.systems.serial import Price
from stowplan.work import Work

STORE, CPU_ATTENTION = "host.store", "host.attention"
_RELAY_PATH, _DISK_PATH = "relay path", "disk path"


@dataclass(frozen=True, slots=True)
class Job:
    """One task of an iteration.

    Attributes:
        name, work, stream, kind: as in `stowplan.engine.graph.Task`.
        after: positions in the iteration's list of the jobs that it waits for.
        chain: whether it is on the iteration's chain of launches: main thread, GPU, main thread, GPU.
        path: another chain that it is on: copies to a page-locked buffer, or reads from disk, and the last copy that
            waits for all of them.
    """

    name: str
    work: Work
    stream: str
    kind: str
    after: tuple[int, ...] = ()
    chain: bool = False
    path: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where things are: percentages that the weights are rounded from, shares of the cache, tier of hidden states.

    The planner asks for corners (all of the cache on one tier) because every time is affine in the shares; `split` says
    that a cache on the GPU is one part of several, which the GPU then attends to even where the CPU has the rest.
    """

    weights: tuple[int, int]
    cache: Mapping[str, float]
    hidden: str
    split: bool

    @staticmethod
    def of(settings: FlexgenSettings) -> Placement:
        """Placement that FlexGen realises for some settings."""
        shares = cache_shares(settings)
        return Placement(settings.percent[:2], shares, hidden_tier(settings), len(shares) > 1)


class FlexgenRun:
    """FlexGen's behaviour on one setup.

    Raises:
        NotExpressible: no GPU, or a batch that is not a whole block.
    """

    def __init__(self, setup: Setup, workload: Workload, settings: FlexgenSettings) -> None:
        if not setup.machine.gpus:
            raise NotExpressible("FlexGen needs a GPU; choose a machine that has one")
        if workload.batch != settings.batch:
            raise NotExpressible(
                f"the workload has {workload.batch} sequences, but FlexGen's block has {settings.gpu_batch_size} x "
                f"{settings.num_gpu_batches} = {settings.batch}; make them equal"
            )
        self.setup, self.workload, self.settings = setup, workload, settings
        figures = setup.figures
        self.kernels = GpuKernels.build(figures, 0, "flexgen", setup.machine.gpus[0].vendor)
        unit_clock = figures.get_value("gpu0.unit_clock") or figures.value("gpu0.hbm") / 4.5
        self.codec_rate = figures.value("flexgen.gpu.codec_per_unit_clock") * unit_clock
        self.rates = {
            "gpu0.compute": 1.0,
            "gpu0.hbm": figures.value("gpu0.hbm"),
            "gpu0.h2d": figures.value("gpu0.h2d.pinned"),
            "gpu0.d2h": figures.value("gpu0.d2h.pageable"),
            "host.dram": figures.value("host.dram"),
            STORE: figures.value("flexgen.store_share") * figures.value("host.dram"),
            CPU_ATTENTION: figures.value("flexgen.cpu_attention_rate"),
        }
        if setup.machine.disks:
            self.rates |= {name: figures.value(name) for name in ("disk.read", "disk.write")}
        self.units, self.sequence = layer_list(setup.model, settings.sep_layer)

    def reshaped(self, settings: FlexgenSettings) -> FlexgenRun:
        """The same run with another block shape or place of attention; the switch ``sep_layer`` stays."""
        other = copy(self)
        other.settings = settings
        other.workload = self.workload.model_copy(update={"batch": settings.batch})
        return other

    def slots(self) -> Counter[Slot]:
        """Iterations of one step with their multiplicities."""
        return slots_of(self.sequence, self.settings.num_gpu_batches)

    def decode_step(self, context: int) -> Step:
        """One decode step of one GPU batch."""
        return Step.decode(self.settings.gpu_batch_size, context)

    @property
    def prefill_step(self) -> Step:
        """The prompts of one GPU batch; FlexGen makes logits for every position."""
        size, prompt = self.settings.gpu_batch_size, self.workload.prompt
        return Step(prompt, ((self.workload.depth, size),), size * prompt)

    def jobs(self, slot: Slot, step: Step, placement: Placement) -> list[Job]:
        """Tasks of an iteration in the order in which the main thread issues them."""
        overlap, decode = self.settings.overlap, step.new == 1
        unit = self.units[slot.unit]
        jobs: list[Job] = []
        if slot.first:
            self._load_weights(jobs, self.units[slot.after if overlap else slot.unit], placement)
        cache_of = self.units[slot.after if overlap and slot.last else slot.unit]
        if decode and cache_of.attends and cache_of.layer is not None:
            self._load_cache(jobs, cache_of.layer, step, placement)
        load = self._move_hidden(jobs, step, placement, into_gpu=True)
        self._compute(jobs, unit, step, placement, load if self.settings.num_gpu_batches == 1 else ())
        computed = (len(jobs) - 1,)
        store_of = self.units[slot.before if overlap and slot.first else slot.unit]
        if store_of.attends and store_of.layer is not None:
            self._store_cache(jobs, store_of.layer, step, placement)
        self._move_hidden(
            jobs,
            step,
            placement,
            into_gpu=False,
            after=computed if self.settings.num_gpu_batches == 1 else (),
        )
        if not overlap:
            jobs = [replace(job, after=(n - 1,) if n else (), chain=True) for n, job in enumerate(jobs)]
        return jobs

    def _load_weights(self, jobs: list[Job], unit: Unit, placement: Placement) -> None:
        compress = self.settings.compress_weight
        for group in unit.groups:
            for piece, home in zip(group.pieces, homes(group, *placement.weights), strict=True):
                if home != GPU:
                    size = piece.size(compress)
                    self._to_gpu(jobs, f"{group.kind} weights", size, home, "weights", pinned=self.settings.pin_weight)

    def weight_lanes(self, slot: Slot, weights: tuple[int, int]) -> dict[str, float]:
        """The part of an iteration's lanes that loading weights adds."""
        jobs: list[Job] = []
        if slot.first:
            unit = self.units[slot.after if self.settings.overlap else slot.unit]
            self._load_weights(jobs, unit, Placement(weights, {GPU: 1.0}, GPU, split=False))
        return self.lanes(jobs if self.settings.overlap else [replace(job, chain=True) for job in jobs])

    def _to_gpu(self, jobs: list[Job], name: str, size: float, home: str, stream: str, *, pinned: bool) -> None:
        """Copy to the GPU from host memory, through a page-locked buffer where need be, or from disk."""
        after: tuple[int, ...] = ()
        if home == DISK:
            after = self._append(
                jobs, f"{name} read", {"disk.read": size, "host.dram": size}, "disk", "disk", path=_DISK_PATH
            )
        elif not pinned:
            work = {"host.dram": size * self.setup.figures.value("flexgen.relay_traffic")}
            after = self._append(jobs, f"{name} relay", work, "host", "copy", chain=True, path=_RELAY_PATH)
        self._append(jobs, name, {"gpu0.h2d": size, "host.dram": size}, f"h2d {stream}", "copy", after=after)

    def _append(
        self,
        jobs: list[Job],
        name: str,
        amounts: Mapping[str, float],
        stream: str,
        kind: str,
        *,
        after: tuple[int, ...] = (),
        chain: bool = False,
        path: str = "",
        overhead: float = 0.0,
    ) -> tuple[int, ...]:
        if "disk.read" in amounts or "disk.write" in amounts:
            self._require_disk()
        if chain:
            after += tuple(n for n, job in enumerate(jobs) if job.chain)[-1:]
        jobs.append(Job(name, Work(amounts, overhead), stream, kind, after, chain, path))
        return (len(jobs) - 1,)

    def _require_disk(self) -> None:
        if not self.setup.machine.disks:
            raise NotExpressible("--percent leaves a rest for the disk, but the machine has none; add one to --on")

    def _cache_read(self, layer: Layer, step: Step) -> float:
        """Uncompressed cache bytes that the attention of one GPU batch reads."""
        return sum(op.kv_read for op in mixer_operators(layer, step, CacheFormat()))

    def _load_cache(self, jobs: list[Job], layer: Layer, step: Step, placement: Placement) -> None:
        """Cache of one GPU batch: to the GPU, or to the workspace that the CPU attends from."""
        size = self._cache_read(layer, step) * self.settings.cache_bytes / HALF
        for tier, share in placement.cache.items():
            part = size * share
            if self.settings.cpu_cache_compute:
                if tier == DISK:
                    self._append(jobs, "cache read", {"disk.read": part, "host.dram": part}, "disk", "disk")
                elif tier == GPU and not placement.split:
                    self._append(
                        jobs,
                        "cache to host",
                        {"gpu0.d2h": part, "host.dram": part},
                        "d2h",
                        "copy",
                        chain=True,
                    )
            elif tier != GPU:
                for half in ("keys", "values"):
                    self._to_gpu(jobs, half, part / 2, tier, "cache", pinned=False)
                jobs[-1] = replace(jobs[-1], path=_DISK_PATH if tier == DISK else _RELAY_PATH)

    def _move_hidden(
        self,
        jobs: list[Job],
        step: Step,
        placement: Placement,
        *,
        into_gpu: bool,
        after: tuple[int, ...] = (),
    ) -> tuple[int, ...]:
        """Hidden states between their tier and the GPU; returns the last job, nothing where they stay on the GPU."""
        if placement.hidden == GPU:
            return ()
        size, name = HALF * step.tokens * self.setup.model.hidden, "hidden states"
        if into_gpu:
            if placement.hidden == DISK:
                after = self._append(jobs, f"{name} read", {"disk.read": size}, "disk", "disk", after=after)
            return self._append(jobs, name, {"gpu0.h2d": size, "host.dram": size}, "h2d cache", "copy", after=after)
        after = self._append(jobs, name, {"gpu0.d2h": size, "host.dram": size}, "d2h", "copy", after=after)
        if placement.hidden == DISK:
            after = self._append(jobs, f"{name} write", {"disk.write": size}, "disk write", "disk", after=after)
        return after

    def _store_cache(self, jobs: list[Job], layer: Layer, step: Step, placement: Placement) -> None:
        """New keys and values of one GPU batch to their tiers; those of a prompt go through the copy threads."""
        written = sum(op.kv_write for op in mixer_operators(layer, step, CacheFormat()))
        size = written * self.settings.cache_bytes / HALF
        if self.settings.compress_cache:
            self._append(
                jobs,
                "compress cache",
                {"gpu0.compute": written / self.codec_rate},
                "gpu0",
                "compute",
                chain=True,
            )
        for tier, share in placement.cache.items():
            part = size * share
            if tier == GPU:
                continue
            out = {"gpu0.d2h": part, "host.dram": part}
            if step.new > 1 and tier == RAM:
                out[STORE] = part
            last = self._append(jobs, "new cache", out, "d2h", "copy")
            if tier == DISK:
                self._append(jobs, "new cache write", {"disk.write": part}, "disk write", "disk", after=last)

    def _compute(self, jobs: list[Job], unit: Unit, step: Step, placement: Placement, wait: tuple[int, ...]) -> None:
        """The unit's operators on the GPU, attention on the CPU in between where it is done there."""
        overhead = self.setup.figures.value("flexgen.sync")
        before, attention, after = self._operators(unit, step)
        on_cpu = self._cpu_share(placement) if step.new == 1 else 0.0
        first = self._gpu_work(before) + self._decompress_weights(unit)
        if attention is not None:
            whole = self.kernels.work(attention)
            first += Work(whole.amounts) * (1.0 - on_cpu) + Work({}, whole.overhead_s)
            if self.settings.compress_cache and step.new == 1:
                first += Work({"gpu0.compute": attention.kv_read / self.codec_rate})
        first = first + Work({}, overhead)
        self._append(
            jobs, "compute", first.amounts, "gpu0", "compute", after=wait, chain=True, overhead=first.overhead_s
        )
        if attention is not None and on_cpu:
            traffic = self.setup.figures.value("flexgen.cpu_attention_traffic")
            size = attention.kv_read * on_cpu
            work = {"host.dram": traffic * size, CPU_ATTENTION: size}
            self._append(jobs, "attention", work, "host", "compute", chain=True)
        if after:
            rest = self._gpu_work(after)
            self._append(jobs, "compute", rest.amounts, "gpu0", "compute", chain=True, overhead=rest.overhead_s)

    def _cpu_share(self, placement: Placement) -> float:
        """Share of a decode step's attention that the CPU does."""
        if not self.settings.cpu_cache_compute:
            return 0.0
        return sum(share for tier, share in placement.cache.items() if tier != GPU or not placement.split)

    def _gpu_work(self, operators: list[Operator]) -> Work:
        work = Work.zero
        for op in operators:
            work += self.kernels.work(op)
        return work

    def _decompress_weights(self, unit: Unit) -> Work:
        """Every GPU batch unpacks the matrices anew."""
        if not self.settings.compress_weight:
            return Work.zero
        elements = sum(piece.elements for group in unit.groups for piece in group.pieces if piece.matrix)
        return Work({"gpu0.compute": HALF * elements / self.codec_rate})

    def _operators(self, unit: Unit, step: Step) -> tuple[list[Operator], Operator | None, list[Operator]]:
        """Operators before attention, attention, and operators after it, with fp16 weights."""
        kinds = {group.kind for group in unit.groups}
        model = self.setup.model
        if unit.layer is None:
            op = embedding_operator(model, step) if "input" in kinds else output_operator(model, step)
            return [_half(op)], None, []
        mixer = mixer_operators(unit.layer, step, CacheFormat()) if "attention" in kinds else ()
        found: list[Operator] = [_half(op) for op in mixer]
        place = next((n for n, op in enumerate(found) if op.kind is not Kind.MATMUL), None)
        tail = [_half(op) for op in ffn_operators(unit.layer, step.tokens)] if "mlp" in kinds else []
        if place is None:
            return tail, None, []
        return found[:place], found[place], found[place + 1 :] + tail

    def lanes(self, jobs: list[Job]) -> dict[str, float]:
        """Seconds that an iteration needs of each chain and resource; no schedule beats any of them."""
        seconds: dict[str, float] = {}
        for job in jobs:
            for name in (["chain"] if job.chain else []) + ([job.path] if job.path else []):
                seconds[name] = seconds.get(name, 0.0) + job.work.alone_s(self.rates)
            for name, amount in job.work.amounts.items():
                seconds[name] = seconds.get(name, 0.0) + amount / self.rates[name]
        return seconds

    def bound(self, step: Step, placement: Placement) -> float:
        """Closed form: sum over iterations of the busiest lane; a lower bound of the simulated step."""
        return sum(
            count * max(self.lanes(self.jobs(slot, step, placement)).values(), default=0.0)
            for slot, count in self.slots().items()
        )

    def price(self, step: Step, placement: Placement) -> Price:
        """Simulated seconds of a step and what they go to."""
        priced = []
        for slot, count in self.slots().items():
            builder = GraphBuilder(self.rates)
            _emit(builder, self.jobs(slot, step, placement), (), "")
            run = simulate(builder.build())
            priced.append((Price(run.makespan, blame(run)), float(count)))
        return Price.total(priced)

    def graph(self, step: Step, placement: Placement) -> Graph:
        """Task graph of a whole step; iterations are separated by synchronisation."""
        builder = GraphBuilder(self.rates)
        batches, barrier = self.settings.num_gpu_batches, tuple[int, ...]()
        for position, unit in enumerate(self.sequence):
            after = self.sequence[(position + 1) % len(self.sequence)]
            for k in range(batches):
                slot = Slot(self.sequence[position - 1], unit, after, k == 0, k == batches - 1)
                barrier = _emit(builder, self.jobs(slot, step, placement), barrier, f"{position}.{k} ")
        return builder.build()


def _emit(builder: GraphBuilder, jobs: list[Job], barrier: tuple[int, ...], prefix: str) -> tuple[int, ...]:
    """Add an iteration that starts at a barrier; returns the barrier at its end."""
    indices: list[int] = []
    for job in jobs:
        after = (*(indices[n] for n in job.after), *barrier)
        indices.append(builder.add(prefix + job.name, job.work, stream=job.stream, after=after, kind=job.kind))
    return (builder.add(f"{prefix}synchronise", after=indices or barrier),)


def _half(op: Operator) -> Operator:
    """The operator with its weights in fp16, as PyTorch computes with them."""
    if op.kind not in (Kind.MATMUL, Kind.LOOKUP):
        return op
    weights = op.weights * HALF if op.kind is Kind.MATMUL else op.weight_bytes
    return replace(op, weight_bytes=weights, format="f16")
