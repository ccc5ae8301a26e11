"""Random machines, models, workloads and llama.cpp placements, shared by the property tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hypothesis import strategies as st

from stowplan.machines import load_machine
from stowplan.machines.machine import Machine
from stowplan.models import load_model
from stowplan.models.model import Model
from stowplan.ops import EXPERT_PARTS, FFN_PARTS, Part, part_of
from stowplan.plan import Plan, Workload
from stowplan.planner.predict import make_setup
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

GPUS = ("rtx-3060", "rtx-3090", "rtx-4090", "rtx-5090", "a100-80gb-pcie", "h100-pcie", "rx-7900-xtx", "t4")
HOSTS = (
    "ryzen-9-7950x + ddr5-5200x2",
    "core-i9-14900k + ddr5-5600x2",
    "core-i9-10900x + ddr4-2933x4",
    "epyc-7742 + ddr4-3200x8",
    "xeon-platinum-8480 + ddr5-4800x8",
    "2x epyc-9654 + ddr5-4800x24",
)
CAPACITIES = (16, 32, 64, 128, 256, 512)
OVERRIDES = (
    (),
    ("gpu.pcie.lanes=8",),
    ("gpu.pcie.generation=3",),
    ("gpu.memory=10GiB",),
    ("memory.bandwidth=45GB/s",),
    ("cpu.cores=6",),
)
DENSE = ("llama-3.2-1b", "llama-3.1-8b", "qwen2.5-0.5b", "phi-4", "opt-6.7b", "llama-3.3-70b")
SLIDING = ("gemma-3-4b", "gemma-2-9b", "gpt-oss-20b")
ROUTED = ("qwen3-30b-a3b", "mixtral-8x7b", "glm-4.5-air", "llama-4-scout")
LATENT = ("deepseek-v2-lite", "deepseek-v2")
RECURRENT = ("qwen3-next-80b-a3b", "jamba-v0.1")
MODELS = (*DENSE, *SLIDING, *ROUTED, *LATENT, *RECURRENT)
MIXES = ("q4_k_m", "q8_0", "iq4_xs")


@lru_cache(maxsize=256)
def machine_of(spec: str, overrides: tuple[str, ...] = ()) -> Machine:
    """A machine by its composition, read once."""
    return load_machine(spec, overrides)


@lru_cache(maxsize=64)
def model_of(key: str, quant: str) -> Model:
    """A model, read once."""
    return load_model(key, quant)


@lru_cache(maxsize=256)
def setup_of(spec: str, overrides: tuple[str, ...], key: str, quant: str, engine: str = "llama.cpp") -> Setup:
    """A model on a machine with llama.cpp's figures, or with those of ik_llama.cpp."""
    return make_setup(machine_of(spec, overrides), model_of(key, quant), LlamaCpp(), engine)


@st.composite
def specs(draw: st.DrawFn, *, most_gpus: int = 3, disk: bool = True) -> str:
    """Composition texts with up to `most_gpus` GPUs of one or two kinds."""
    count = draw(st.integers(0, most_gpus))
    parts = []
    if count:
        kind = draw(st.sampled_from(GPUS))
        if count > 1 and draw(st.booleans()):
            parts += [f"{count - 1}x {kind}", draw(st.sampled_from(GPUS))]
        else:
            parts.append(f"{count}x {kind}")
    parts.append(f"{draw(st.sampled_from(HOSTS))}:{draw(st.sampled_from(CAPACITIES))}GiB")
    return " + ".join([*parts, "samsung-990-pro:4TB"] if disk else parts)


