"""From llama.cpp's flags to a placement and back.

``-ngl N`` counts from the end of the model. Since December 2025 the output layer counts as the first of them; before,
and in ik_llama.cpp, only N > layers moves it. ``-ot`` moves weights only, the first pattern that matches a tensor wins,
and the cache stays with its layer. ``-ts`` divides the *number* of offloaded layers, not their bytes.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence

from stowplan.errors import InputError, NotExpressible
from stowplan.machines.machine import Machine
from stowplan.models.model import Layer, Model, Role
from stowplan.ops import EXPERT_PARTS, Part, part_of
from stowplan.plan import Plan, Workload, checked_workload, run_lengths
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_flags import Flags, check_pattern
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.number_pattern import number_pattern
from stowplan.systems.serial import LayerPlaces

_BUFFERS = {"nvidia": "CUDA", "amd": "ROCm", "apple": "Metal", "intel": "SYCL"}
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
            "cache_k": flags.cache_k,
            "cache_v": flags.cache_v,
            "flash_attention": flags.flash_attention,
            "load_mode": flags.load_mode,
            "kv_offload": flags.kv_offload,
            "op_offload": flags.op_offload,
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


def _devices(machine: Machine, on_gpu: int, output: bool, split: Sequence[float]) -> list[str]:
    """Device of each offloaded layer in order, the output last when it is offloaded."""
    gpus, total = len(machine.gpus), on_gpu + output
    if len(split) > gpus:
        raise InputError(f"-ts names {len(split)} GPUs and the machine has {gpus}")
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
    found = re.fullmatch(r"(CUDA|ROCm|Vulkan|SYCL|Metal|HIP)(\d*)", name, re.IGNORECASE)
    if found is None:
        raise NotExpressible(f"-ot ...={name}: stowplan knows the buffers CPU, CUDA0, ROCm0, Vulkan0, SYCL0 and Metal")
    index = int(found[2] or 0)
    if index >= len(machine.gpus):
        raise InputError(f"-ot ...={name}: the machine has {len(machine.gpus)} GPU(s)")
    return f"gpu{index}"


class _Overrides:
    """First matching pattern of a tensor name."""

    def __init__(self, flags: Flags, machine: Machine) -> None:
        self._rules = [(check_pattern(pattern), _buffer_place(place, machine)) for pattern, place in flags.overrides]
        self._texts = [pattern for pattern, _ in flags.overrides]
        self._hits = [0] * len(self._rules)

    def place(self, tensor: str, default: str) -> str:
        """Place of a tensor; patterns behind the first match do not count as matched."""
        for index, (pattern, place) in enumerate(self._rules):
            if pattern.search(tensor):
                self._hits[index] += 1
                return place
        return default

    def unmatched(self) -> list[str]:
        """Patterns that moved nothing."""
        return [text for text, hits in zip(self._texts, self._hits, strict=True) if not hits]


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
    flags: Flags, machine: Machine, model: Model, settings: LlamaCppSettings, count: int
) -> tuple[list[LayerPlaces], str]:
    """Places of every layer, and of the output matrix, for ``-ngl count`` and the flags' overrides.

    Warnings are appended to the flags.
    """
    layers = len(model.layers)
    on_gpu, output = gpu_layers(layers, count, settings.release) if machine.gpus else (0, False)
    devices = _devices(machine, on_gpu, output, flags.split)
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
    output_place = overrides.place("output.weight", devices[-1] if output else RAM)
    if len(warnings) > 1:
        warnings = [f"{warnings[0]} (and {len(warnings) - 1} layers more)"]
    unmatched = overrides.unmatched()
    if unmatched and len(unmatched) < len(flags.overrides) and all(text.startswith("blk\\.") for text in unmatched):
        unmatched = []  # a layer-wise shorthand counted past the layers that have such tensors
    for text in unmatched:
        warnings.append(f"-ot '{text}' matches no tensor of {model.name}: it moves nothing")
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


def make_plan(
    machine: Machine,
    model_reference: tuple[str, str | None],
    workload: Workload,
    settings: LlamaCppSettings,
    placement: tuple[Iterable[LayerPlaces], str],
) -> Plan:
    """A llama.cpp plan from its parts; `placement` is the layers' places and the output's."""
    layers, output = placement
    return Plan(
        system="llama.cpp",
        machine=machine.spec,
        set=machine.settings,
        model=model_reference[0],
        quant=model_reference[1],
        workload=workload,
        layers=run_lengths(places.as_mapping() for places in layers),
        embedding=RAM,
        output=output,
        settings=settings.model_dump(),
    )


def write_command(
    machine: Machine, model: Model, plan: Plan, settings: LlamaCppSettings, layers: Sequence[LayerPlaces]
) -> str:
    """The llama-server command of a placement.

    Raises:
        NotExpressible: a layer on the CPU follows one on a GPU, or GPUs do not hold consecutive runs of layers.
    """
    homes = [places.mixer for places in layers]
    if any(places.kv != (places.mixer if settings.kv_offload else RAM) for places in layers):
        raise NotExpressible("llama.cpp keeps the cache of a layer with the layer, or all of it in host memory")
    if plan.embedding != RAM:
        raise NotExpressible(f"llama.cpp keeps the token embedding in host memory, not on {plan.embedding}")
    on_cpu = next((index for index, home in enumerate(homes) if home != RAM), len(homes))
    if homes[on_cpu:] != sorted(homes[on_cpu:]) or RAM in homes[on_cpu:]:
        raise NotExpressible(
            "llama.cpp keeps the first layers on the CPU and gives each GPU a consecutive run of the rest"
        )
    words = ["llama-server", "-m", model_file(model, plan), "-c", str(plan.workload.capacity * plan.workload.batch)]
    if plan.workload.batch > 1:
        words += ["-np", str(plan.workload.batch)]
    output_on_gpu = plan.output != RAM
    on_gpu = len(homes) - on_cpu
    overrides: list[str] = []
    if on_gpu == len(homes):
        words += ["-ngl", "99" if len(homes) < 99 else str(len(homes) + 1)]
        counted_output = True
    else:
        counted_output = on_gpu > 0 if settings.release == "current" else False
        words += ["-ngl", str(on_gpu + 1 if counted_output else on_gpu)]
    if len(machine.gpus) > 1 and on_gpu:
        words += ["-sm", "layer", "-ts", ",".join(_split_counts(machine, homes[on_cpu:], plan.output, counted_output))]
    if counted_output and not output_on_gpu:
        overrides.append(r"^output\.weight$=CPU")
    elif output_on_gpu and not counted_output:
        overrides.append(rf"^output\.weight$={_buffer(machine, plan.output)}")
    overrides += _part_overrides(machine, model, layers)
    shorthand = _cpu_moe(model, layers)
    if shorthand is not None:
        words += shorthand
        overrides = [text for text in overrides if "exps" not in text]
    for text in overrides:
        words += ["-ot", text]
    words += _setting_words(machine, settings)
    return _wrap(words)


def model_file(model: Model, plan: Plan) -> str:
    """The file that the command names: the user's own, or the usual name of a published one."""
    if plan.model.endswith(".gguf"):
        return plan.model
    return f"{model.name.replace(' ', '-')}-{model.quant.upper()}.gguf"


