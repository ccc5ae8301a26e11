"""Accelerate and transformers: a device map as JSON, and Python that loads the model with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from stowplan.errors import InputError
from stowplan.exports.base import Files, Names
from stowplan.exports.checkpoints import check_checkpoint
from stowplan.models.model import Role
from stowplan.plan import Plan
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.accelerate_execution import DTYPES
from stowplan.systems.accelerate_map import ModulePlaces, write_map
from stowplan.systems.base import DISK, Setup

MAP, LOADER, LIMITS = "device_map.json", "load.py", "max_memory.json"
_SYSTEM = Accelerate()


class AccelerateExporter:
    """Writer and reader of device maps."""

    key = "accelerate"
    title = "Accelerate"
    target = "accelerate 1.15.0 with transformers 5.23.0"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """Whole layers on one device each; a plan of another system is solved again under Accelerate's constraints.

        Raises:
            NotExpressible: weights that PyTorch does not compute with, or no GPU.
            DoesNotFit: nothing fits under Accelerate's constraints.
        """
        check_checkpoint(setup.model, self.title, plain=True)
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        if plan.system == self.key:
            return self._plan(own, Names.of(plan), self._places(own, plan))
        request = Request(own, (plan.model, plan.quant), plan.workload)
        found = plan_for(self.key, request).plan
        return self._plan(own, Names.of(found), self._places(own, found))

    def _places(self, setup: Setup, plan: Plan) -> ModulePlaces:
        layers = _SYSTEM.placement(setup, plan)
        return ModulePlaces(plan.embedding, tuple(each.mixer for each in layers), plan.output)

    def _plan(self, setup: Setup, names: Names, places: ModulePlaces) -> Plan:
        given: dict[str, Any] = {
            "machine": names.machine,
            "set": list(names.set),
            "model": names.model,
            "quant": names.quant,
        }
        return _SYSTEM.plan(setup, names.workload, places, **given)

    def files(self, setup: Setup, plan: Plan) -> Files:
        """The map, a loader, and the bytes per device for ``device_map="auto"``."""
        places = self._places(make_setup(setup.machine, setup.model, _SYSTEM), plan)
        devices = json.loads(write_map(setup.model, places))
        return Files(
            contents={
                MAP: json.dumps(devices, indent=2) + "\n",
                LIMITS: json.dumps(self._limits(setup, places), indent=2) + "\n",
                LOADER: _loader(setup.model.key, DTYPES[setup.model.quant]),
            },
            main=MAP,
            command=["python", LOADER],
            check=["python", LOADER, "--where"],
            check_says="the device of every parameter; offloaded ones are on meta until a layer runs",
            undo="Delete the folder named offload beside the loader, if there is one.",
            notes=(
                "Put your checkpoint's folder or repository behind the loader's name.",
                "The map places weights; the cache grows on the GPUs beside them.",
                f"{LIMITS} holds the bytes of weights per device, for device_map='auto' instead of the map.",
            ),
        )

    def _limits(self, setup: Setup, places: ModulePlaces) -> dict[str, str]:
        """Bytes of weights on each device but the disk."""
        held: dict[str, int] = {}
        for layer, place in zip(setup.model.layers, places.layers, strict=True):
            held[place] = held.get(place, 0) + sum(tensor.bytes for tensor in layer.tensors)
        for tensor in setup.model.globals:
            table = tensor.role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)
            place = places.embedding if table else places.output
            held[place] = held.get(place, 0) + tensor.bytes
        named = {place: place.removeprefix("gpu") if place.startswith("gpu") else "cpu" for place in held}
        return {named[place]: f"{-(-size // 2**20)}MiB" for place, size in sorted(held.items()) if place != DISK}

    def model_named(self, _: str | Sequence[str]) -> str | None:
        """A device map names no model."""
        return None

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a device map, as JSON or inside Python, or of the short command form.

        Raises:
            InputError: a loader of an exported folder, which reads its map from the file beside it.
        """
        source = text if isinstance(text, str) else shlex.join(text)
        if isinstance(text, str) and f'"{MAP}"' in text:
            raise InputError(f"this loader reads its map from {MAP}; import that file")
        given: dict[str, Any] = {"set": list(names.set), "model": names.model, "quant": names.quant}
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        workload = names.workload if isinstance(text, str) else None
        return _SYSTEM.parse(source, own, workload, machine=names.machine, **given)


def _loader(model: str, dtype: str) -> str:
    """Python that loads a checkpoint with the map beside it, answers a prompt, or shows where parameters are."""
    return f'''"""Load a checkpoint with the device map beside this file: python {LOADER} [CHECKPOINT] [--where]."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

here = Path(__file__).resolve().parent
names = [word for word in sys.argv[1:] if not word.startswith("-")]
checkpoint = names[0] if names else {json.dumps(model)}
devices = json.loads((here / "{MAP}").read_text())
model = AutoModelForCausalLM.from_pretrained(
    checkpoint, dtype=torch.{dtype}, device_map=devices, offload_folder=str(here / "offload")
)
if "--where" in sys.argv:
    for name, parameter in model.named_parameters():
        print(parameter.device, name)
else:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    words = tokenizer("A ship sails when its cargo is", return_tensors="pt").to(model.device)
    print(tokenizer.decode(model.generate(**words, max_new_tokens=32)[0]))
'''
