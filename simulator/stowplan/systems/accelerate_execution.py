"""How Accelerate runs a device map: synchronous copies of whole modules, eager operators, layers in sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stowplan.errors import NotExpressible
from stowplan.kernels import CpuKernels, GpuKernels
from stowplan.models.model import Layer, Role
from stowplan.ops import (
    CacheFormat,
    Kind,
    Operator,
    Part,
    Step,
    embedding_operator,
    ffn_operators,
    mixer_operators,
    output_operator,
    part_of,
)
from stowplan.plan import MemoryUse, Plan, Workload
from stowplan.systems.base import DISK, RAM, LayerClass, Setup
from stowplan.systems.serial import ChainTask, LayerPlaces, SerialRun
from stowplan.work import Work

DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}


class AccelerateSettings(BaseModel):
    """Settings of an Accelerate plan.

    Attributes:
        main: number of the GPU that computes offloaded modules: the first one of the map; -1 for a map without a GPU,
            where the CPU computes everything.
        threads: threads that compute on the CPU; None for one per physical core.
        pin_memory: whether weights in host memory are page-locked; Accelerate does not do it by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    main: Annotated[int, Field(ge=-1, le=63)] = 0
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    pin_memory: bool = False


def settings_of(plan: Plan) -> AccelerateSettings:
    """Settings that a plan holds.

    Raises:
        NotExpressible: an unknown setting or a wrong type.
    """
    try:
        return AccelerateSettings.model_validate(plan.settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotExpressible(f"plan: settings.{field}: {first['msg']}") from error


_MARGIN = 512.0 * 2**20


class AccelerateRun(SerialRun):
    """Accelerate's behaviour on one setup.

    Args:
        setup, workload, settings: what runs, what is asked, and how.
        embedding: place of the embedding.

    Raises:
        NotExpressible: no such GPU, or weights in a format that PyTorch does not compute with.
    """

    def __init__(self, setup: Setup, workload: Workload, settings: AccelerateSettings, embedding: str = "gpu0") -> None:
        super().__init__(setup, workload)
        machine, figures, quant = setup.machine, setup.figures, setup.model.quant
        if quant not in DTYPES:
            raise NotExpressible(f"Accelerate loads fp16, bf16 or fp32 weights, not {quant}; take --quant f16")
        if settings.main >= len(machine.gpus):
            raise NotExpressible(
                f"the map computes on GPU {settings.main}, but {machine.key} has {len(machine.gpus)}; give a "
                "device map of cpu and disk only to compute on the CPU"
            )
        self.settings, self.embedding = settings, embedding
        self.main = RAM if settings.main < 0 else f"gpu{settings.main}"
        self.threads = min(settings.threads or machine.cores, machine.cores)
        self._cpu = CpuKernels.build(figures, "accelerate", machine.cpu.isa, self.threads)
        self._kernels = {kind: figures.value(f"accelerate.gpu.kernels.{kind.value}") for kind in Kind}
        self._gpus = [GpuKernels.build(figures, i, "accelerate", gpu.vendor) for i, gpu in enumerate(machine.gpus)]
        if quant == "f32":
            share = figures.value("accelerate.gpu.gemm_share") / 0.5  # fp32 products come nearer to their lower peak
            self._gpus = [
                replace(gpu, gemm=dict.fromkeys(gpu.gemm, min(1.0, share) * figures.value(f"{gpu.name}.peak.fp32")))
                for gpu in self._gpus
            ]
        element = 4.0 if quant == "f32" else 2.0
        self.element, self.cache = element, CacheFormat(element, element)
        self._tensor_copy = figures.value("accelerate.tensor_copy")
        self._loads = Work({}, figures.value("accelerate.cpu.tensor_load"))
        self._disk_missed = True
        self.rates = self._resource_rates()

    def _resource_rates(self) -> dict[str, float]:
        value, machine = self.setup.figures.value, self.setup.machine
        memory = "pinned" if self.settings.pin_memory else "pageable"
        rates = {"host.dram": value("host.dram"), "host.cores": float(self.threads)}
        for i in range(len(machine.gpus)):
            rates |= {f"gpu{i}.compute": 1.0, f"gpu{i}.hbm": value(f"gpu{i}.hbm")}
            rates |= {f"gpu{i}.h2d": value(f"gpu{i}.h2d.{memory}")}
        if len(machine.gpus) > 1:
            rates["peer"] = value("peer")
        if machine.disks:
            rates["disk.read"] = value("disk.read")
        return rates

    @property
    def chunk(self) -> int:
        """Prompts are processed whole, all sequences together."""
        return max(1, self.workload.prompt * self.workload.batch)

    @property
    def homes(self) -> list[str]:
        """Devices in the order that ``device_map="auto"`` fills them."""
        gpus = [] if self.main == RAM else [f"gpu{i}" for i in self.setup.gpus]
        return [*gpus, RAM, *([DISK] if self.setup.machine.disks else [])]

    @property
    def outputs(self) -> list[str]:
        """The output matrix computes on the map's main device."""
        return [self.main]

    @property
    def output_follows(self) -> bool:
        """The output's device is chosen apart from the layers'."""
        return False

    @property
    def embedding_place(self) -> str:
        """Where the token embedding lives."""
        return self.embedding

    @property
    def margin(self) -> float:
        """Bytes of every GPU's memory that a plan leaves to the allocator's fragmentation."""
        return _MARGIN

    def kv_bytes(self, layer: Layer) -> float:
        """Bytes of one layer's cache or state for the whole batch."""
        return self.cache.sequence_bytes(layer, self.workload.capacity) * self.workload.batch

    def executor(self, place: str) -> str:
        """The device that computes a module: its own GPU, else the map's main device."""
        return place if place.startswith("gpu") else self.main

    def patterns(self, members: LayerClass) -> list[LayerPlaces]:
        """The whole layer on each GPU, in host memory, or on disk where there is one."""
        return [self.layer_at(members.layer, place) for place in self.homes]

    def layer_at(self, layer: Layer, place: str) -> LayerPlaces:
        """Places of a layer's parts when the layer is on one device; its cache is where it computes."""
        ffn = sorted({part_of(tensor) for tensor in layer.tensors} - {Part.MIXER})
        return LayerPlaces(place, self.executor(place), tuple((part, place) for part in ffn))

    def layer_chain(self, layer: Layer, places: LayerPlaces, step: Step) -> list[ChainTask]:
        """Weights to the GPU where the layer is offloaded, then its operators."""
        gpu, prefix = self.executor(places.mixer), f"layer {layer.index} "
        size = float(sum(tensor.bytes for tensor in layer.tensors))
        chain = self._fetch(places.mixer, gpu, size, len(layer.tensors), prefix)
        for op in (*mixer_operators(layer, step, self.cache), *ffn_operators(layer, step.tokens)):
            chain.append(self._compute(gpu, op, prefix))
        return chain

    def _fetch(self, place: str, gpu: str, size: float, tensors: int, prefix: str) -> list[ChainTask]:
        """Synchronous copies of a module's tensors; disk is read front to back, with read-ahead."""
        if place == gpu:
            return []
        chain: list[ChainTask] = []
        if place == DISK and self._disk_missed:
            work = Work({"disk.read": size, "host.dram": size})
            chain.append(ChainTask(f"{prefix}pages", work, "disk", "disk"))
        if gpu == RAM:  # a checkpoint's tensors are mapped by the thread that waits for them
            value = self.setup.figures.value
            busy = size / (value("accelerate.cpu.reload") * value("host.clock"))
            alone = Work({"host.cores": busy * self.threads})
            return [*chain, ChainTask(f"{prefix}weights", alone + self._loads * tensors, "host copy", "copy")]
        work = Work({f"{gpu}.h2d": size, "host.dram": size}, self._tensor_copy * tensors)
        return [*chain, ChainTask(f"{prefix}weights", work, f"{gpu} copy", "copy")]

    def _compute(self, gpu: str, op: Operator, prefix: str) -> ChainTask:
        if gpu == RAM:
            work = Work(self._cpu.work(op).amounts, self._cpu.operator_gap * self._kernels[op.kind])
            return ChainTask(f"{prefix}{op.name}", work, "host", "compute")
        work = self._gpus[int(gpu.removeprefix("gpu"))].work(op)
        return ChainTask(f"{prefix}{op.name}", work, gpu, "compute")

    def boundary(self, source: str, target: str, step: Step) -> list[ChainTask]:
        """Copy of the hidden states to the next layer's GPU."""
        before = self.executor(self.embedding) if source == RAM and target == self.embedding else self.executor(source)
        after = self.executor(target)
        if before == after:
            return []
        size = self.element * step.tokens * self.setup.model.hidden
        latency = self.setup.figures.value("accelerate.boundary")
        return [ChainTask("hidden states", Work({"peer": size}, latency), f"{after} copy", "copy")]

    def head(self, step: Step) -> list[ChainTask]:
        """The embedding, where it lives or brought to the GPU as a whole."""
        gpu = self.executor(self.embedding)
        tables = [t for t in self.setup.model.globals if t.role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)]
        size = float(sum(table.bytes for table in tables))
        chain = self._fetch(self.embedding, gpu, size, len(tables), "embedding ")
        return [*chain, self._compute(gpu, embedding_operator(self.setup.model, step), "")]

    def tail(self, output: str, step: Step) -> list[ChainTask]:
        """Logits where the output lives or is brought to, then the generation loop's own time."""
        if step.logits == 0:
            return []
        op = output_operator(self.setup.model, step)
        gpu = self.executor(output)
        chain = self._fetch(output, gpu, op.weight_bytes, 1, "output ")
        loop = ChainTask("sample", Work({}, self.setup.figures.value("accelerate.step")), "host", "compute")
        return [*chain, self._compute(gpu, op, ""), loop]

    def memory(self, layers: Sequence[LayerPlaces], embedding: str, output: str) -> dict[str, MemoryUse]:
        """Weights, cache, activations, buffers of offloaded modules and runtime of every tier."""
        model, machine, value = self.setup.model, self.setup.machine, self.setup.figures.value
        tiers = [*(f"gpu{i}" for i in self.setup.gpus), RAM, DISK]
        parts: dict[str, dict[str, float]] = {tier: {} for tier in tiers}
        buffers = dict.fromkeys(parts, 0.0)
        for layer, places in zip(model.layers, layers, strict=True):
            size, gpu = float(sum(tensor.bytes for tensor in layer.tensors)), self.executor(places.mixer)
            _add(parts[places.mixer], "weights", size)
            _add(parts[gpu], "cache", self.kv_bytes(layer))
            if places.mixer != gpu:
                buffers[gpu] = max(buffers[gpu], size)
            buffers[RAM] = max(buffers[RAM], size if places.mixer == DISK else 0.0)
        for tensor in model.globals:
            table = tensor.role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)
            place = embedding if table else output
            _add(parts[place], "weights", float(tensor.bytes))
            gpu = self.executor(place)
            if place != gpu:
                buffers[gpu] = max(buffers[gpu], float(tensor.bytes))
        computing = {self.executor(place) for place in (embedding, output, *(p.mixer for p in layers))}
        for gpu in sorted(computing):
            _add(parts[gpu], "buffers", (0.0 if gpu == RAM else buffers[gpu]) + self._activations())
            if gpu != RAM:
                _add(parts[gpu], "runtime", value("accelerate.gpu.runtime"))
        _add(parts[RAM], "buffers", buffers[RAM])
        _add(parts[RAM], "system", machine.reserved.value)
        capacities = {f"gpu{i}": gpu.memory.value for i, gpu in enumerate(machine.gpus)}
        capacities |= {RAM: machine.memory.capacity.value}
        capacities |= {DISK: machine.disks[0].capacity.value if machine.disks else 0.0}
        return {
            name: MemoryUse(used=sum(parts[name].values()), capacity=capacity, parts=parts[name])
            for name, capacity in capacities.items()
            if capacity or parts[name]
        }

    def _activations(self) -> float:
        """Bytes of the widest set of live activations of a whole prompt."""
        tokens = max(1, self.workload.prompt) * self.workload.batch
        widest = max(t.rows for layer in self.setup.model.layers for t in layer.tensors if t.columns > 1)
        return self.element * tokens * (2 * widest + 4 * self.setup.model.hidden)

    def overflow(self, memory: Mapping[str, MemoryUse], layers: Sequence[LayerPlaces]) -> None:  # noqa: ARG002
        """Modules on disk stay in the page cache if what host memory has left holds all of them.

        They are read in the same order at every step, and such a scan over more than fits hits nothing.
        """
        on_disk = memory[DISK].parts.get("weights", 0.0) if DISK in memory else 0.0
        missed = on_disk > memory[RAM].capacity - memory[RAM].used
        if missed != self._disk_missed:
            self._disk_missed = missed
            self._prices.clear()


def _add(parts: dict[str, float], name: str, size: float) -> None:
    if size:
        parts[name] = parts.get(name, 0.0) + size
