"""KTransformers (sglang-kt with kt-kernel): any set of experts of any layer on the GPU, the others computed by the CPU.

The set is a file of ours (``experts.json``); a small program beside it turns the file into the tensor that sglang-kt
reads. Where the set is experts 0 to N-1 of every layer, ``--kt-num-gpu-experts N`` says so and no tensor is needed.
The CPU's kernel is one that reads the checkpoint's own experts wherever kt-kernel has one, so that they take the bytes
that the plan counts (kt-kernel 0.7.2, experts.py and utils/amx.py; what it refuses is refused here before export).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Files, Names
from stowplan.exports.checkpoints import check_checkpoint
from stowplan.exports.flat_yaml import write_yaml
from stowplan.exports.places import GPU, layers_of, part_bytes, shares_of
from stowplan.exports.sglang_flags import SglangFlags, config, flags_of, read_values
from stowplan.models.model import Model, Role
from stowplan.ops import EXPERT_PARTS, Part, part_of
from stowplan.plan import Place, Plan, run_lengths
from stowplan.systems.base import RAM, Setup

CONFIG, EXPERTS, MAKER, TENSOR = "ktransformers.yaml", "experts.json", "make_tensor.py", "experts.pt"
_RANGES = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*\Z")
_RATIO_SLACK = 0.5  # the engine cuts the product of ratio and experts off to a whole number
_NATIVE = {"bf16": "BF16", "fp8": "FP8", "fp8_block": "FP8", "gptq": "GPTQ_INT4"}
_GGUF_BLOCK = 256  # of LLAMAFILE: experts are cut at whole blocks of their inner width


class KTransformersExporter:
    """Writer and reader of expert sets and of sglang-kt's flags."""

    key = "ktransformers"
    title = "KTransformers"
    target = "sglang-kt 0.7.2 with kt-kernel 0.7.2"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """Everything but routed experts on the GPU; of each layer's experts as many as the plan has there.

        Raises:
            NotExpressible: no routed experts, no GPU, several GPUs, or weights of GGUF files.
        """
        model = setup.model
        if not setup.machine.gpus:
            raise NotExpressible("KTransformers needs a GPU, and the machine has none")
        if not any(layer.experts for layer in model.layers):
            raise NotExpressible(f"KTransformers divides routed experts, and {model.name} has none")
        check_checkpoint(model, self.title)
        _method(setup)
        if plan.system == self.key:
            return self._plan(setup, Names.of(plan), stated_experts(plan, model))
        chosen: dict[int, frozenset[int]] = {}
        for layer, places in zip(model.layers, layers_of(model, plan), strict=True):
            if layer.experts is None:
                continue
            sizes = part_bytes(layer)
            here = sum(
                sizes[p.value] * shares_of(places[p.value]).get(GPU, 0.0) for p in EXPERT_PARTS if p.value in sizes
            )
            total = sum(sizes[p.value] for p in EXPERT_PARTS if p.value in sizes)
            chosen[layer.index] = frozenset(range(int(layer.experts.total * here / total + 1e-9)))
        return self._plan(setup, Names.of(plan), chosen)

    def _plan(self, setup: Setup, names: Names, chosen: Mapping[int, frozenset[int]]) -> Plan:
        model = setup.model
        places: list[dict[str, Place]] = []
        for layer in model.layers:
            here: dict[str, Place] = dict.fromkeys((*part_bytes(layer), Part.KV.value), "gpu0")
            if layer.experts is not None:
                share = len(chosen.get(layer.index, ())) / layer.experts.total
                split: Place = {"gpu0": share, RAM: 1.0 - share}
                for part in EXPERT_PARTS:
                    if part.value in here:
                        here[part.value] = "gpu0" if share == 1.0 else split if share else RAM
            places.append(here)
        return Plan(
            system=self.key,
            machine=names.machine,
            set=list(names.set),
            model=names.model,
            quant=names.quant,
            workload=names.workload,
            layers=run_lengths(places),
            embedding="gpu0",
            output="gpu0",
            settings={"experts": {str(layer): ranges(ids) for layer, ids in sorted(chosen.items()) if ids}},
        )

    def files(self, setup: Setup, plan: Plan) -> Files:
        """The set of experts, the program that makes the engine's tensor of it, and the flags."""
        model = setup.model
        chosen = stated_experts(plan, model)
        routed = [layer for layer in model.layers if layer.experts]
        experts = max(layer.experts.total for layer in routed if layer.experts)
        data = {"layers": len(model.layers), "experts": experts, "gpu": plan.settings["experts"]}
        count = sum(len(ids) for ids in chosen.values())
        method = _method(setup)
        most_pools = _expert_width(model) // _GGUF_BLOCK if method == "LLAMAFILE" else setup.machine.sockets
        flags = SglangFlags(
            kt_weight_path=plan.model,
            kt_method=method,
            kt_cpuinfer=setup.machine.cores,
            kt_threadpool_count=min(setup.machine.sockets, most_pools),
            kt_gpu_experts_ratio=(count + _RATIO_SLACK) / (len(routed) * experts)
            if count < len(routed) * experts
            else 1.0,
            kt_expert_placement_strategy="frequency",
            init_expert_location=TENSOR,
            context_length=plan.workload.capacity,
            max_running_requests=plan.workload.batch,
        )
        return Files(
            contents={
                EXPERTS: json.dumps(data, indent=2) + "\n",
                MAKER: _MAKER,
                CONFIG: write_yaml(config(plan.model, flags)),
            },
            main=EXPERTS,
            command=["python", "-m", "sglang.launch_server", "--config", CONFIG],
            check=["python", MAKER],
            check_says=f"how many experts of how many layers are on the GPU, and leaves them as {TENSOR}; run it first",
            notes=(
                _WEIGHTS[method],
                "The ratio lies half an expert above the count, because the engine cuts the product off.",
                "Host memory holds a copy of the GPU's experts as well.",
            ),
        )

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The model of a command or of the flags; a set of experts names none."""
        if isinstance(text, str) and text.lstrip().startswith("{"):
            return None
        found = read_values(text).get("model")
        return None if found is None else str(found)

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a set of experts, or of flags that name a number of experts.

        Raises:
            InputError: no set of experts, or one for another model.
            NotExpressible: flags whose experts are in another file.
        """
        if isinstance(text, str) and text.lstrip().startswith("{"):
            return self._plan(setup, names, _read_experts(text, setup.model))
        flags = flags_of(read_values(text))
        if flags.init_expert_location:
            raise NotExpressible(
                f"KTransformers: the experts are in {flags.init_expert_location}; import {EXPERTS} instead"
            )
        return self._plan(setup, names, _counted(flags, setup.model))


