"""`stowplan list`: names and the few facts by which one is told from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Json
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.machines.machine import Number

Rows = tuple[list[str], list[list[str]]]

_KINDS = ("machines", "gpus", "cpus", "memory", "disks", "links", "models", "formats", "mixes", "systems")


def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(_KINDS)}.")],
    json: Json = False,
) -> None:
    """List names."""
    from stowplan.cli import tables

    if kind not in _KINDS:
        raise InputError(f"there is no list of '{kind[:40]}'; it is one of {', '.join(_KINDS)}")
    header, rows = _LISTS[kind]()
    if json:
        from stowplan.cli.documents import as_json
        from stowplan.cli.listing_document import list_document

        tables.print_verbatim(as_json(list_document([dict(zip(header, row, strict=True)) for row in rows])))
        return
    tables.print_lines(tables.table(header, rows))


def _machines() -> Rows:
    from stowplan.machines import list_keys, load_machine

    return ["machine", "what it is"], [[key, load_machine(key).name] for key in list_keys("machine")]


def _gpus() -> Rows:
    from stowplan.machines import list_keys, load_gpu
    from stowplan.units import format_bytes, format_rate

    rows = []
    for key in list_keys("gpu"):
        gpu = load_gpu(key)
        peak = _peak(gpu.peaks)
        rows.append([key, format_bytes(gpu.memory.value), format_rate(gpu.bandwidth.value), peak, gpu.name])
    return ["gpu", "memory", "bandwidth", "fp16", "name"], rows


def _peak(peaks: Mapping[str, Number]) -> str:
    from stowplan.units import format_rate

    found = peaks.get("fp16") or peaks.get("bf16")
    return format_rate(found.value, "FLOP/s") if found else "-"


def _cpus() -> Rows:
    from stowplan.machines import list_keys, load_cpu

    rows = []
    for key in list_keys("cpu"):
        cpu = load_cpu(key)
        rows.append([key, str(cpu.cores), f"{cpu.memory_channels} x {cpu.memory_kind}", cpu.name])
    return ["cpu", "cores", "memory", "name"], rows


def _memory() -> Rows:
    from stowplan.machines import list_keys
    from stowplan.machines.library import given, load_memory
    from stowplan.units import format_rate

    rows = []
    for key in list_keys("memory"):
        memory = load_memory(key, 1, given(1.0))
        rows.append([key, format_rate(memory.channel_bandwidth.value), memory.name])
    return ["memory", "per channel", "name"], rows


def _disks() -> Rows:
    from stowplan.machines import list_keys, load_disk
    from stowplan.units import format_rate

    rows = []
    for key in list_keys("disk"):
        disk = load_disk(key)
        rows.append([key, format_rate(disk.read.value), format_rate(disk.write.value), disk.name])
    return ["disk", "read", "write", "name"], rows


def _links() -> Rows:
    from stowplan.machines import list_keys, load_link
    from stowplan.units import format_rate, format_seconds

    rows = []
    for key in list_keys("link"):
        link = load_link(key)
        lanes = f" per {link.lanes} lane{'s' if link.lanes > 1 else ''}" if link.lanes else ""
        rate = f"{format_rate(link.bandwidth.value)}{lanes}"
        rows.append([key, rate, format_seconds(link.latency.value), link.name])
    return ["link", "each way", "latency", "name"], rows


def _models() -> Rows:
    from stowplan.models import list_models, load_facts

    rows = []
    for key in list_models():
        facts = load_facts(key)
        experts = f"{facts.experts.active} of {facts.experts.total}" if facts.experts else "-"
        published = f"{facts.published / 1e9:.3g} B" if facts.published else "-"
        rows.append([key, published, str(facts.layers), experts, str(facts.max_context), facts.name])
    return ["model", "parameters", "layers", "experts", "context", "name"], rows


def _formats() -> Rows:
    from stowplan.models import formats

    rows = [[key, f"{each.bits_per_weight:.4g}", str(each.block), each.family] for key, each in formats().items()]
    return ["format", "bits per weight", "block", "family"], rows


def _mixes() -> Rows:
    from stowplan.models import mixes
    from stowplan.models.mixes import GgufMix

    rows = []
    for key, mix in mixes().items():
        if isinstance(mix, GgufMix):
            rows.append([key, "GGUF", f"{mix.base}, more bits where they matter" if mix.rules else mix.base])
        else:
            rows.append([key, "checkpoint", f"{mix.packed} matrices, the rest {mix.rest}"])
    return ["mix", "file", "what it is"], rows


def _systems() -> Rows:
    from stowplan.cli.showing import first_sentence
    from stowplan.systems import list_systems, load_system
    from stowplan.systems.published import load_published, published_keys

    rows = []
    for key in list_systems():
        system = load_system(key)
        rows.append([key, first_sentence(type(system).__module__)])
    rows += [[key, load_published(key).idea] for key in published_keys() if key not in list_systems()]
    return ["system", "what it does"], rows


_LISTS: Mapping[str, Callable[[], Rows]] = {
    "machines": _machines,
    "gpus": _gpus,
    "cpus": _cpus,
    "memory": _memory,
    "disks": _disks,
    "links": _links,
    "models": _models,
    "formats": _formats,
    "mixes": _mixes,
    "systems": _systems,
}
