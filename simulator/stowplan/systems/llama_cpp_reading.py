"""From llama.cpp's flags to a placement.

``-ngl N`` counts from the end of the model. Since December 2025 the output layer counts as the first of them; before,
and in ik_llama.cpp, only N > layers moves it. ``-ot`` moves weights only, the first pattern that matches a tensor wins,
and the cache stays with its layer. ``-ts`` divides the *number* of offloaded layers, not their bytes.
"""

from __future__ import annotations

import re
from collections import defaultdict

from stowplan.errors import InputError, NotExpressible
from stowplan.machines.machine import Machine
from stowplan.models.model import Layer, Model, Role
from stowplan.ops import Part, part_of
from stowplan.plan import Workload, checked_workload
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.llama_cpp_words import Flags
from stowplan.systems.serial import LayerPlaces
from stowplan.systems.tensor_pattern import TensorPattern

_STRAY = 0.01  # share of a part's bytes that may live elsewhere without a word


def settings_from(flags: Flags, margin: int) -> LlamaCppSettings:
    """The settings that flags state, with the engine's defaults for the rest."""
    return LlamaCppSettings.model_validate(
        {
            "engine": "ik_llama.cpp" if flags.ik else "llama.cpp",
            "release": "pre-2025-12" if flags.ik else "current",
            "ubatch": flags.ubatch,
            "batch": flags.batch,
            "threads": flags.threads,
            "threads_batch": flags.threads_batch,
            "cache_k": flags.cache_k,
            "cache_v": flags.cache_v,
            "flash_attention": flags.flash_attention is not False,
            "load_mode": flags.load_mode,
            "kv_offload": flags.kv_offload,
            "op_offload": flags.op_offload,
            "repacked": flags.repacked,
            "used_experts": flags.used_experts,
            "mla": flags.mla,
            "numa": flags.numa,
            "numactl": flags.numactl,
            "margin": margin,
        }
    )


def gpu_layers(layers: int, count: int, release: str) -> tuple[int, bool]:
    """Repeating layers on GPUs and whether the output is, for ``-ngl count``; -2 stands for all."""
    if count == -2:
        return layers, True
    if release == "current":
        return max(0, min(layers, count - 1)), count >= 1
    return min(layers, count), count > layers


def _devices(machine: Machine, on_gpu: int, output: bool, flags: Flags) -> list[str]:
    """Device of each offloaded layer in order, the output last when it is offloaded."""
    gpus, total, split = len(machine.gpus), on_gpu + output, flags.split
    if len(split) > gpus:
        raise InputError(f"-ts names {len(split)} GPUs and the machine has {gpus}")
    if flags.main_gpu >= gpus:
        raise InputError(f"-mg {flags.main_gpu}: the machine has {gpus} GPU(s), counted from 0")
    if flags.split_mode == "none":
        return [f"gpu{flags.main_gpu}"] * total
    shares = list(split) + [0.0] * (gpus - len(split)) if split else [gpu.memory.value for gpu in machine.gpus]
    cumulative, sums = 0.0, list[float]()
    for share in shares:
        cumulative += share
        sums.append(cumulative)
    return [
        f"gpu{next(g for g, bound in enumerate(sums) if bound / sums[-1] > index / total or g == gpus - 1)}"
        for index in range(total)
    ]


def _buffer_place(name: str, machine: Machine) -> str:
    if name.upper().startswith("CPU"):
        return RAM
    found = re.fullmatch(r"(CUDA|ROCm|Vulkan|SYCL|Metal|HIP|RPC)(\d{0,3})(\[.*\])?", name, re.IGNORECASE)
    if found is None:
        raise NotExpressible(
            f"-ot ...={name[:40]}: stowplan knows the buffers CPU, CUDA0, ROCm0, Vulkan0, SYCL0, RPC0 and Metal"
        )
    index = int(found[2] or 0)
    if index >= len(machine.gpus):
        raise InputError(f"-ot ...={name}: the machine has {len(machine.gpus)} GPU(s)")
    return f"gpu{index}"


