"""llama.cpp's behaviour on one setup: what each placement of a layer costs, holds and copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from stowplan.errors import DoesNotFit
from stowplan.figures import Figures
from stowplan.kernels import CpuKernels, GpuKernels, Layout, one_core_copies
from stowplan.machines.machine import Machine
from stowplan.models.model import EXPERT_ROLES, Layer, Role
from stowplan.ops import (
    EXPERT_PARTS,
    FFN_PARTS,
    Kind,
    Operator,
    Part,
    Step,
    embedding_operator,
    output_operator,
    part_of,
)
from stowplan.plan import MemoryUse, Workload
from stowplan.systems.base import RAM, LayerClass, Setup
from stowplan.systems.llama_cpp_attention import attention_kernel, generation, shared_heads, without_window
from stowplan.systems.llama_cpp_copies import Copies
from stowplan.systems.llama_cpp_launches import graph_gap
from stowplan.systems.llama_cpp_memory import LlamaCppMemory
from stowplan.systems.llama_cpp_nodes import Reach
from stowplan.systems.llama_cpp_offload import (
    TILE_QUERIES,
    copied_from,
    cpu_layout,
    dequantises,
    mixers_copied_from,
    tiles_attention,
)
from stowplan.systems.llama_cpp_operators import EngineOperators, experts_of
from stowplan.systems.llama_cpp_routed import routed_run
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import ChainTask, LayerPlaces, SerialRun
from stowplan.units import format_bytes
from stowplan.work import Work

_FP32 = 4.0
_DESKTOP_CHANNELS = 2
_CONVERSIONS = 2.0  # launches that a product takes more where its weights become 16-bit numbers first


class LlamaCppRun(SerialRun):
    """llama.cpp's behaviour on one setup under one group of settings."""

    def __init__(self, setup: Setup, workload: Workload, settings: LlamaCppSettings) -> None:
        super().__init__(setup, workload)
        self.settings = settings
        machine, figures = setup.machine, setup.figures
        self.cache = settings.cache
        self.operators = EngineOperators.build(setup.model, settings, figures)
        self.rules = LlamaCppMemory(setup.model, workload, settings, self.cache)
        self.reach = Reach.of(machine, settings, figures)
        self.threads = min(settings.threads or self.reach.cores, self.reach.cores)
        self.threads_batch = min(settings.threads_batch or self.threads, self.reach.cores)
        self.cores_batch = _busy_cores(settings.threads_batch or settings.threads or self.threads, self.reach.cores)
        self._gpus = [GpuKernels.build(figures, i, "llama.cpp", gpu.vendor) for i, gpu in enumerate(machine.gpus)]
        self._generations = [generation(gpu) for gpu in machine.gpus]
        self._graph_gaps = [graph_gap(settings, gpu, figures) for gpu in machine.gpus]
        stalls = 1.0 if _is_server(machine) else 0.0
        remote = figures.value("llama.cpp.cpu.remote")
        self._cpu, self._cpu_batch = (
            CpuKernels.build(
                figures,
                "llama.cpp",
                machine.cpu.isa,
                threads * self.reach.barrier(remote),
                stalls=stalls * self.reach.waiting(remote),
            )
            for threads in (self.threads, self.threads_batch)
        )
        self._copies = Copies.build(settings, machine, figures)
        self._mixers_copied_from = mixers_copied_from(settings, [members.layer for members in self.classes])
        self._expert_gap = figures.value("llama.cpp.gpu.expert_gap")
        self._expert_miss = self._dense_miss = 0.0
        self.rates = self._resource_rates()

    def _resource_rates(self) -> dict[str, float]:
        value, machine = self.setup.figures.value, self.setup.machine
        reached = value("llama.cpp.cpu.dram_share")
        rates = {"host.dram": value("host.dram") * reached * self.reach.memory, "host.cores": float(self.threads)}
        if self.reach.crossing:
            rates["host.link"] = value("host.link") * reached
        for i, gpu in enumerate(machine.gpus):
            rates |= {f"gpu{i}.compute": 1.0, f"gpu{i}.hbm": value(f"gpu{i}.hbm")}
            if not gpu.unified:
                rates |= {f"gpu{i}.{way}": value(f"gpu{i}.{way}.pinned") for way in ("h2d", "d2h")}
                rates["host.copier"] = one_core_copies(self.setup.figures, "llama.cpp", machine.cpu.isa)
        if len(machine.gpus) > 1:
            rates["peer"] = value("peer")
        if machine.disks:
            rates["disk.faults"] = value("disk.faults")
        return rates

    @property
    def chunk(self) -> int:
        """Tokens of one micro-batch."""
        return self.settings.chunk

    @property
    def margin(self) -> float:
        """Bytes of every GPU's memory that a plan leaves free; unified memory has its own share."""
        return 0.0 if self.unified else float(self.settings.margin)

    def spill_seconds_per_byte(self, decode: float, prefill: float) -> float | None:
        """A spilled byte of experts is read back in proportion to the experts in use; of dense weights, always.

        A lower bound: `overflow` charges dense weights all of their bytes once any of them spills.
        """
        if self.settings.load_mode != "mmap" or not self.setup.machine.disks:
            return None
        experts = {layer.experts for layer in self.setup.model.layers if layer.experts}

        def touched(tokens: int) -> float:
            counts = [(each.total, each.active) for each in experts]
            shares = [self.operators.touched(each, tokens) / each[0] for each in counts]
            return min(shares, default=1.0)

        steps = self.prefill_steps if prefill else []
        read = decode * touched(self.workload.batch) + prefill * sum(touched(step.tokens) for step in steps)
        return read / self.rates["disk.faults"]

    def kv_bytes(self, layer: Layer) -> float:
        """Bytes of one layer's cache or state."""
        return self.rules.kv_bytes(layer)

    def patterns(self, members: LayerClass) -> list[LayerPlaces]:
        """Mixer on each GPU or the CPU; each feed-forward matrix at home or on the CPU; cache by the KV setting.

        With more than two GPUs the matrices of a layer stay together: what finer splits gain is less than one layer on
        each GPU, and they would multiply the programme.
        """
        parts = {part_of(tensor) for tensor in members.layer.tensors}
        free = [part for part in (*FFN_PARTS, *EXPERT_PARTS) if part in parts]
        found = [self._pattern(RAM, parts, dict.fromkeys(free, RAM))]
        for i in self.setup.gpus:
            home = f"gpu{i}"
            together = [(place,) * len(free) for place in (home, RAM)]
            choices = product((home, RAM), repeat=len(free)) if len(self.setup.gpus) <= 2 else together
            found += [self._pattern(home, parts, dict(zip(free, choice, strict=True))) for choice in choices]
        return found

    def _pattern(self, home: str, parts: set[Part], ffn: dict[Part, str]) -> LayerPlaces:
        if Part.SHARED in parts:
            ffn[Part.SHARED] = home
        return LayerPlaces(home, home if self.settings.kv_offload else RAM, tuple(sorted(ffn.items())))

    def attention_changes_at(self, layers: Sequence[LayerPlaces]) -> int:
        """See `SerialRun`: layers in host memory work on the GPU, or the CPU takes many queries at a time."""
        moves = self._mixers_copied_from
        if any(self.works_at(places.mixer, Step.prefill(1 << 30)) != places.mixer for places in layers):
            return int(moves)
        on_cpu = any(RAM in (places.mixer, places.kv) for places in layers)
        return TILE_QUERIES if on_cpu and tiles_attention(self.settings, TILE_QUERIES) else 0

    def works_at(self, home: str, step: Step) -> str:
        """A layer in host memory works on the first GPU while its products are copied there.

        The scheduler gives operators without weights, attention among them, the device of the product that follows
        (``ggml_backend_sched_split_graph`` of both engines), unless the cache is to stay with the CPU (``-nkvo``).
        """
        if home != RAM or not self._gpus or self.unified or not self.settings.kv_offload:
            return home
        return "gpu0" if step.tokens >= self._mixers_copied_from else RAM

    def layer_chain(self, layer: Layer, places: LayerPlaces, step: Step) -> list[ChainTask]:
        """Operators in order, each where its weights or cache are (or copied to a GPU), with the copies between."""
        chain: list[ChainTask] = []
        home = here = self.works_at(places.mixer, step)
        prefix = f"blk.{layer.index}."
        captured = step.tokens == 1 and RAM not in (places.mixer, places.kv, *(place for _, place in places.ffn))
        computed = layer if places.kv == RAM else without_window(self.settings, layer)
        for op in self.operators.of(computed, step):
            place = places.place(op.part) if op.part is not None else home
            if op.part is Part.KV and home != places.mixer:
                chain += self._copies.cache(home, op, prefix)
                place = home
            where, streamed = self._executor(op, place, home, step, layer)
            size = self._input_bytes(op, step)
            chain += self._copies.activations(here, where, size, f"{prefix}{op.name} input", step)
            if streamed:
                overridden = places.mixer != RAM
                chain.append(self._copies.weights(where, op, experts_of(op, layer), prefix, overridden=overridden))
            chain += self._compute(where, op, prefix, step, layer, faulted=place == RAM, captured=captured)
            here = where
        return chain + self._residual(here, home, f"{prefix}residual", step)

    def _executor(self, op: Operator, place: str, home: str, step: Step, layer: Layer) -> tuple[str, bool]:
        """Where an operator runs, and whether its weights are copied there first."""
        if place != RAM or op.kind is not Kind.MATMUL or not self._gpus or self.unified:
            return place, False
        if step.tokens < copied_from(self.settings, op.format, experts_of(op, layer), op.part):
            return RAM, False
        return (home if home != RAM else "gpu0"), True

    def _input_bytes(self, op: Operator, step: Step) -> float:
        if op.kind is not Kind.MATMUL:
            return op.activation_bytes
        rows = op.m * op.matrices if op.part is Part.EXPERT_DOWN else step.tokens
        return _FP32 * rows * op.k

    def _compute(
        self,
        where: str,
        op: Operator,
        prefix: str,
        step: Step,
        layer: Layer | None = None,
        *,
        faulted: bool,
        captured: bool = False,
    ) -> list[ChainTask]:
        chain: list[ChainTask] = []
        miss = self._expert_miss if op.part in EXPERT_PARTS else self._dense_miss
        if faulted and miss and op.weight_bytes:
            work = Work({"disk.faults": miss * op.weight_bytes})
            chain.append(ChainTask(f"{prefix}{op.name} pages", work, "disk", "disk"))
        if where == RAM:
            works = self._on_cores(op, step)
            chain += [ChainTask(f"{prefix}{op.name}", work, "host", "compute") for work in works]
            return chain
        gpu = int(where.removeprefix("gpu"))
        kernel, shared = None, None
        if layer is not None and op.kind is Kind.ATTENTION:
            kernel = attention_kernel(self.settings, self._generations[gpu], layer, op, step.sequences)
            shared = shared_heads(self.settings, layer, op)
        dequantise = op.kind is Kind.MATMUL and dequantises(self.settings, op.format, op.m)
        gap = self._graph_gaps[gpu] if captured else None
        routed = routed_run(self.settings, self.setup.machine.gpus[gpu], op, step.tokens, self.setup.figures)
        work = self._gpus[gpu].work(op, dequantise=dequantise, attention=kernel, shared=shared, routed=routed, gap=gap)
        if routed is not None and not routed.tile:
            work += Work({}, self._expert_gap * op.matrices)
        chain.append(ChainTask(f"{prefix}{op.name}", work, where, "compute"))
        return chain

    def _on_cores(self, op: Operator, step: Step) -> list[Work]:
        """Work of an operator on the CPU; the resource counts the cores of a decode of one sequence."""
        decode = step.tokens == 1
        layout = cpu_layout(self.settings, op.format, op.m) if op.kind is Kind.MATMUL else Layout.PLAIN
        tiled = op.kind is Kind.ATTENTION and tiles_attention(self.settings, op.m)
        found = (self._cpu if decode else self._cpu_batch).in_passes(op, layout, tiled=tiled)
        shares = 1.0 if decode else self.threads / self.cores_batch
        return [self._reached(work, op if k == 0 else None, shares) for k, work in enumerate(found)]

    def _reached(self, work: Work, fetched: Operator | None, shares: float) -> Work:
        """Work with its cores in those of a decode, and with what `fetched` weights cross between sockets."""
        changed: dict[str, float] = {}
        if shares != 1.0:
            changed["host.cores"] = work.amounts.get("host.cores", 0.0) * shares
        if fetched is not None and self.reach.crossing and fetched.weight_bytes:
            changed["host.link"] = self.reach.crossing * fetched.weight_bytes
        return Work({**work.amounts, **changed}, work.overhead_s) if changed else work

    def overlap(self, layers: Sequence[LayerPlaces], output: str) -> float:
        """Time of the prompt over the sum of its micro-batches, see `_overlap`.

        The engine pipelines when every layer and the output are on GPUs and nothing is overridden.
        """
        homes = [places.mixer for places in layers]
        if len(set(homes)) < 2 or any(place != places.mixer for places in layers for _, place in places.ffn):
            return 1.0
        if RAM in (*homes, output) or not self.settings.kv_offload or self.workload.prompt == 0:
            return 1.0
        steps = self.prefill_steps
        busiest = max(sorted(set(homes)), key=homes.count)
        launches = sum(
            count * self._launches(self.classes[index].layer, steps[0])
            for (index, places), count in self.distinct(layers).items()
            if places.mixer == busiest
        )
        chunks = min(len(steps), -(-max(self.settings.batch, self.chunk) // self.chunk))
        return _overlap(self.setup.figures, homes.count(busiest) / len(homes), chunks, launches)

    def _launches(self, layer: Layer, step: Step) -> float:
        """Kernels of one layer of a prompt on a GPU."""
        kernels = dict(self._gpus[0].kernels)
        return sum(
            kernels[op.kind]
            + (_CONVERSIONS if op.kind is Kind.MATMUL and dequantises(self.settings, op.format, op.m) else 0.0)
            for op in self.operators.of(layer, step)
        )

    def boundary(self, source: str, target: str, step: Step) -> list[ChainTask]:
        """Copy of the residual stream when the next layer works elsewhere."""
        return self._residual(source, target, "residual", step)

    def _residual(self, source: str, target: str, name: str, step: Step) -> list[ChainTask]:
        return self._copies.activations(source, target, _FP32 * step.tokens * self.setup.model.hidden, name, step)

    def head(self, step: Step) -> list[ChainTask]:
        """The embedding is looked up by the CPU."""
        return self._compute(RAM, embedding_operator(self.setup.model, step), "", step, faulted=False)

    def tail(self, output: str, step: Step) -> list[ChainTask]:
        """Logits where the output matrix lives, copied to the host and sampled there."""
        if step.logits == 0:
            return []
        op = output_operator(self.setup.model, step)
        chain = self._compute(output, op, "", step, faulted=output == RAM)
        logits = _FP32 * step.logits * op.n
        step_overhead = self.setup.figures.value("llama.cpp.step")
        sample = ChainTask("sample", Work({"host.dram": logits}, step_overhead), "host", "compute")
        return [*chain, *self._copies.activations(output, RAM, logits, "logits", step), sample]

    def memory(self, layers: Sequence[LayerPlaces], embedding: str, output: str) -> dict[str, MemoryUse]:
        """Weights, cache, compute buffers and runtime of every tier."""
        model, machine = self.setup.model, self.setup.machine
        parts = {name: dict[str, float]() for name in (RAM, *(f"gpu{i}" for i in self.setup.gpus))}
        for (index, places), count in self.distinct(layers).items():
            layer = self.classes[index].layer
            kv = self.kv_bytes(layer)
            _add(parts[places.kv], "cache", kv * count)
            for place, size in self.layer_bytes(layer, places).items():
                _add(parts[place], "weights", (size - (kv if place == places.kv else 0.0)) * count)
        for tensor in model.globals:
            table = tensor.role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)
            _add(parts[embedding if table else output], "weights", float(tensor.bytes))
            if model.tied and tensor.role is Role.TOKEN_EMBEDDING and output != embedding:
                _add(parts[output], "weights", float(tensor.bytes))
        pairs = [(self.classes[index].layer, places) for index, places in self.distinct(layers)]
        buffers = self.rules.compute_buffers(pairs, embedding, output, len(machine.gpus))
        _add(parts[RAM], "buffers", buffers[RAM])
        _add(parts[RAM], "system", machine.reserved.value)
        for i, gpu in enumerate(machine.gpus):
            name = f"gpu{i}"
            _add(parts[name], "buffers", buffers[name])
            if not gpu.unified:
                _add(parts[name], "runtime", self.setup.figures.value("llama.cpp.gpu.runtime"))
        return self._uses(parts)

    def _uses(self, parts: Mapping[str, dict[str, float]]) -> dict[str, MemoryUse]:
        machine = self.setup.machine
        uses: dict[str, MemoryUse] = {}
        for i, gpu in enumerate(machine.gpus):
            name = f"gpu{i}"
            share = gpu.unified_share.value if gpu.unified_share is not None else 1.0
            capacity = machine.memory.capacity.value * share if gpu.unified else gpu.memory.value
            uses[name] = MemoryUse(used=sum(parts[name].values()), capacity=capacity, parts=parts[name])
        host = dict(parts[RAM])
        if self.unified:
            _add(host, "gpu", sum(parts["gpu0"].values()))
        capacity = machine.memory.capacity.value / (machine.nodes if self.settings.numactl == "bind" else 1)
        uses[RAM] = MemoryUse(used=sum(host.values()), capacity=capacity, parts=host)
        return uses

    def overflow(self, memory: Mapping[str, MemoryUse], layers: Sequence[LayerPlaces]) -> None:
        """Pages that the page cache cannot keep are read again: experts by their share, dense weights all of them.

        A cyclic scan over more than fits defeats a least-recently-used cache; uniformly routed experts hit it in
        proportion. Dense weights are touched every step, so they stay while experts give way.
        """
        excess = memory[RAM].used - memory[RAM].capacity
        if excess <= 0:
            misses = (0.0, 0.0)
        else:
            if self.settings.load_mode != "mmap" or not self.setup.machine.disks:
                mend = "memory-map the file (-lm mmap)" if self.setup.machine.disks else "name a disk and use -lm mmap"
                raise DoesNotFit(f"host memory lacks {format_bytes(excess)}; {mend} or take a smaller format", excess)
            experts = self._expert_bytes_in_ram(layers)
            misses = (min(1.0, excess / experts) if experts else 0.0, 1.0 if excess > experts else 0.0)
        if misses != (self._expert_miss, self._dense_miss):
            self._expert_miss, self._dense_miss = misses
            self._prices.clear()

    def _expert_bytes_in_ram(self, layers: Sequence[LayerPlaces]) -> float:
        return sum(
            float(tensor.bytes)
            for layer, places in zip(self.setup.model.layers, layers, strict=True)
            for tensor in layer.tensors
            if tensor.role in EXPERT_ROLES and places.place(part_of(tensor)) == RAM
        )


def _is_server(machine: Machine) -> bool:
    """Whether many channels lie behind a server's mesh; those of memory that is soldered next to the chip do not."""
    return machine.cpu.memory_channels > _DESKTOP_CHANNELS and not machine.memory.key.startswith("lpddr")


def _busy_cores(threads: int, cores: int) -> float:
    """Cores that equal shares of a product keep busy: two threads on a core have half of it each, and all wait."""
    return float(threads) if threads <= cores else min(threads / 2.0, float(cores))


def _overlap(figures: Figures, share: float, chunks: int, launches: float) -> float:
    """Time of a prompt over the sum of its micro-batches.

    With a share s of the layers on the busiest GPU, K micro-batches take ``1 + (K - 1) s`` times one of them, and reach
    part of that. But the host launches a micro-batch on one GPU after another and waits where a GPU's queue is full.
    Where only a share q of the launches for one GPU fits, it is through when the last GPU, which starts after
    ``1 - s``, has done all but those: the next micro-batch starts after ``1 - s q``.

    Args:
        figures: the engine's constants.
        share: layers on the busiest GPU over all.
        chunks: micro-batches of one batch.
        launches: kernels of one micro-batch on the busiest GPU.
    """
    fits = min(1.0, figures.value("llama.cpp.launch_queue") / launches)
    later = share if fits == 1.0 else max(share, 1.0 - share * fits)
    ideal = (1.0 + (chunks - 1) * later) / chunks
    return 1.0 - figures.value("llama.cpp.pipelining") * (1.0 - ideal)


def _add(parts: dict[str, float], name: str, size: float) -> None:
    if size:
        parts[name] = parts.get(name, 0.0) + size
