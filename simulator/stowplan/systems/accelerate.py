"""Hugging Face Accelerate: whole modules on a GPU, in host memory or on disk, brought to a GPU for every forward pass.

Expressible: each layer, the embedding, and the output with the norms before it, on one device. With a GPU in the map
nothing is computed on the CPU: a hook before each offloaded module copies its tensors, one after another and
synchronously, to the first GPU of the map, and drops them afterwards. Layers on several GPUs run one after another.
Without a GPU the CPU computes everything, and the hook brings modules on disk to host memory.
The cache is where its layer computes. Transformers run in eager mode, so small kernels cost their launches.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from stowplan.engine.graph import Graph
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.ops import Part
from stowplan.plan import Plan, Workload, checked_workload, expand, run_lengths
from stowplan.systems.accelerate_execution import DTYPES, AccelerateRun, AccelerateSettings, settings_of
from stowplan.systems.accelerate_map import ModulePlaces, read_map, write_map
from stowplan.systems.base import DISK, RAM, Evaluation, Setup
from stowplan.systems.serial import LayerPlaces
from stowplan.units import format_bytes

_SHORT_DTYPES = {"fp16": "f16", "bf16": "bf16", "fp32": "f32"}
_MAP_KEYWORD = "device_map="


class Accelerate:
    """Hugging Face Accelerate as a system."""

    key = "accelerate"
    title = "Hugging Face Accelerate"
    kernels = "accelerate"

    def placement(self, setup: Setup, plan: Plan) -> list[LayerPlaces]:
        """Places of every layer that a plan states.

        Raises:
            NotExpressible: a layer that is not whole on one device that the machine has, or a cache elsewhere.
        """
        run = self.run(setup, plan)
        known = {f"gpu{i}" for i in setup.gpus} | {RAM} | ({DISK} if setup.machine.disks else set())
        found: list[LayerPlaces] = []
        for layer, stated in zip(
            setup.model.layers, expand(plan.layers, len(setup.model.layers), where="plan"), strict=True
        ):
            place = stated.get(Part.MIXER.value)
            if not isinstance(place, str) or place not in known:
                raise NotExpressible(
                    f"plan: layer {layer.index} is on {place}; Accelerate places whole layers on one of "
                    f"{', '.join(sorted(known))}"
                )
            whole = run.layer_at(layer, place)
            for part, where in whole.as_mapping().items():
                if stated.get(part) != where:
                    raise NotExpressible(
                        f"plan: layer {layer.index}: {part} is on {stated.get(part)}, but belongs on {where}"
                    )
            found.append(whole)
        for name, place in (("embedding", plan.embedding), ("output", plan.output)):
            if place not in known:
                raise NotExpressible(f"plan: {name} is on {place}; the machine has {', '.join(sorted(known))}")
        return found

    def run(self, setup: Setup, plan: Plan) -> AccelerateRun:
        """The engine under the plan's settings."""
        return AccelerateRun(setup, plan.workload, settings_of(plan), plan.embedding)

    def evaluate(self, setup: Setup, plan: Plan) -> Evaluation:
        """Times and memory; see `stowplan.systems.base.System`."""
        layers = self.placement(setup, plan)
        evaluation = self.run(setup, plan).evaluate(layers, plan.embedding, plan.output)
        for place, use in evaluation.memory.items():
            if use.used > use.capacity:
                missing = use.used - use.capacity
                raise DoesNotFit(
                    f"{place} would hold {format_bytes(use.used)} of {format_bytes(use.capacity)}; move "
                    f"{format_bytes(missing)} elsewhere in the device map",
                    missing,
                )
        return evaluation

    def decode_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of one decode step."""
        return self._graph(setup, plan, prefill=False)

    def prefill_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of the prompts of the whole batch."""
        return self._graph(setup, plan, prefill=True)

    def _graph(self, setup: Setup, plan: Plan, *, prefill: bool) -> Graph:
        run, layers = self.run(setup, plan), self.placement(setup, plan)
        run.overflow(run.memory(layers, plan.embedding, plan.output), layers)
        steps = run.prefill_steps if prefill else []
        return run.step_graph(layers, plan.output, (steps or [run.decode_step])[0])

    def command(self, setup: Setup, plan: Plan) -> str:
        """The plan as Python that loads the model with this device map."""
        layers = self.placement(setup, plan)
        places = ModulePlaces(plan.embedding, tuple(p.mixer for p in layers), plan.output)
        return (
            "import torch\n"
            "from transformers import AutoModelForCausalLM\n\n"
            "model = AutoModelForCausalLM.from_pretrained(\n"
            f"    {json.dumps(setup.model.key)},  # the checkpoint's folder or repository\n"
            f"    dtype=torch.{DTYPES[setup.model.quant]},\n"
            '    offload_folder="offload",\n'
            f"    {_MAP_KEYWORD}{write_map(setup.model, places)},\n"
            ")\n"
        )

    def plan(self, setup: Setup, workload: Workload, places: ModulePlaces, **names: Any) -> Plan:
        """Plan of a device map; `names` are ``machine``, ``model``, ``set`` and ``quant`` as the user wrote them.

        Raises:
            NotExpressible: a model that Accelerate does not load.
        """
        gpus = [int(p[3:]) for p in (places.embedding, *places.layers, places.output) if p.startswith("gpu")]
        settings = AccelerateSettings(main=min(gpus, default=-1))
        run = AccelerateRun(setup, workload, settings, places.embedding)
        pairs = zip(setup.model.layers, places.layers, strict=True)
        given: dict[str, Any] = {
            "machine": setup.machine.spec,
            "model": setup.model.key,
            "quant": setup.model.quant,
        }
        return Plan(
            system=self.key,
            workload=workload,
            layers=run_lengths(run.layer_at(layer, place).as_mapping() for layer, place in pairs),
            embedding=places.embedding,
            output=places.output,
            settings=settings.model_dump(mode="json"),
            **(given | names),
        )

    def parse(self, text: str, setup: Setup, workload: Workload | None = None, **names: Any) -> Plan:
        """The plan that a device map states.

        Args:
            text: a device map as JSON, Python as `command` writes it, or ``accelerate --device-map JSON --dtype fp16
                --batch B --prompt P --generate G``.
            setup: machine, figures and model.
            workload: what is asked; the command's own numbers where None.
            names: as for `plan`.

        Raises:
            NotExpressible: no device map in the text, a wrong one, or an unknown flag.
        """
        stripped = text.strip()
        if stripped.startswith("accelerate"):
            flags = _flags(stripped)
            dtype = flags.pop("dtype", None)
            if dtype is not None and _SHORT_DTYPES.get(dtype) != setup.model.quant:
                raise NotExpressible(f"--dtype {dtype} is not how {setup.model.name} was loaded ({setup.model.quant})")
            stripped = flags.pop("device-map", "")
            try:
                asked = checked_workload({name: int(value) for name, value in flags.items()})
            except ValueError as error:
                raise NotExpressible("accelerate: --batch, --prompt and --generate take whole numbers") from error
            workload = workload or asked
        elif _MAP_KEYWORD in stripped:
            stripped = stripped.partition(_MAP_KEYWORD)[2].lstrip()
            try:
                end = json.JSONDecoder().raw_decode(stripped)[1]
            except (json.JSONDecodeError, RecursionError) as error:
                raise NotExpressible(f"device map: is not JSON ({error})") from error
            stripped = stripped[:end]
        return self.plan(setup, workload or Workload(), read_map(setup.model, stripped), **names)


def _flags(text: str) -> dict[str, str]:
    """Flags of the short command form by name."""
    try:
        words = shlex.split(text)[1:]
    except ValueError as error:
        raise NotExpressible(f"accelerate: cannot be split into words ({error})") from error
    known = ("device-map", "dtype", "batch", "prompt", "generate")
    flags: dict[str, str] = {}
    for flag, value in zip(words[::2], words[1::2], strict=False):
        name = flag.removeprefix("--")
        if name == flag or name not in known:
            raise NotExpressible(f"accelerate: '{flag}' is not one of --{', --'.join(known)}")
        flags[name] = value
    if len(words) % 2 or "device-map" not in flags:
        raise NotExpressible("accelerate: every flag takes a value, and --device-map is needed")
    return flags