def _split_counts(machine: Machine, homes: Sequence[str], output: str, counted_output: bool) -> list[str]:
    counts = [homes.count(f"gpu{i}") for i in range(len(machine.gpus))]
    if counted_output:
        counts[max(int(homes[-1].removeprefix("gpu")), 0)] += 1
    if counted_output and output not in (RAM, homes[-1]):
        raise NotExpressible(f"llama.cpp keeps the output matrix with the last layer, on {homes[-1]}, not on {output}")
    return [str(count) for count in counts]


def _buffer(machine: Machine, place: str) -> str:
    if place == RAM:
        return "CPU"
    index = int(place.removeprefix("gpu"))
    stem = _BUFFERS.get(machine.gpus[index].vendor, "Vulkan")
    return stem if stem == "Metal" else f"{stem}{index}"


def _part_overrides(machine: Machine, model: Model, layers: Sequence[LayerPlaces]) -> list[str]:
    """Anchored patterns, one per set of parts that share layers and target."""
    moved: dict[tuple[Part, str], list[int]] = defaultdict(list)
    for index, places in enumerate(layers):
        for part, place in places.ffn:
            if place != places.mixer:
                moved[part, place].append(index)
    together: dict[tuple[tuple[int, ...], str], list[Part]] = defaultdict(list)
    for (part, place), indices in moved.items():
        together[tuple(indices), place].append(part)
    texts = []
    for (where, place), parts in sorted(together.items()):
        stems = sorted({t.role.value for i in where for t in model.layers[i].tensors if part_of(t) in parts})
        names = stems[0] if len(stems) == 1 else f"({'|'.join(stems)})"
        texts.append(rf"^blk\.{number_pattern(where)}\.{names}\.weight$={_buffer(machine, place)}")
    return texts


def _cpu_moe(model: Model, layers: Sequence[LayerPlaces]) -> list[str] | None:
    """``--n-cpu-moe N`` when exactly the first N layers keep all their experts in host memory and none elsewhere."""
    routed = [index for index, layer in enumerate(model.layers) if layer.experts]
    states = {i: {place for part, place in layers[i].ffn if part in EXPERT_PARTS} for i in routed}
    on_cpu = [i for i in routed if states[i] == {RAM}]
    if not on_cpu or any(states[i] != {layers[i].mixer} for i in routed if i not in on_cpu):
        return None
    if on_cpu == routed:
        return ["--cpu-moe"]
    return ["--n-cpu-moe", str(on_cpu[-1] + 1)] if on_cpu == routed[: len(on_cpu)] else None


def _setting_words(machine: Machine, settings: LlamaCppSettings) -> list[str]:
    words = ["-fa", "on" if settings.flash_attention else "off"]
    if settings.cache_k != "f16" or settings.cache_v != "f16":
        words += ["-ctk", settings.cache_k, "-ctv", settings.cache_v]
    if not settings.kv_offload:
        words.append("--no-kv-offload")
    if not settings.op_offload:
        words.append("--no-op-offload")
    words += ["-b", str(settings.batch), "-ub", str(settings.ubatch), "-t", str(settings.threads or machine.cores)]
    if settings.engine == "ik_llama.cpp":
        return [*words, "-fmoe", *({"none": ["--no-mmap"], "mlock": ["--mlock"]}.get(settings.load_mode, []))]
    return [*words, "-lm", settings.load_mode, "--fit", "off"]


def _wrap(words: Sequence[str]) -> str:
    """Shell-quoted words, broken into lines of at most 110 characters with continuation marks."""
    lines, current = list[str](), ""
    for word in words:
        quoted = shlex.quote(word)
        if current and len(current) + len(quoted) > 108 and word.startswith("-"):
            lines.append(current)
            current = "    " + quoted
        else:
            current = f"{current} {quoted}" if current else quoted
    return " \\\n".join([*lines, current])
