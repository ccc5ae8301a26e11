"""Accelerate's device map: module names by architecture, written from a placement and read back into one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stowplan.errors import BadQuantity, NotExpressible
from stowplan.models.model import Model
from stowplan.systems.base import DISK, RAM
from stowplan.units import parse_quantity

REST = "rest"
_LARGEST_MAP = 2**20
_GPU = re.compile(r"(?:cuda:|gpu)?(\d{1,3})\Z")


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Names of a model's modules in the checkpoint: embeddings, prefix of the layers, norms after them, output."""

    embeddings: tuple[str, ...]
    layers: str
    norms: tuple[str, ...]
    head: str

    @property
    def edges(self) -> tuple[str, ...]:
        """Every module that is not a layer."""
        return (*self.embeddings, *self.norms, self.head)


_DEFAULT = ModuleNames(("model.embed_tokens",), "model.layers", ("model.norm",), "lm_head")
_NAMES: Mapping[str, ModuleNames] = {
    "opt": ModuleNames(
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        "model.decoder.layers",
        ("model.decoder.final_layer_norm",),
        "lm_head",
    ),
    "gptj": ModuleNames(("transformer.wte",), "transformer.h", ("transformer.ln_f",), "lm_head"),
    "gptneox": ModuleNames(("gpt_neox.embed_in",), "gpt_neox.layers", ("gpt_neox.final_layer_norm",), "embed_out"),
    "bloom": ModuleNames(
        ("transformer.word_embeddings", "transformer.word_embeddings_layernorm"),
        "transformer.h",
        ("transformer.ln_f",),
        "lm_head",
    ),
    "jamba": ModuleNames(("model.embed_tokens",), "model.layers", ("model.final_layernorm",), "lm_head"),
    "dbrx": ModuleNames(("transformer.wte",), "transformer.blocks", ("transformer.norm_f",), "lm_head"),
    "falcon": ModuleNames(("transformer.word_embeddings",), "transformer.h", ("transformer.ln_f",), "lm_head"),
}


def module_names(model: Model) -> ModuleNames:
    """Module names of a model; those of the Llama family unless its architecture has its own."""
    return _NAMES.get(model.architecture, _DEFAULT)


@dataclass(frozen=True, slots=True)
class ModulePlaces:
    """Where whole modules live: embedding, each layer, and the output with the norms before it."""

    embedding: str
    layers: tuple[str, ...]
    output: str


def write_map(model: Model, places: ModulePlaces) -> str:
    """The device map as one line of JSON."""
    names = module_names(model)
    devices: dict[str, int | str] = {name: _device(places.embedding) for name in names.embeddings}
    devices |= {f"{names.layers}.{index}": _device(place) for index, place in enumerate(places.layers)}
    devices |= {name: _device(places.output) for name in (*names.norms, names.head)}
    return json.dumps(devices)


def _device(place: str) -> int | str:
    if place.startswith("gpu"):
        return int(place.removeprefix("gpu"))
    return {RAM: "cpu", DISK: "disk"}[place]


def _place(device: object) -> str | None:
    """Place of a device as Accelerate names it, None for anything else."""
    if isinstance(device, bool):
        return None
    text = str(device).strip().lower()
    if text in ("cpu", "disk"):
        return RAM if text == "cpu" else DISK
    matched = _GPU.match("0" if text == "cuda" else text)
    return None if matched is None else f"gpu{int(matched[1])}"


