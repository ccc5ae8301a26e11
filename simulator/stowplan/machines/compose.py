"""Machines from their parts: by key, from a file, from a composition text, or as found on this computer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stowplan.errors import BadFile, InputError, UnknownName
from stowplan.machines import library
from stowplan.machines.constants import read_constants
from stowplan.machines.library import given
from stowplan.machines.machine import Cpu, Disk, Gpu, Link, Machine, Memory, Number, SourceKind
from stowplan.machines.overrides import apply_overrides
from stowplan.machines.schema import PartKind, bounded_quantity, read_part
from stowplan.units import format_bytes

_COUNTED = re.compile(r"(\d{1,4})\s*x\s+(\S.*)\Z")
_MEMORY = re.compile(r"([a-z0-9][a-z0-9.-]*?)\s*x\s*(\d{1,4})\s*:\s*(.+)\Z")
_MOST_GPUS = 64
_MOST_SPEC = 4096


@dataclass
class _Parts:
    """Parts of a machine while they are collected."""

    gpus: list[Gpu] = field(default_factory=list)
    cpu: Cpu | None = None
    sockets: int = 1
    memory: Memory | None = None
    disks: list[Disk] = field(default_factory=list)
    network: dict[str, Link] = field(default_factory=dict)
    pcie_lanes: int | None = None
    pcie_generation: int | None = None
    host_link: Link | None = None
    peer: Link | None = None
    reserved: Number | None = None
    memory_bandwidth: Number | None = None
    memory_nodes: int | None = None


def load_machine(spec: str, overrides: Sequence[str] = ()) -> Machine:
    """The machine that a text after ``--on`` means.

    Args:
        spec: a machine's key; the path of a machine's TOML file; parts joined by ``+`` such as
            ``2x rtx-3090 + ryzen-9-7950x + ddr5-5600x2:128GiB + samsung-990-pro:4TB``; or ``auto`` for this computer.
        overrides: changes such as ``gpu.pcie.lanes=4``, applied in order (see `overrides.OVERRIDES`).

    Raises:
        UnknownName: a machine, part or override path that does not exist.
        InputError: parts that do not make a machine, or a wrong value.
    """
    text = spec.strip()
    if not text or len(text) > _MOST_SPEC:
        raise InputError("--on needs a machine's name, a TOML file, parts joined by ' + ', or auto")
    if text == "auto":
        from stowplan.machines.probe import probe_machine

        machine = probe_machine()
    elif "+" in text:
        machine = _composed(text)
    elif library.names_a_file(text) or library.has_part("machine", text):
        machine = _from_file(text)
    else:
        raise _not_a_machine(text)
    return apply_overrides(machine, overrides)


def parse_memory(text: str, where: str = "memory") -> Memory:
    """Memory written as kind x channels : capacity, such as ``ddr5-5600x2:128GiB``.

    Raises:
        InputError: not in that form. UnknownName: no such kind.
    """
    matched = _MEMORY.match(text.strip())
    if matched is None:
        raise InputError(f"{where}: '{text}' must be kind x channels : capacity, such as ddr5-5600x2:128GiB")
    kind, channels, capacity = matched[1], matched[2], matched[3]
    count = int(bounded_quantity(int(channels), "count", f"{where}: channels of '{text}'"))
    size = bounded_quantity(capacity, "bytes", f"{where}: capacity of '{text}'")
    return library.load_memory(kind, count, given(size, "as fitted"))


def join_parts(
    *,
    key: str,
    spec: str,
    gpus: Sequence[Gpu],
    cpu: Cpu,
    memory: Memory,
    disks: Sequence[Disk] = (),
    sockets: int = 1,
    name: str | None = None,
    reserved: Number | None = None,
    nodes: int = 0,
) -> Machine:
    """A machine from parts that are already built, with 0 `nodes` one memory node for each socket."""
    parts = _Parts(list(gpus), cpu, sockets, memory, list(disks), reserved=reserved, memory_nodes=nodes or None)
    return _join(parts, key, spec, name)


def _not_a_machine(text: str) -> InputError:
    for kind in ("gpu", "cpu", "disk"):
        if library.has_part(kind, text):
            return InputError(
                f"'{text}' is a {kind}, not a machine; join parts, such as "
                "'rtx-4090 + ryzen-9-7950x + ddr5-5600x2:128GiB + samsung-990-pro'"
            )
    return UnknownName("machine", text, library.list_keys("machine"))


def _composed(text: str) -> Machine:
    parts = _Parts()
    for item in text.split("+"):
        if not item.strip():
            raise InputError(f"'{text}' has an empty part; write parts joined by single ' + '")
        _add_item(parts, item.strip(), text)
    spec = " + ".join(item.strip() for item in text.split("+"))
    return _join(parts, spec, spec, None)


def _add_item(parts: _Parts, item: str, text: str) -> None:
    if _MEMORY.match(item):
        if parts.memory is not None:
            raise InputError(f"'{text}' names two memories; give one, with all channels: kind x channels : capacity")
        parts.memory = parse_memory(item, f"'{text}'")
        return
    count, name = _counted(item)
    kind = _kind_of(name)
    if kind == "gpu":
        _add_gpus(parts, count, name, text)
    elif kind == "cpu":
        if parts.cpu is not None:
            raise InputError(f"'{text}' names two CPUs; for two sockets of one kind write '2x {name}'")
        parts.cpu, parts.sockets = library.load_cpu(name), count
    elif kind == "disk":
        _add_disks(parts, item)
    elif kind == "link":
        parts.network[name] = library.load_link(name)
    elif kind == "memory":
        raise InputError(f"'{name}' needs channels and capacity, such as '{name}x2:128GiB'")
    else:
        raise InputError(f"'{name}' is a whole machine; use it alone, or join parts")


def _kind_of(name: str) -> PartKind:
    """Kind of a part by its key (a disk's capacity aside) or by what its file says."""
    if library.names_a_file(name):
        return library.kind_of_file(Path(name).expanduser())
    stem = name.split(":", 1)[0].strip()
    kinds: tuple[PartKind, ...] = ("gpu", "cpu", "disk", "memory", "link", "machine")
    for kind in kinds:
        if library.has_part(kind, stem):
            return kind
    raise UnknownName("part", stem, [key for kind in kinds for key in library.list_keys(kind)])


def _counted(item: str) -> tuple[int, str]:
    """Count and name of ``8x h100-sxm``; the count is 1 where none is written."""
    matched = _COUNTED.match(item)
    if matched is None:
        return 1, item
    count = int(matched[1])
    if not 1 <= count <= _MOST_GPUS:
        raise InputError(f"'{item}': the count must lie between 1 and {_MOST_GPUS}")
    return count, matched[2].strip()


def _add_gpus(parts: _Parts, count: int, name: str, where: str) -> None:
    if len(parts.gpus) + count > _MOST_GPUS:
        raise InputError(f"{where}: more than {_MOST_GPUS} GPUs in one machine")
    parts.gpus += [library.load_gpu(name)] * count


def _add_disks(parts: _Parts, item: str) -> None:
    """``samsung-990-pro``, ``samsung-990-pro:4TB`` or ``2x samsung-990-pro:4TB``."""
    count, name = _counted(item)
    stem, _, size = name.partition(":")
    capacity = given(bounded_quantity(size.strip(), "bytes", f"capacity of '{item}'"), "as fitted") if size else None
    parts.disks += [library.load_disk(stem.strip(), capacity)] * count


def _from_file(spec: str) -> Machine:
    path = library.find_file("machine", spec)
    raw = dict(library.read_raw(path))
    raw.pop("parts", None)  # read where the machine names them
    constants = read_constants(raw.pop("constants", {}), str(path))
    fields = read_part("machine", raw, str(path))
    try:
        machine = _join(_parts_of(fields, path), path.stem, spec, fields["name"])
        return replace(machine, constants=constants)
    except BadFile:
        raise
    except InputError as error:
        raise BadFile(f"{path}: {error}") from error


def _parts_of(fields: Mapping[str, Any], path: Path) -> _Parts:
    parts = _Parts(
        pcie_lanes=fields.get("pcie_lanes"),
        pcie_generation=fields.get("pcie_generation"),
        reserved=fields.get("reserved"),
        memory_bandwidth=fields.get("memory_bandwidth"),
        memory_nodes=fields.get("memory_nodes"),
    )
    for item in fields.get("gpus", ()):
        count, name = _counted(item)
        _add_gpus(parts, count, _beside(name, path), "gpus")
    parts.sockets, name = _counted(fields["cpu"])
    parts.cpu = library.load_cpu(_beside(name, path))
    parts.memory = parse_memory(fields["memory"])
    for item in fields.get("disks", ()):
        _add_disks(parts, item if not library.names_a_file(item) else _beside(item, path))
    for item in fields.get("network", ()):
        parts.network[item] = library.load_link(item)
    if "host_link" in fields:
        parts.host_link = library.load_link(fields["host_link"])
    if "peer" in fields:
        parts.peer = library.load_link(fields["peer"])
    return parts


def _beside(name: str, path: Path) -> str:
    """A part's file is looked for beside the machine's file, and ``#key`` in it."""
    if name.startswith("#"):
        return f"{path}{name}"
    return str(path.parent / Path(name).expanduser()) if library.names_a_file(name) else name


def _join(parts: _Parts, key: str, spec: str, name: str | None) -> Machine:
    cpu, memory = parts.cpu, parts.memory
    if cpu is None:
        raise InputError(f"'{spec}' names no CPU; add one, such as ' + ryzen-9-7950x' (see `stowplan list cpus`)")
    if memory is None:
        raise InputError(f"'{spec}' names no memory; add kind x channels : capacity, such as ' + ddr5-5600x2:128GiB'")
    _check_memory(cpu, parts.sockets, memory)
    if parts.memory_bandwidth is not None:
        per_socket = replace(parts.memory_bandwidth, value=parts.memory_bandwidth.value / parts.sockets)
        cpu = replace(cpu, measured={**cpu.measured, "read_bandwidth": per_socket})
    gpus = tuple(_with_host_memory(gpu, memory) for gpu in parts.gpus)
    return Machine(
        key=key,
        name=name or _describe(gpus, cpu, parts.sockets, memory, parts.disks),
        spec=spec,
        gpus=gpus,
        cpu=cpu,
        sockets=parts.sockets,
        memory=memory,
        disks=tuple(parts.disks),
        pcie=tuple(_host_link(gpu, cpu, memory, parts) for gpu in gpus),
        peer=_peer(gpus, parts.peer),
        network=parts.network,
        reserved=parts.reserved or _usual_reserve(memory),
        nodes=parts.memory_nodes or parts.sockets,
        socket_link=_socket_link(cpu, parts.sockets),
    )


def _socket_link(cpu: Cpu, sockets: int) -> Link | None:
    return library.load_link(cpu.socket_link) if sockets > 1 and cpu.socket_link is not None else None


def _check_memory(cpu: Cpu, sockets: int, memory: Memory) -> None:
    family = memory.key.split("-", 1)[0]
    if family not in cpu.memory_kind.split("/"):
        raise InputError(f"{cpu.name} takes {cpu.memory_kind}, not {memory.key}; see `stowplan list memory`")
    slots = cpu.memory_channels * sockets
    if memory.channels > slots:
        raise InputError(
            f"{memory.channels} memory channels are named, but {sockets} x {cpu.name} has {slots}; "
            f"write {memory.key}x{slots}:{format_bytes(memory.capacity.value).replace(' ', '')}"
        )


def _with_host_memory(gpu: Gpu, memory: Memory) -> Gpu:
    """A unified GPU's capacity is its share of the memory that is fitted."""
    if not gpu.unified or gpu.unified_share is None:
        return gpu
    share = gpu.unified_share
    size = Number(share.value * memory.capacity.value, share.kind, f"share of host memory: {share.source}", share.sd)
    return replace(gpu, memory=size)


def _host_link(gpu: Gpu, cpu: Cpu, memory: Memory, parts: _Parts) -> Link:
    if gpu.unified:
        peak = replace(memory.channel_bandwidth, value=memory.channel_bandwidth.value * memory.channels)
        none = Number(0.0, SourceKind.DATASHEET, "one memory for both")
        return Link("unified", "unified memory", peak, none)
    if parts.host_link is not None:
        return parts.host_link
    generation = min(gpu.pcie_generation, cpu.pcie_generation, parts.pcie_generation or gpu.pcie_generation)
    discrete = sum(not each.unified for each in parts.gpus)
    available = parts.pcie_lanes or cpu.pcie_lanes * parts.sockets // discrete
    return pcie_link(generation, min(gpu.pcie_lanes, _power_of_two(available)))


def pcie_link(generation: int, lanes: int) -> Link:
    """A group of PCIe lanes; raises UnknownName for a generation without a profile."""
    lane = library.load_link(f"pcie-{generation}.0")
    bandwidth = replace(lane.bandwidth, value=lane.bandwidth.value * lanes)
    return Link(lane.key, f"PCIe {generation}.0 x{lanes}", bandwidth, lane.latency, lanes)


def _power_of_two(lanes: int) -> int:
    return 1 << (max(lanes, 1).bit_length() - 1)


def _peer(gpus: Sequence[Gpu], stated: Link | None) -> Link | None:
    """The stated link, else the one that all GPUs have; none for a single GPU."""
    if len(gpus) < 2:
        return None
    if stated is not None:
        return stated
    keys = {gpu.peer_link for gpu in gpus}
    key = keys.pop()
    return library.load_link(key) if key is not None and not keys else None


def _usual_reserve(memory: Memory) -> Number:
    """The usual reserve, but never more than an eighth of a small memory."""
    usual = library.shared_rates()["reserved"]
    return replace(usual, value=min(usual.value, memory.capacity.value / 8))


def _describe(gpus: Sequence[Gpu], cpu: Cpu, sockets: int, memory: Memory, disks: Sequence[Disk]) -> str:
    counts: dict[str, int] = {}
    for gpu in gpus:
        shown = gpu.name if gpu.unified else f"{gpu.name} {format_bytes(gpu.memory.value)}"
        counts[shown] = counts.get(shown, 0) + 1
    shown_gpus = [f"{count}x {shown}" if count > 1 else shown for shown, count in counts.items()]
    shown_cpu = f"{sockets}x {cpu.name}" if sockets > 1 else cpu.name
    shown_memory = f"{format_bytes(memory.capacity.value)} {memory.name} ({memory.channels} ch)"
    hardware = " + ".join([*shown_gpus, shown_cpu])
    return ", ".join([hardware, " + ".join([shown_memory, *(disk.name for disk in disks)])])
