"""Profiles: a machine as one TOML file, with provenance for every number, that ``--on FILE`` reads back.

The parts stand in the file itself (``[parts.KEY]``), constants of engines that were measured here under
``[constants]``. A profile is written whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile
from stowplan.machines import list_keys, load_machine
from stowplan.machines.machine import Machine, Number
from stowplan.machines.schema import SCHEMA, Field, PartKind
from stowplan.plan import write_atomically
from stowplan.units import Dimension

Document = dict[str, Any]
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_UNITS: Mapping[Dimension, tuple[str, float]] = {
    "bytes": ("B", 1.0),
    "bytes/s": ("GB/s", 1e9),
    "flop/s": ("GFLOP/s", 1e9),
    "seconds": ("us", 1e-6),
    "hertz": ("GHz", 1e9),
    "watts": ("W", 1.0),
    "money": ("USD", 1.0),
}


def machine_document(machine: Machine, dimensions: Mapping[str, Dimension] | None = None) -> Document:
    """What a profile of `machine` holds.

    Args:
        machine: with measured numbers in place.
        dimensions: what each of its constants measures; a count where it does not say.
    """
    memory_key = _memory_key(machine)
    cpu_key = _part_key(machine.cpu.key, "cpu")
    parts: Document = {cpu_key: _part("cpu", machine.cpu) | {"memory_kind": memory_key.split("-", 1)[0]}}
    gpus, disks = [], []
    for index, gpu in enumerate(machine.gpus):
        key = _unused(_part_key(gpu.key, f"gpu{index}"), parts, alike=_part("gpu", gpu))
        parts[key] = _part("gpu", gpu)
        gpus.append(f"#{key}")
    for index, disk in enumerate(machine.disks):
        key = _unused(_part_key(disk.key, f"disk{index}"), parts, alike=_part("disk", disk))
        parts[key] = _part("disk", disk)
        disks.append(f"#{key}")
    count = f"{machine.sockets}x " if machine.sockets > 1 else ""
    capacity = f"{machine.memory.capacity.value:.0f}B"
    document: Document = {
        "kind": "machine",
        "name": machine.name,
        "notes": f"written by stowplan calibrate; memory kind and channels: {machine.memory.name}"[:4096],
        "cpu": f"{count}#{cpu_key}",
        "memory": f"{memory_key}x{machine.memory.channels}:{capacity}",
        "reserved": _number(machine.reserved, "bytes"),
    }
    document |= {name: value for name, value in (("gpus", gpus), ("disks", disks)) if value}
    document |= _host_links(machine) | ({"memory_nodes": machine.nodes} if machine.nodes != machine.sockets else {})
    if machine.peer is not None:
        document["peer"] = machine.peer.key
    document["parts"] = parts
    if machine.constants:
        document["constants"] = constants_document(machine.constants, dimensions or {})
    return document


def _host_links(machine: Machine) -> Document:
    """How the GPUs sit: lanes and generation of PCIe, or another link to the host."""
    if not machine.gpus or machine.gpus[0].unified:
        return {}
    link = machine.pcie[0]
    matched = re.match(r"pcie-(\d+)\.0\Z", link.key)
    if matched is None:
        return {"host_link": link.key}
    return {"pcie_generation": int(matched[1])} | ({"pcie_lanes": link.lanes} if link.lanes else {})


def constants_document(constants: Mapping[str, Number], dimensions: Mapping[str, Dimension]) -> Document:
    """Constants by engine, then by dotted name."""
    document: Document = {}
    for name, number in sorted(constants.items()):
        dimension = dimensions.get(name, "count")
        if dimension == "ratio" and number.value > 1.0:  # a fitted share may exceed the whole
            dimension = "count"
        entry = _number(number, dimension)
        entry = {"value": entry["value"], "dimension": dimension, **{k: v for k, v in entry.items() if k != "value"}}
        engine, rest = _engine_of(name)
        table = document.setdefault(engine, {})
        *folders, last = rest.split(".")
        for folder in folders:
            table = table.setdefault(folder, {})
        table[last] = entry
    return document


def _engine_of(name: str) -> tuple[str, str]:
    """Engine and constant: an engine's own name may hold a dot, as llama.cpp's does."""
    for engine in ("ik_llama.cpp", "llama.cpp"):
        if name.startswith(f"{engine}."):
            return engine, name.removeprefix(f"{engine}.")
    engine, _, rest = name.partition(".")
    return engine, rest


def _memory_key(machine: Machine) -> str:
    """The shipped memory kind that is nearest: what a computer tells of its memory is its size."""
    known, key = list_keys("memory"), machine.memory.key
    if key in known:
        return key
    speed = round(machine.memory.channel_bandwidth.value / 8e6)
    family = key.split("-", 1)[0]
    alike = [each for each in known if each.split("-", 1)[0] == family] or ["ddr4-3200"]
    return min(alike, key=lambda each: abs(int(each.rsplit("-", 1)[1]) - speed))


def _part_key(key: str, fallback: str) -> str:
    plain = re.sub(r"[^a-z0-9.-]+", "-", Path(key).stem.lower()).strip("-.") if key else ""
    return plain or fallback


def _unused(key: str, parts: Document, alike: Document) -> str:
    """`key`, or with a number where another part has it already; equal parts share one table."""
    wanted, number = key, 1
    while wanted in parts and parts[wanted] != alike:
        number += 1
        wanted = f"{key}-{number}"
    return wanted


def _part(kind: PartKind, part: Any) -> Document:
    document: Document = {"kind": kind}
    for field in SCHEMA[kind]:
        value = getattr(part, field.name, None)
        if value is None or field.name in document:
            continue
        if field.shape in ("count", "flag") and not value:
            continue
        document[field.name] = _written(field, value)
    return document


def _written(field: Field, value: Any) -> Any:
    if isinstance(value, Number):
        assert field.dimension is not None
        return _number(value, field.dimension)
    if field.shape == "numbers":
        return _written_numbers(field, value)
    return list(value) if isinstance(value, tuple) else value


def _written_numbers(field: Field, value: Mapping[str, Number]) -> Document:
    """Members, and members by configuration where there is no figure of this very machine."""
    table: Document = {}
    for name, number in value.items():
        member, _, configuration = name.partition(":")
        entry = _number(number, field.members[member])
        if not configuration:
            table[member] = entry
        elif member not in value:
            table.setdefault(member, {})[configuration] = entry
    return table


def _number(number: Number, dimension: Dimension) -> Document:
    unit, factor = _UNITS.get(dimension, ("", 1.0))
    amount = number.value / factor
    value: Any = f"{amount:.9g} {unit}" if unit else float(f"{amount:.9g}")
    if dimension == "bytes":
        value = f"{amount:.0f} B"
    entry: Document = {"value": value, "source": number.kind.value, "where": " ".join(number.source.split())[:2000]}
    return entry if number.sd is None else entry | {"sd": float(f"{number.sd:.4g}")}


def write_profile(path: Path, document: Document) -> Machine:
    """Write a profile and read it back as ``--on`` would.

    Raises:
        BadFile: it cannot be written, or it is no machine (then nothing is left behind).
    """
    if path.suffix != ".toml":
        raise BadFile(f"{path}: a profile's name must end in .toml")
    text = toml_text(document)
    trial = path.with_name(f".{path.stem}.trial.toml")
    try:
        write_atomically(trial, text.encode())
        load_machine(str(trial))
        write_atomically(path, text.encode())
    finally:
        trial.unlink(missing_ok=True)
    return load_machine(str(path))


def read_profile(path: Path) -> Document:
    """The raw contents of a profile, checked to be a machine.

    Raises:
        InputError: not a machine's file.
    """
    load_machine(str(path))
    return dict(read_toml(path))


def toml_text(document: Document) -> str:
    """TOML of nested tables; tables that hold a ``value`` are written on one line."""
    return "\n".join(_lines(document, ())) + "\n"


def _lines(table: Document, path: tuple[str, ...]) -> Iterator[str]:
    below = {key: value for key, value in table.items() if isinstance(value, dict) and "value" not in value}
    own = {key: value for key, value in table.items() if key not in below}
    if path and (own or not below):
        yield ""
        yield f"[{'.'.join(_key(part) for part in path)}]"
    for key, value in own.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, inner in below.items():
        yield from _lines(inner, (*path, key))


def _key(key: str) -> str:
    return key if _BARE.match(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    escaped = "".join(_escaped(character) for character in str(value))
    return f'"{escaped}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