_OWN = (
    "Replace model-path and kt-weight-path by your checkpoint's folder; the CPU computes with its experts as they are."
)
_WEIGHTS: Mapping[str, str] = {
    "BF16": _OWN,
    "FP8": f"{_OWN} Their scales have to be of blocks of 128 x 128, as in DeepSeek's and Qwen's own checkpoints.",
    "GPTQ_INT4": _OWN,
    "AMXINT4": "Replace model-path and kt-weight-path by your folders; kt quant makes the CPU's experts, of 4 bits.",
    "LLAMAFILE": "Replace model-path by your checkpoint's folder and kt-weight-path by a GGUF file of the same model, "
    "which holds the CPU's experts in a format of its own.",
}


def _expert_width(model: Model) -> int:
    """Inner width of one routed expert."""
    return next(t.rows for layer in model.layers for t in layer.tensors if t.role is Role.EXPERT_UP)


def _method(setup: Setup) -> str:
    """The kernel for the CPU's experts.

    Raises:
        NotExpressible: none of kt-kernel's kernels takes these experts on this CPU.
    """
    model, cpu = setup.model, setup.machine.cpu
    formats = {t.format for layer in model.layers for t in layer.tensors if part_of(t) in EXPERT_PARTS}
    native = {_NATIVE.get(each) for each in formats}
    if len(native) == 1 and (method := native.pop()) is not None:
        return method
    if "avx512" in cpu.isa:
        return "AMXINT4"
    if _expert_width(model) % _GGUF_BLOCK:
        raise NotExpressible(
            f"KTransformers computes {model.quant.upper()} experts on the CPU of {setup.machine.name} from GGUF files "
            f"alone, in blocks of {_GGUF_BLOCK}, and those of {model.name} are {_expert_width(model)} wide; "
            "plan it again with --quant bf16 or fp8"
        )
    return "LLAMAFILE"