def read_map(model: Model, text: str | Mapping[str, object]) -> ModulePlaces:
    """Places of whole modules from a device map, or from an amount per device that layers fill in order.

    Args:
        model: the model that the map is for.
        text: JSON or mapping of module prefixes to devices (``{"model.layers.0": 0, "lm_head": "cpu"}``), or of
            devices to shares, sizes or ``"rest"`` (``{"gpu0": 0.4, "cpu": 0.6}``, ``{"0": "20GiB", "cpu": "rest"}``).

    Raises:
        NotExpressible: not a device map, an unknown device, a module without one, or a layer that is split.
    """
    table = _mapping(text)
    amounts = {key: value for key, value in table.items() if all(_place(part) for part in key.split(","))}
    if amounts and len(amounts) == len(table):
        return fill(model, amounts)
    places: dict[str, str] = {}
    for prefix, device in table.items():
        place = _place(device)
        if place is None:
            raise NotExpressible(f"device map: {prefix}: '{device}' is no device; write a GPU's number, cpu or disk")
        places[prefix] = place
    names = module_names(model)
    layers = tuple(f"{names.layers}.{index}" for index in range(len(model.layers)))
    for prefix, place in places.items():
        inside = next((layer for layer in (*layers, *names.edges) if prefix.startswith(f"{layer}.")), None)
        if inside is not None and place != _longest(places, inside):
            raise NotExpressible(f"device map: {prefix} is not where {inside} is; give the whole module one device")
    embedding = {_longest(places, name) for name in names.embeddings}
    output = {_longest(places, name) for name in (*names.norms, names.head)}
    for kind, found in (("embeddings", embedding), ("norm and output", output)):
        if len(found) > 1:
            raise NotExpressible(f"device map: the {kind} are on {' and '.join(sorted(found))}; put them together")
    return ModulePlaces(embedding.pop(), tuple(_longest(places, layer) for layer in layers), output.pop())


def _mapping(text: str | Mapping[str, object]) -> dict[str, object]:
    if not isinstance(text, str):
        return dict(text)
    if len(text) > _LARGEST_MAP:
        raise NotExpressible("device map: longer than 1 MiB; a map has one entry per layer")
    try:
        table = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise NotExpressible(f"device map: is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise NotExpressible("device map: must be an object of modules or devices")
    return table


def _longest(places: Mapping[str, str], module: str) -> str:
    """Place by the longest prefix, as Accelerate looks it up."""
    fitting = [prefix for prefix in places if not prefix or module == prefix or module.startswith(f"{prefix}.")]
    if not fitting:
        raise NotExpressible(f"device map: {module} has no device; add it, or a prefix of it")
    return places[max(fitting, key=len)]


def fill(model: Model, amounts: Mapping[str, object]) -> ModulePlaces:
    """Whole modules in order over devices in order, each device up to its amount, to the nearest module.

    A tied output lives with the embedding; ``"0,1"`` divides its amount evenly.

    Raises:
        NotExpressible: an amount that is neither a share, a size nor ``"rest"``.
    """
    edge = float(sum(tensor.bytes for tensor in model.globals))
    head = 0.0 if model.tied else edge / 2
    sizes = [edge - head, *(float(sum(t.bytes for t in layer.tensors)) for layer in model.layers), head]
    devices = _quotas(amounts, sum(sizes))
    found: list[str] = []
    current, used = 0, 0.0
    for size in sizes:
        while current < len(devices) - 1 and used + size / 2 > devices[current][1]:
            current, used = current + 1, 0.0
        used += size
        found.append(devices[current][0])
    output = found[0] if model.tied else found[-1]
    return ModulePlaces(found[0], tuple(found[1:-1]), output)


def _quotas(amounts: Mapping[str, object], total: float) -> list[tuple[str, float]]:
    """Bytes of each device: GPUs by number, then host memory, then disk."""
    quotas: dict[str, float] = {}
    given = 0.0
    for key, amount in amounts.items():
        size = None if amount == REST else _size(key, amount, total)
        devices = [place for place in map(_place, key.split(",")) if place is not None]
        for place in devices:
            quotas[place] = -1.0 / len(devices) if size is None else size / len(devices)
        given += size or 0.0
    rest = max(0.0, total - given)
    ordered = sorted(quotas, key=lambda place: (place == DISK, place == RAM, len(place), place))
    return [(place, quotas[place] if quotas[place] >= 0 else -quotas[place] * rest) for place in ordered]


def _size(key: str, amount: object, total: float) -> float:
    if isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount <= 1:
        return float(amount) * total
    try:
        return parse_quantity(str(amount), "bytes", where=f"device map: {key}")
    except BadQuantity as error:
        raise NotExpressible(
            f"device map: {key}: '{amount}' is neither a share from 0 to 1, a size such as 20GiB, nor \"{REST}\""
        ) from error
