"""DeepSpeed ZeRO-Inference: all parameters on the GPU, in host memory or on NVMe, as a JSON configuration.

Placement is all or nothing, with two exceptions of the engine's own: parameters below the persistence threshold stay
on the GPU, and of an NVMe placement those below one block of the asynchronous reader stay in host memory. Parameters
are those of transformers 5, which holds the experts of a layer in two: gate and up of all of them, and down of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Files, Names, plain_text
from stowplan.exports.checkpoints import check_checkpoint
from stowplan.exports.places import GPU, bytes_by_tier, distance, layers_of
from stowplan.models.model import Layer, Model, Role, Tensor
from stowplan.ops import Part, output_tensor, part_of
from stowplan.plan import Place, Plan, run_lengths
from stowplan.systems.base import DISK, RAM, Setup
from stowplan.units import format_bytes

CONFIG = "ds_config.json"
_BLOCK = 1 << 20
_JOINED = (Role.EXPERT_GATE, Role.EXPERT_UP)
_DEVICES: dict[str, str] = {"none": "gpu0", "cpu": RAM, "nvme": DISK}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Aio(_Part):
    """DeepSpeed's asynchronous reader."""

    block_size: Annotated[int, Field(ge=1)] = _BLOCK
    queue_depth: Annotated[int, Field(ge=1)] = 8
    intra_op_parallelism: Annotated[int, Field(ge=1)] = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class OffloadParam(_Part):
    """Where parameters live; `buffer_size` and `max_in_cpu` count elements, not bytes."""

    device: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str | None = None
    pin_memory: bool = False
    buffer_count: Annotated[int, Field(ge=1)] = 5
    buffer_size: Annotated[float, Field(ge=0)] = 1e8
    max_in_cpu: Annotated[float, Field(ge=0)] = 1e9


class OffloadOptimizer(_Part):
    """Where the optimizer's states live while training; a plan of inference has none."""

    device: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str | None = None
    pin_memory: bool = False
    buffer_count: Annotated[int, Field(ge=1)] = 4
    pipeline_read: bool = False
    pipeline_write: bool = False
    fast_init: bool = False
    ratio: Annotated[float, Field(ge=0, le=1)] = 1.0


class DeepSpeedSettings(_Part):
    """Settings of a DeepSpeed plan: the parts of its configuration that place bytes."""

    offload_param: OffloadParam = OffloadParam()
    offload_optimizer: OffloadOptimizer | None = None
    param_persistence_threshold: Annotated[float, Field(ge=0)] = 1e5
    aio: Aio = Aio()