class _Overrides:
    """First matching pattern of a tensor name."""

    def __init__(self, flags: Flags, machine: Machine) -> None:
        self._rules = [(TensorPattern(pattern), _buffer_place(place, machine)) for pattern, place in flags.overrides]
        self._hits = [0] * len(self._rules)
        self._shorthand = frozenset(flags.shorthands)
        self._asked = 0

    def place(self, tensor: str, default: str) -> str:
        """Place of a tensor; patterns behind the first match do not count as matched."""
        self._asked += 1
        for index, (pattern, place) in enumerate(self._rules):
            if pattern.search(tensor):
                self._hits[index] += 1
                return place
        return default

    def idle(self) -> list[str]:
        """Patterns that people wrote and that moved nothing."""
        pairs = zip(self._rules, self._hits, strict=True)
        return [pattern.text for (pattern, _), hits in pairs if not hits and pattern.text not in self._shorthand]

    def total(self) -> str | None:
        """A pattern that matched every tensor."""
        pairs = zip(self._rules, self._hits, strict=True)
        return next((pattern.text for (pattern, _), hits in pairs if hits and hits == self._asked), None)


def _layer_places(
    layer: Layer, home: str, overrides: _Overrides, warnings: list[str], *, kv_offload: bool
) -> LayerPlaces:
    held: dict[Part, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for tensor in layer.tensors:
        held[part_of(tensor)][overrides.place(tensor.name, home)] += tensor.bytes
    chosen: dict[Part, str] = {}
    for part, sizes in held.items():
        chosen[part] = max(sizes, key=lambda place: sizes[place])
        stray = sum(sizes.values()) - sizes[chosen[part]]
        if stray > _STRAY * sum(sizes.values()):
            warnings.append(
                f"layer {layer.index}: {part} is spread over {', '.join(sorted(sizes))}; priced on {chosen[part]}"
            )
    mixer = chosen.pop(Part.MIXER, home)
    if mixer != home:
        warnings.append(f"layer {layer.index}: attention weights are overridden to {mixer}, its cache stays on {home}")
    return LayerPlaces(mixer, home if kv_offload else RAM, tuple(sorted(chosen.items())))


def placement_from(
    flags: Flags, machine: Machine, model: Model, settings: LlamaCppSettings, count: int, *, strict: bool = False
) -> tuple[list[LayerPlaces], str]:
    """Places of every layer, and of the output matrix, for ``-ngl count`` and the flags' overrides.

    Warnings are appended to the flags.

    Raises:
        InputError: a device that is not there; with `strict`, a pattern that matches no tensor or every one.
    """
    layers = len(model.layers)
    on_gpu, output = gpu_layers(layers, count, settings.release) if machine.gpus else (0, False)
    devices = _devices(machine, on_gpu, output, flags) if machine.gpus else []
    homes = [RAM] * (layers - on_gpu) + devices[:on_gpu]
    overrides = _Overrides(flags, machine)
    warnings: list[str] = []
    placed = [
        _layer_places(layer, home, overrides, warnings, kv_offload=settings.kv_offload)
        for layer, home in zip(model.layers, homes, strict=True)
    ]
    for tensor in model.globals:
        if tensor.role is not Role.OUTPUT:
            overrides.place(tensor.name, RAM)
    output_name = "token_embd.weight" if model.tied else "output.weight"
    output_place = overrides.place(output_name, devices[-1] if output else RAM)
    if len(warnings) > 1:
        warnings = [f"{warnings[0]} (and {len(warnings) - 1} layers more)"]
    everything = overrides.total()
    if everything is not None:
        text = f"-ot '{everything}' matches every tensor of {model.name}; use -ngl 0 or -ngl all instead"
        if strict:
            raise InputError(text)
        warnings.append(text)
    for idle in overrides.idle():
        text = f"-ot '{idle}' matches no tensor of {model.name} that is not matched before: it moves nothing"
        if strict:
            raise InputError(f"{text}; correct it or leave it out")
        warnings.append(text)
    if flags.split_mode not in ("none", "layer") and len(machine.gpus) > 1:
        warnings.append(f"-sm {flags.split_mode} divides every layer over the GPUs; it is priced as -sm layer")
    flags.warnings.extend(warnings)
    return placed, output_place


def workload_from(flags: Flags, given: Workload) -> Workload:
    """Workload that a command measures; what it does not say comes from `given`."""
    update: dict[str, int | None] = {"batch": flags.parallel if not flags.bench else 1}
    if flags.prompt is not None:
        update["prompt"] = flags.prompt
    if flags.generate is not None:
        update["generate"] = flags.generate
    if flags.bench:
        prompt, generate = update.get("prompt", 512) or 0, update.get("generate", 128) or 0
        depth = flags.depth or 0
        update |= {"prompt": prompt, "generate": generate, "depth": depth, "decode_depth": depth}
        update["context"] = max(1, depth + max(prompt, generate))
    elif flags.context:
        update["context"] = max(1, flags.context // flags.parallel)
    return checked_workload(given.model_dump() | update)
