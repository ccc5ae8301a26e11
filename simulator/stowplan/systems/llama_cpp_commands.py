"""From a llama.cpp placement to the engine's own command line.

A command is written for one span of versions (`llama_cpp_versions`): one anchored pattern per set of parts, weights
loaded as the plan says, and nothing left for the engine to fit by itself.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence

from stowplan.errors import InputError, NotExpressible
from stowplan.machines.machine import Machine
from stowplan.models.model import Model
from stowplan.ops import EXPERT_PARTS, Part, part_of
from stowplan.plan import Plan, Workload, run_lengths
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.llama_cpp_versions import Profile, profile_for
from stowplan.systems.number_pattern import number_pattern
from stowplan.systems.serial import LayerPlaces

_BUFFERS = {"nvidia": "CUDA", "amd": "ROCm", "apple": "Metal", "intel": "SYCL"}


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
    """The llama-server command of a placement, for the newest version that it is for; raises as `command_words`."""
    return wrapped(command_words(machine, model, plan, settings, layers))


def command_words(
    machine: Machine,
    model: Model,
    plan: Plan,
    settings: LlamaCppSettings,
    layers: Sequence[LayerPlaces],
    *,
    profile: Profile | None = None,
    buffers: Sequence[str] = (),
) -> list[str]:
    """The words of the llama-server command of a placement.

    Args:
        machine, model, plan, settings, layers: the placement.
        profile: the versions that it is for; the newest ones if None.
        buffers: buffer names of the GPUs (``Vulkan0``, ``RPC0[host:port]``) where they are not the vendor's own.

    Raises:
        NotExpressible: a layer on the CPU follows one on a GPU, GPUs do not hold consecutive runs of layers, or the
            profile is for an engine that counts layers by another rule than the plan.
    """
    profile = profile or profile_for(settings.engine, settings.release)
    if (profile.engine, profile.release) != (settings.engine, settings.release):
        raise NotExpressible(
            f"the plan is for {settings.engine} ({settings.release}), and {profile.key} counts -ngl by another rule"
        )
    homes = [places.mixer for places in layers]
    if any(places.kv != (places.mixer if settings.kv_offload else RAM) for places in layers):
        raise NotExpressible("llama.cpp keeps the cache of a layer with the layer, or all of it in host memory")
    if plan.embedding != RAM:
        raise NotExpressible(f"llama.cpp keeps the token embedding in host memory, not on {plan.embedding}")
    on_cpu = next((index for index, home in enumerate(homes) if home != RAM), len(homes))
    if RAM in homes[on_cpu:] or homes[on_cpu:] != sorted(homes[on_cpu:], key=_number):
        raise NotExpressible(
            "llama.cpp keeps the first layers on the CPU and gives each GPU a consecutive run of the rest"
        )
    binding = {None: [], "interleave": ["numactl", "--interleave=all"], "bind": ["numactl", "-N", "0", "-m", "0"]}
    words = [
        *binding[settings.numactl],
        "llama-server",
        "-m",
        model_file(model, plan),
        "-c",
        str(plan.workload.capacity * plan.workload.batch),
    ]
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
    if counted_output != output_on_gpu:
        overrides.append(f"{_output_pattern(model, plan)}={_buffer(machine, plan.output, buffers)}")
    overrides += _part_overrides(machine, model, layers, buffers)
    shorthand = _cpu_moe(model, layers)
    if shorthand is not None:
        words += shorthand
        overrides = [text for text in overrides if "exps" not in text]
    for text in overrides:
        words += ["-ot", text]
    return words + _setting_words(machine, settings, profile)


def model_file(model: Model, plan: Plan) -> str:
    """The file that the command names: the user's own, or the usual name of a published one.

    Raises:
        InputError: a name that no shell command or file of flags can hold.
    """
    if not plan.model.endswith(".gguf"):
        return f"{model.name.replace(' ', '-')}-{model.quant.upper()}.gguf"
    if not plan.model.isprintable():
        raise InputError(f"the model file {plan.model!r} has control characters in its name; rename it")
    return f"./{plan.model}" if plan.model.startswith(("-", "#", ";")) else plan.model


def _number(place: str) -> int:
    return int(place.removeprefix("gpu"))


def _output_pattern(model: Model, plan: Plan) -> str:
    """The name under which llama.cpp loads the output matrix.

    Raises:
        NotExpressible: a tied matrix on a GPU without the layers: its pattern would move the embedding too.
    """
    if not model.tied:
        return r"^output\.weight$"
    if plan.output != RAM:
        raise NotExpressible(
            f"{model.name} shares the output matrix with the embedding, and llama.cpp cannot move one without the other"
        )
    return r"^token_embd\.weight$"


def _split_counts(machine: Machine, homes: Sequence[str], output: str, counted_output: bool) -> list[str]:
    counts = [homes.count(f"gpu{i}") for i in range(len(machine.gpus))]
    if counted_output:
        counts[_number(homes[-1])] += 1
    if counted_output and output not in (RAM, homes[-1]):
        raise NotExpressible(f"llama.cpp keeps the output matrix with the last layer, on {homes[-1]}, not on {output}")
    return [str(count) for count in counts]


def _buffer(machine: Machine, place: str, buffers: Sequence[str]) -> str:
    if place == RAM:
        return "CPU"
    index = _number(place)
    if buffers:
        return buffers[index]
    stem = _BUFFERS.get(machine.gpus[index].vendor, "Vulkan")
    return stem if stem == "Metal" else f"{stem}{index}"


def _part_overrides(machine: Machine, model: Model, layers: Sequence[LayerPlaces], buffers: Sequence[str]) -> list[str]:
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
        texts.append(rf"^blk\.{number_pattern(where)}\.{names}\.weight$={_buffer(machine, place, buffers)}")
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


def _setting_words(machine: Machine, settings: LlamaCppSettings, profile: Profile) -> list[str]:
    words = ["-fa", "on" if settings.flash_attention else "off"]
    if settings.cache_k != "f16" or settings.cache_v != "f16":
        words += ["-ctk", settings.cache_k, "-ctv", settings.cache_v]
    if not settings.kv_offload:
        words.append("--no-kv-offload")
    if not settings.op_offload:
        words.append("--no-op-offload")
    words += ["--numa", settings.numa] if settings.numa else []
    words += ["-b", str(settings.batch), "-ub", str(settings.ubatch), "-t", str(settings.threads or machine.cores)]
    words += ["-tb", str(settings.threads_batch)] if settings.threads_batch else []
    if settings.engine == "ik_llama.cpp":
        words += ["-rtr"] if settings.repacked else []
        words += ["-mla", str(settings.mla)] if settings.mla != 3 else []
        words += {None: [], True: ["-ooae"], False: ["-no-ooae"]}[settings.used_experts]
    return [*words, *profile.fused, *profile.load_modes[settings.load_mode], *profile.fit_off]


def wrapped(words: Sequence[str]) -> str:
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