class DeepSpeedExporter:
    """Writer and reader of DeepSpeed's JSON."""

    key = "deepspeed"
    title = "DeepSpeed"
    target = "DeepSpeed 0.19.8 with transformers 5"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """Parameters on the device that puts the fewest bytes elsewhere and that has room for them.

        Raises:
            NotExpressible: no GPU, weights that PyTorch does not compute with, no device with room.
        """
        model, machine = setup.model, setup.machine
        if not machine.gpus:
            raise NotExpressible("DeepSpeed's ZeRO-Inference computes on a GPU, and the machine has none")
        check_checkpoint(model, self.title, plain=True)
        if plan.system == self.key:
            return self._plan(setup, Names.of(plan), _checked(plan.settings))
        wanted = layers_of(model, plan)
        room = bytes_by_tier(model, wanted)[GPU]
        host = machine.memory.capacity.value - machine.reserved.value
        best: tuple[tuple[float, float], DeepSpeedSettings] | None = None
        for device in ("none", "cpu", "nvme"):
            settings = self._settings(model, device)
            got = realised(model, settings)
            sizes = bytes_by_tier(model, got)
            spare = sum(_fixed_bytes(layer, settings) for layer in model.layers)
            taken = sizes[RAM] + _buffer_bytes(settings)
            if sizes[GPU] > room + spare or taken > host or (device == "nvme" and not machine.disks):
                continue
            cost = distance(model, wanted, got)
            if best is None or cost < best[0]:
                best = cost, settings
        if best is None:
            raise NotExpressible(
                f"DeepSpeed keeps all parameters in one place, and neither RAM nor a disk of {machine.name} takes them"
            )
        return self._plan(setup, Names.of(plan), best[1])

    def _settings(self, model: Model, device: str) -> DeepSpeedSettings:
        param = OffloadParam(
            device=device,  # type: ignore[arg-type]
            nvme_path="/local_nvme" if device == "nvme" else None,
            pin_memory=device == "cpu",
            buffer_size=float(-(-_largest(model) // 10**6) * 10**6),
        )
        return DeepSpeedSettings(offload_param=param)

    def _plan(self, setup: Setup, names: Names, settings: DeepSpeedSettings) -> Plan:
        model, param = setup.model, settings.offload_param
        largest = _largest(model)
        if param.device == "nvme" and not param.nvme_path:
            raise InputError("DeepSpeed: offload_param: device nvme needs nvme_path, a folder on the disk")
        if param.device == "nvme" and param.buffer_size < largest:
            raise InputError(
                f"DeepSpeed: offload_param: buffer_size {param.buffer_size:.0f} is smaller than the largest parameter, "
                f"{largest} elements of {model.name}"
            )
        return Plan(
            system=self.key,
            machine=names.machine,
            set=list(names.set),
            model=names.model,
            quant=names.quant,
            workload=names.workload,
            layers=run_lengths(realised(model, settings)),
            embedding=_place_of(_embedding(model).elements, settings),
            output=_place_of(output_tensor(model).elements, settings),
            settings=settings.model_dump(mode="json"),
        )

    def files(self, setup: Setup, plan: Plan) -> Files:
        """The configuration, and a program that loads a checkpoint under it."""
        settings = _checked(plan.settings)
        dtype = "bfloat16" if setup.model.quant == "bf16" else "float16"
        buffers = _buffer_bytes(settings)
        memory = (
            (f"The disk's reader locks {format_bytes(buffers)} of host memory for its buffers.",) if buffers else ()
        )
        return Files(
            contents={CONFIG: json.dumps(config(settings, dtype), indent=2) + "\n", "load.py": _LOADER},
            main=CONFIG,
            command=["deepspeed", "--num_gpus", "1", "load.py"],
            check=["python", "-c", _CHECK, CONFIG],
            check_says="DeepSpeed's own reading of the offloading options",
            undo="Delete what DeepSpeed left under nvme_path.",
            notes=(
                "Give load.py your checkpoint's folder or repository.",
                "buffer_size and max_in_cpu count elements; buffer_size must hold the largest parameter.",
                *memory,
            ),
        )

    def model_named(self, _: str | Sequence[str]) -> str | None:
        """The configuration names no model."""
        return None

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a configuration.

        Raises:
            InputError: no JSON, another stage than 3, an unknown or wrong field.
        """
        return self._plan(setup, names, _settings_of(plain_text(text, self.title)))


_CHECK = (
    "import json, sys; from deepspeed.runtime.zero.config import DeepSpeedZeroConfig; "
    "print(DeepSpeedZeroConfig(**json.load(open(sys.argv[1]))['zero_optimization']))"
)
_LOADER = '''"""Load a checkpoint with ds_config.json beside this file: deepspeed --num_gpus 1 load.py CHECKPOINT."""

import json
import sys
from pathlib import Path

import deepspeed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig

checkpoint = next(word for word in sys.argv[1:] if not word.startswith("-"))
config = json.loads((Path(__file__).resolve().parent / "ds_config.json").read_text())
kept = HfDeepSpeedConfig(config)  # has to live while the model is loaded
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16 if "bf16" in config else torch.float16)
engine = deepspeed.initialize(model=model, config=config)[0]
engine.module.eval()
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
words = tokenizer("A ship sails when its cargo is", return_tensors="pt").to(engine.device)
print(tokenizer.decode(engine.module.generate(**words, max_new_tokens=32)[0]))
'''


def config(settings: DeepSpeedSettings, dtype: str) -> dict[str, Any]:
    """The configuration as DeepSpeed takes it."""
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_param_persistence_threshold": settings.param_persistence_threshold,
        "offload_param": settings.offload_param.model_dump(exclude_none=True),
    }
    if settings.offload_optimizer is not None:
        zero["offload_optimizer"] = settings.offload_optimizer.model_dump(exclude_none=True)
    kind = "bf16" if dtype == "bfloat16" else "fp16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        kind: {"enabled": True},
        "zero_optimization": zero,
        "aio": settings.aio.model_dump(),
    }


def _settings_of(text: str) -> DeepSpeedSettings:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"DeepSpeed: the configuration is not JSON ({error})") from error
    zero = data.get("zero_optimization") if isinstance(data, dict) else None
    if not isinstance(zero, dict):
        raise InputError("DeepSpeed: the configuration has no zero_optimization object")
    if zero.get("stage") != 3:
        raise NotExpressible(
            f"DeepSpeed: stage {str(zero.get('stage'))[:20]}: parameters are offloaded by stage 3 alone"
        )
    found: dict[str, Any] = {"offload_param": zero.get("offload_param", {}), "aio": data.get("aio", {})}
    if "offload_optimizer" in zero:
        found["offload_optimizer"] = zero["offload_optimizer"]
    threshold = zero.get("stage3_param_persistence_threshold", zero.get("param_persistence_threshold"))
    if threshold is not None and threshold != "auto":
        found["param_persistence_threshold"] = threshold
    return _checked(found)


def _checked(settings: dict[str, Any]) -> DeepSpeedSettings:
    try:
        return DeepSpeedSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"DeepSpeed: {field}: {str(first['input'])[:40]}: {first['msg'].lower()}") from error


def _place_of(elements: int, settings: DeepSpeedSettings) -> str:
    """Where a parameter of so many 16-bit elements lives."""
    param = settings.offload_param
    if param.device == "none" or elements <= settings.param_persistence_threshold:
        return "gpu0"
    small = param.device == "nvme" and 2 * elements < max(_BLOCK, settings.aio.block_size)
    return RAM if small else _DEVICES[param.device]


def _embedding(model: Model) -> Tensor:
    return next(tensor for tensor in model.tensors if tensor.role is Role.TOKEN_EMBEDDING)


def _parameters(layer: Layer) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of each of a layer's parameters."""
    yield from ((tensor,) for tensor in layer.tensors if tensor.role not in _JOINED)
    if joined := tuple(tensor for tensor in layer.tensors if tensor.role in _JOINED):
        yield joined


def _elements(parameter: Sequence[Tensor]) -> int:
    return sum(tensor.elements for tensor in parameter)


def _largest(model: Model) -> int:
    """Elements of the largest parameter."""
    inside = max(_elements(parameter) for layer in model.layers for parameter in _parameters(layer))
    return max(inside, _embedding(model).elements, output_tensor(model).elements)


def _buffer_bytes(settings: DeepSpeedSettings) -> float:
    """Host memory that parameters from NVMe pass through."""
    param = settings.offload_param
    return 2.0 * param.buffer_count * param.buffer_size if param.device == "nvme" else 0.0


def _fixed_bytes(layer: Layer, settings: DeepSpeedSettings) -> int:
    """Bytes that stay on the GPU whatever the device."""
    threshold = settings.param_persistence_threshold
    return sum(t.bytes for parameter in _parameters(layer) if _elements(parameter) <= threshold for t in parameter)


def realised(model: Model, settings: DeepSpeedSettings) -> list[dict[str, Place]]:
    """Places of the parts of every layer: shares by bytes."""
    found: list[dict[str, Place]] = []
    for layer in model.layers:
        held: dict[str, dict[str, int]] = {}
        for parameter in _parameters(layer):
            place = _place_of(_elements(parameter), settings)
            for tensor in parameter:
                by_place = held.setdefault(part_of(tensor).value, {})
                by_place[place] = by_place.get(place, 0) + tensor.bytes
        places: dict[str, Place] = {}
        for part, sizes in held.items():
            total = sum(sizes.values())
            shares = {place: size / total for place, size in sizes.items()}
            places[part] = next(iter(shares)) if len(shares) == 1 else shares
        found.append(places | {Part.KV.value: "gpu0"})
    return found