def _counted(flags: SglangFlags, model: Model) -> dict[int, frozenset[int]]:
    """The first experts of every layer, by number or by ratio of all of them."""
    routed = {layer.index: layer.experts.total for layer in model.layers if layer.experts}
    if flags.kt_gpu_experts_ratio is not None:
        if flags.kt_expert_placement_strategy not in (None, "uniform"):
            strategy = flags.kt_expert_placement_strategy
            raise NotExpressible(
                f"KTransformers: --kt-expert-placement-strategy {strategy} chooses by itself; stowplan knows uniform"
            )
        count, rest = divmod(int(flags.kt_gpu_experts_ratio * sum(routed.values())), len(routed))
        return {index: frozenset(range(count + (n < rest))) for n, index in enumerate(routed)}
    if flags.kt_num_gpu_experts is None:
        raise InputError(
            "KTransformers: --kt-num-gpu-experts or --kt-gpu-experts-ratio says how many experts are on the GPU"
        )
    most = max(routed.values(), default=0)
    if flags.kt_num_gpu_experts > most:
        raise InputError(f"--kt-num-gpu-experts {flags.kt_num_gpu_experts}: a layer of {model.name} has {most} experts")
    return {index: frozenset(range(flags.kt_num_gpu_experts)) for index in routed}


def stated_experts(plan: Plan, model: Model) -> dict[int, frozenset[int]]:
    """Experts on the GPU by layer, as a plan's settings hold them."""
    experts = plan.settings.get("experts")
    if not isinstance(experts, dict) or plan.settings.keys() != {"experts"}:
        raise InputError("plan: settings: a plan of KTransformers holds experts by layer and nothing else")
    return _by_layer(experts, model)


def _read_experts(text: str, model: Model) -> dict[int, frozenset[int]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{EXPERTS}: is not JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("gpu"), dict):
        raise InputError(f"{EXPERTS}: must hold layers, experts and gpu, the experts on the GPU by layer")
    if data.get("layers") != len(model.layers):
        raise InputError(
            f"{EXPERTS}: is for {str(data.get('layers'))[:20]} layers, and {model.name} has {len(model.layers)}"
        )
    return _by_layer(data["gpu"], model)


def _by_layer(experts: Mapping[str, object], model: Model) -> dict[int, frozenset[int]]:
    found: dict[int, frozenset[int]] = {}
    for key, text in experts.items():
        index = int(key) if re.fullmatch(r"\d{1,6}", str(key)) else -1
        layer = model.layers[index] if 0 <= index < len(model.layers) else None
        if layer is None or layer.experts is None:
            raise InputError(f"{EXPERTS}: layer {str(key)[:20]} of {model.name} has no routed experts")
        if not isinstance(text, str) or not _RANGES.match(text):
            raise InputError(f"{EXPERTS}: layer {key}: '{str(text)[:40]}' is no list of experts such as 0-15,20")
        ids: set[int] = set()
        for piece in text.split(","):
            low, _, high = piece.partition("-")
            if int(high or low) >= layer.experts.total or int(high or low) < int(low):
                raise InputError(f"{EXPERTS}: layer {key}: {piece}: experts go from 0 to {layer.experts.total - 1}")
            ids |= set(range(int(low), int(high or low) + 1))
        found[index] = frozenset(ids)
    return found


def ranges(ids: frozenset[int]) -> str:
    """Numbers as ranges: ``0-15,20``."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


_MAKER = f'''"""Make {TENSOR} of {EXPERTS}: a tensor of one row per layer, 1.0 for every expert that is on the GPU."""

import json
from pathlib import Path

import torch

here = Path(__file__).resolve().parent
plan = json.loads((here / "{EXPERTS}").read_text())
mask = torch.zeros(1, plan["layers"], plan["experts"])
for layer, text in plan["gpu"].items():
    for piece in text.split(","):
        low, _, high = piece.partition("-")
        mask[0, int(layer), int(low) : int(high or low) + 1] = 1.0
torch.save(mask, here / "{TENSOR}")
print(int(mask.sum()), "experts of", int((mask[0].sum(dim=1) > 0).sum()), "layers are on the GPU")
'''