def overrides_for(spec: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Overrides that the machine of a composition can take."""
    has_gpu = any(gpu in spec for gpu in GPUS)
    return st.sampled_from([o for o in OVERRIDES if has_gpu or not any(text.startswith("gpu") for text in o)])


@st.composite
def workloads(draw: st.DrawFn, *, longest: int = 6000, largest_batch: int = 4) -> Workload:
    """Prompts and generations, earlier turns, room to spare in the cache, small batches."""
    prompt, generate = draw(st.integers(0, longest)), draw(st.integers(1, 600))
    depth = draw(st.sampled_from([0, 0, 1000]))
    spare = draw(st.none() | st.integers(0, 2000))
    context = None if spare is None else prompt + generate + depth + spare
    batch = draw(st.integers(1, largest_batch))
    return Workload(prompt=prompt, generate=generate, depth=depth, context=context, batch=batch)


@st.composite
def llama_cpp_settings(draw: st.DrawFn) -> LlamaCppSettings:
    """Every knob of llama.cpp that a plan may set."""
    engine = draw(st.sampled_from(["llama.cpp", "llama.cpp", "ik_llama.cpp"]))
    release = "pre-2025-12" if engine == "ik_llama.cpp" else draw(st.sampled_from(["current", "pre-2025-12"]))
    flash = draw(st.booleans())
    values: Mapping[str, object] = {
        "engine": engine,
        "release": release,
        "ubatch": draw(st.sampled_from([16, 512, 2048])),
        "batch": draw(st.sampled_from([256, 2048])),
        "threads": draw(st.none() | st.integers(1, 64)),
        "cache_k": draw(st.sampled_from(["f16", "q8_0", "q4_0"])),
        "cache_v": draw(st.sampled_from(["f16", "q8_0"])) if flash else "f16",
        "flash_attention": flash,
        "load_mode": draw(st.sampled_from(["none", "mmap", "mlock"])),
        "kv_offload": draw(st.booleans()),
        "op_offload": draw(st.booleans()),
    }
    return LlamaCppSettings.model_validate(values)


@st.composite
def placements(draw: st.DrawFn, setup: Setup, settings: LlamaCppSettings) -> tuple[list[LayerPlaces], str]:
    """Placements that llama.cpp can express: first layers on the CPU, then runs per GPU, feed-forward parts apart."""
    layers, gpus = setup.model.layers, len(setup.machine.gpus)
    cuts = sorted(draw(st.lists(st.integers(0, len(layers)), min_size=gpus, max_size=gpus)))
    if gpus and draw(st.integers(0, 2)) == 0:
        cuts[0] = 0
    homes = [RAM if not (passed := sum(cut <= i for cut in cuts)) else f"gpu{passed - 1}" for i in range(len(layers))]
    modes = draw(st.lists(st.integers(0, 63), min_size=1, max_size=4))
    period = draw(st.integers(1, 20))
    cpu_moe = draw(st.integers(0, 3)) == 0
    spilled = draw(st.integers(0, len(layers)))
    placed = []
    for index, (layer, home) in enumerate(zip(layers, homes, strict=True)):
        parts = sorted({part_of(tensor) for tensor in layer.tensors} & {*FFN_PARTS, *EXPERT_PARTS, Part.SHARED})
        mode = modes[index // period % len(modes)]
        ffn = []
        for bit, part in enumerate(parts):
            if cpu_moe:
                away = part in EXPERT_PARTS and index < spilled
            else:
                away = part is not Part.SHARED and bool(mode >> bit & 1)
            ffn.append((part, RAM if away else home))
        placed.append(LayerPlaces(home, home if settings.kv_offload else RAM, tuple(ffn)))
    if not gpus:
        return placed, RAM
    last = homes[-1] if homes[-1] != RAM else "gpu0"
    return placed, draw(st.sampled_from([last, last, RAM]))


@dataclass(frozen=True, slots=True)
class Case:
    """A plan with the setup that it is for."""

    setup: Setup
    plan: Plan


@st.composite
def llama_cpp_cases(draw: st.DrawFn, models: Sequence[str] = MODELS, most_gpus: int = 3) -> Case:
    """Random plans that llama.cpp can express; they need not fit."""
    spec = draw(specs(most_gpus=most_gpus))
    overrides = draw(overrides_for(spec))
    key, quant = draw(st.sampled_from(models)), draw(st.sampled_from(MIXES))
    settings = draw(llama_cpp_settings())
    setup = setup_of(spec, overrides, key, quant, settings.engine)
    placement = draw(placements(setup, settings))
    plan = make_plan(setup.machine, (key, quant), draw(workloads()), settings, placement)
    return Case(setup, plan)
