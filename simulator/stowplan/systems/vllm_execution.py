"""How vLLM runs a step: the kernels of one GPU of the group one after another, and the host's own work.

All GPUs of a tensor-parallel group do the same at the same time, so one of them and the all-reduces between them give
the step. A step of captured-graph size is padded to the next captured size. Weights that were left in host memory are
read by the kernels through the bus, once per step; a kernel takes as long as the slower of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stowplan.errors import NotExpressible
from stowplan.kernel_forms import KernelForms, forms_for
from stowplan.models.model import Layer
from stowplan.ops import Part, Step, distinct_experts
from stowplan.plan import Workload
from stowplan.systems.base import LayerClass, Setup, classify
from stowplan.systems.serial import ChainTask, Price, prompt_chunks
from stowplan.systems.vllm_kernels import (
    BETWEEN_LAYERS,
    Kernel,
    chunk_attention_s,
    decode_attention_s,
    layer_kernels,
    output_kernels,
)
from stowplan.systems.vllm_memory import LayerWeights, layer_weights
from stowplan.systems.vllm_settings import VllmSettings
from stowplan.work import Work

_PARTS_OF = {
    "gate and up": (Part.FFN_GATE, Part.FFN_UP),
    "down": (Part.FFN_DOWN,),
    "experts": (Part.EXPERT_GATE, Part.EXPERT_UP, Part.EXPERT_DOWN),
    "shared gate and up": (Part.SHARED,),
    "shared down": (Part.SHARED,),
}


@dataclass(frozen=True, slots=True)
class _Alike:
    """Layers of one class whose weights lie in the same places."""

    members: LayerClass
    kernels: tuple[Kernel, ...]
    offloaded: frozenset[Part]
    count: int


class VllmRun:
    """vLLM on one setup.

    Args:
        setup: model, machine and figures.
        settings: the engine's own.

    Attributes:
        setup, settings: as given.
        forms: kernel times of the group's GPUs.
        rates: amount per second of every resource.

    Raises:
        NotExpressible: more GPUs than the machine has, unlike ones, heads that do not divide, or layers and formats
            whose kernels are not known.
    """

    def __init__(self, setup: Setup, settings: VllmSettings) -> None:
        machine, gpus = setup.machine, settings.tensor_parallel
        if gpus > len(machine.gpus):
            raise NotExpressible(
                f"vLLM: --tensor-parallel-size {gpus} needs {gpus} GPUs, but {machine.name} has {len(machine.gpus)}"
            )
        if len({gpu.key for gpu in machine.gpus[:gpus]}) > 1:
            raise NotExpressible("vLLM: the GPUs of a tensor-parallel group must be alike")
        self.setup, self.settings = setup, settings
        self.forms: KernelForms = forms_for(machine.gpus[0])
        value = setup.figures.value
        self._kernel_time = value("vllm.kernel_time")
        self._step, self._sequence = value("vllm.host.step"), value("vllm.host.sequence")
        self._prompt, self._prompt_token = value("vllm.host.prompt"), value("vllm.host.prompt_token")
        self.rates: Mapping[str, float] = {
            "gpu0.compute": 1.0,
            "gpu0.hbm": value("gpu0.hbm"),
            "gpu0.h2d": value("gpu0.h2d.pinned"),
            "host.dram": value("host.dram"),
            **({"peer": value("peer")} if gpus > 1 else {}),
        }
        self.classes = classify(setup.model)
        self.weights = tuple(layer_weights(setup.model, settings))
        self.alike = tuple(self._alike())
        self._output = output_kernels(setup.model, gpus)

    def _alike(self) -> Iterator[_Alike]:
        hidden, gpus = self.setup.model.hidden, self.settings.tensor_parallel
        for members in self.classes:
            counts: dict[frozenset[Part], int] = {}
            for index in members.indices:
                offloaded = self.weights[index].offloaded
                counts[offloaded] = counts.get(offloaded, 0) + 1
            kernels = tuple(layer_kernels(members.layer, hidden, gpus))
            for offloaded, count in counts.items():
                yield _Alike(members, kernels, offloaded, count)

    def padded(self, tokens: int) -> int:
        """Tokens that a step of `tokens` tokens computes."""
        return next((size for size in self.settings.graph_sizes if size >= tokens), tokens)

    def _kernel(self, kernel: Kernel, tokens: float, offloaded: frozenset[Part], layer: Layer | None) -> ChainTask:
        """A kernel as a task: its measured time on the GPU, and bytes through the bus where its weights are away."""
        gpus = self.settings.tensor_parallel
        seconds = self._kernel_time * kernel.seconds(self.forms, tokens, gpus)
        resource, kind = ("peer", "copy") if kernel.kind == "all_reduce" else (self._limit(kernel, tokens), "compute")
        amounts = {resource: seconds * self.rates[resource]}
        parts = _PARTS_OF.get(kernel.name, (Part.MIXER,))
        if kernel.weight_bytes and any(part in offloaded for part in parts):
            size = kernel.weight_bytes * _touched(layer, kernel, tokens)
            amounts |= {"gpu0.h2d": size, "host.dram": size * gpus}
        return ChainTask(kernel.name, Work(amounts), "gpu0", kind)

    def _limit(self, kernel: Kernel, tokens: float) -> str:
        """What bounds a kernel by its arithmetic intensity: the matrix units or memory."""
        if kernel.kind == "elementwise" or not kernel.weight_bytes:
            return "gpu0.hbm"
        peak = self.forms.flops.get("bf16", self.forms.flops.get("fp16", 1.0))
        flops = 2.0 * tokens * kernel.n * kernel.k * (3.0 * kernel.experts[1] if kernel.experts[0] else 1.0)
        moved = kernel.weight_bytes + BETWEEN_LAYERS * tokens * (kernel.n + kernel.k)
        return "gpu0.compute" if flops / peak > moved / self.forms.bandwidth else "gpu0.hbm"

    def body(self, tokens: int) -> Price:
        """Everything of a step that depends on its tokens alone, all layers together."""
        count = float(self.padded(tokens))
        return Price.total(
            (Price.of((self._kernel(k, count, a.offloaded, a.members.layer) for k in a.kernels), self.rates), a.count)
            for a in self.alike
        )

    def logits(self, rows: int) -> Price:
        """Logits and sampling of `rows` sequences, with the host's work for each."""
        if rows == 0:
            return Price(0.0, {})
        kernels = [self._kernel(kernel, float(rows), frozenset(), None) for kernel in self._output]
        return Price.of([*kernels, _host("sampling and output", self._sequence * rows)], self.rates)

    def host_s(self, prompts: int, prompt_tokens: int) -> float:
        """Seconds of the host's work that the GPU waits for in a step with new prompts of so many tokens."""
        return self._step + self._prompt * prompts + self._prompt_token * prompt_tokens

    @property
    def attention_floor(self) -> Price:
        """Attention of next to nothing, all layers: one launch serves all sequences of a step."""
        seconds = sum(a.count * self._floor(a.members.layer) for a in self.alike)
        return Price(seconds, {"gpu0.hbm": seconds})

    def decode_attention(self, batch: float, context: float) -> Price:
        """Attention above the floor of `batch` decoding sequences with a mean of `context` cached tokens."""
        seconds = sum(
            a.count * max(0.0, self._decode(a.members.layer, batch, context) - self._floor(a.members.layer))
            for a in self.alike
        )
        return Price(seconds, {"gpu0.hbm": seconds})

    def chunk_attention(self, tokens: float, past: float) -> Price:
        """Attention above the floor of a prompt chunk, all layers."""
        seconds = sum(a.count * self.layer_chunk(a.members.layer, tokens, past) for a in self.alike)
        return Price(seconds, {"gpu0.compute": seconds})

    def layer_chunk(self, layer: Layer, tokens: float, past: float) -> float:
        """Seconds above the floor of one layer's attention of a prompt chunk."""
        settings = self.settings
        seconds = self._kernel_time * chunk_attention_s(
            self.forms, layer, settings.tensor_parallel, tokens, past, settings.cache
        )
        return max(0.0, seconds - self._floor(layer))

    def _floor(self, layer: Layer) -> float:
        return self._decode(layer, 1.0, 1.0)

    def _decode(self, layer: Layer, batch: float, context: float) -> float:
        settings = self.settings
        return self._kernel_time * decode_attention_s(
            self.forms, layer, settings.tensor_parallel, batch, context, settings.cache
        )

    def step(self, step: Step) -> Price:
        """A uniform step: one token for each sequence, or a prompt chunk of each."""
        host = Price.of([self._scheduling(step)], self.rates)
        parts = [(part, 1.0) for part in (self.body(step.tokens), self.logits(step.logits), host)]
        return Price.total([*parts, *self._step_attention(step)])

    def _scheduling(self, step: Step) -> ChainTask:
        prompts = step.sequences if step.new > 1 else 0
        return _host("scheduling", self.host_s(prompts, step.tokens if prompts else 0))

    def _step_attention(self, step: Step) -> list[tuple[Price, float]]:
        parts = [(self.attention_floor, 1.0)]
        for past, count in step.groups:
            if step.new == 1:
                parts.append((self.decode_attention(float(count), float(past + 1)), 1.0))
            else:
                parts.append((self.chunk_attention(float(step.new), float(past)), float(count)))
        return parts

    def chain(self, step: Step) -> list[ChainTask]:
        """Tasks of a uniform step in order."""
        chain = [self._scheduling(step)]
        tokens = float(self.padded(step.tokens))
        attention = Price.total(self._step_attention(step)).seconds / len(self.weights)
        for index, weights in enumerate(self.weights):
            alike = self._class_of(weights)
            resource = "gpu0.hbm" if step.new == 1 else "gpu0.compute"
            for kernel in alike.kernels:
                if kernel.name == "attention out":
                    work = Work({resource: attention * self.rates[resource]})
                    chain.append(ChainTask(f"layer {index} attention", work, "gpu0", "compute"))
                task = self._kernel(kernel, tokens, weights.offloaded, weights.layer)
                chain.append(ChainTask(f"layer {index} {task.name}", task.work, task.stream, task.kind))
        chain += [self._kernel(kernel, float(step.logits), frozenset(), None) for kernel in self._output]
        return [*chain, _host("sampling and output", self._sequence * step.logits)]

    def _class_of(self, weights: LayerWeights) -> _Alike:
        return next(
            a for a in self.alike if weights.layer.index in a.members.indices and a.offloaded == weights.offloaded
        )

    def decode_step(self, workload: Workload) -> Step:
        """One decode step at the workload's mean context."""
        return Step.decode(workload.batch, workload.decode_context)

    def prefill_steps(self, workload: Workload) -> list[Step]:
        """Steps of the prompts of the whole batch."""
        return prompt_chunks(workload, self.settings.max_num_batched_tokens)


def _host(name: str, seconds: float) -> ChainTask:
    return ChainTask(name, Work({}, seconds), "host", "compute")


def _touched(layer: Layer | None, kernel: Kernel, tokens: float) -> float:
    """Share of a kernel's weights that a step of `tokens` tokens reads."""
    if layer is None or layer.experts is None or kernel.kind != "moe":
        return 1.0
    total, active = layer.experts.total, layer.experts.active
    return distinct_experts(total, active, tokens) / total
