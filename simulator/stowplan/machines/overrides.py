"""Changes to a machine, written ``path=value``: one table says which paths exist and what each does.

``gpu`` means every GPU and ``gpu1`` the second one; ``disk`` and ``disk0`` likewise. Nominal figures (capacity, peak,
bandwidth) scale the measured ones with them, so that the share of the peak that is reached stays what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stowplan.errors import InputError, UnknownName
from stowplan.machines.library import given
from stowplan.machines.machine import Disk, Gpu, Link, Machine, Number, SourceKind
from stowplan.machines.schema import ARITHMETICS, bounded_quantity
from stowplan.units import Dimension, format_bytes

_MOST_OVERRIDES = 256
_INDEXED = re.compile(r"(gpu|disk)(\d{1,3})?\.(.+)\Z")
_READ, _FETCH = "read_bandwidth", ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable")

Change = Callable[[Machine, int, float], Machine]


@dataclass(frozen=True, slots=True)
class Override:
    """One path that may be set.

    Attributes:
        dimension: what the value measures.
        meaning: for people.
        change: the machine with the value at device `index` (0 where the path has no devices).
    """

    dimension: Dimension
    meaning: str
    change: Change


def apply_overrides(machine: Machine, overrides: Sequence[str]) -> Machine:
    """The machine with all ``path=value`` changes made, in order, and recorded in its `overrides`.

    Raises:
        UnknownName: no such path. InputError: not ``path=value``, no such device, or a wrong value.
    """
    if len(overrides) > _MOST_OVERRIDES:
        raise InputError(f"more than {_MOST_OVERRIDES} overrides; write a machine file instead")
    for text in overrides:
        path, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not path or not value:
            raise InputError(f"'{text[:80]}' must be path=value, such as gpu.pcie.lanes=4 or memory.capacity=256GiB")
        machine = _apply(machine, path, value)
        machine = replace(machine, overrides=(*machine.overrides, (path, value)))
    return machine


def _apply(machine: Machine, path: str, value: str) -> Machine:
    matched = _INDEXED.match(path)
    name = f"{matched[1]}.{matched[3]}" if matched else path
    if name not in OVERRIDES:
        raise UnknownName("override path", path[:80], OVERRIDES)
    override = OVERRIDES[name]
    number = bounded_quantity(value, override.dimension, path)
    if override.dimension == "count" and number != int(number):
        raise InputError(f"{path}: '{value}' must be a whole number")
    for index in _devices(machine, path, matched[1], matched[2]) if matched else (0,):
        machine = override.change(machine, index, number)
    return machine


def _devices(machine: Machine, path: str, device: str, index: str | None) -> Sequence[int]:
    count = len(machine.gpus) if device == "gpu" else len(machine.disks)
    if count == 0:
        raise InputError(f"{path}: {machine.key} has no {device}")
    if index is None:
        return range(count)
    if int(index) >= count:
        raise InputError(f"{path}: {machine.key} has {count} {device}(s), counted from 0")
    return (int(index),)


def _with_gpu(machine: Machine, index: int, gpu: Gpu) -> Machine:
    return replace(machine, gpus=(*machine.gpus[:index], gpu, *machine.gpus[index + 1 :]))


def _scaled(measured: Mapping[str, Number], names: Sequence[str], factor: float) -> dict[str, Number]:
    """Measured figures after a nominal one changed by `factor`: no longer measured, but in proportion."""
    return {
        name: Number(number.value * factor, SourceKind.FITTED, f"in proportion to: {number.source}", number.sd)
        if name in names
        else number
        for name, number in measured.items()
    }


def _gpu_number(field: str) -> Change:
    def change(machine: Machine, index: int, value: float) -> Machine:
        gpu = machine.gpus[index]
        number = given(value)
        match field:
            case "units":
                gpu = replace(gpu, units=number)
            case "clock":
                gpu = replace(gpu, clock=number)
            case "power":
                gpu = replace(gpu, power=number)
            case _:
                gpu = replace(gpu, price=number)
        return _with_gpu(machine, index, gpu)

    return change


def _gpu_memory(machine: Machine, index: int, value: float) -> Machine:
    """Capacity; of a GPU in the host's memory, the share of it that the GPU may use."""
    gpu, whole = machine.gpus[index], machine.memory.capacity.value
    if gpu.unified and value > whole:
        raise InputError(
            f"gpu{index}.memory={format_bytes(value)}: {gpu.name} shares the {format_bytes(whole)} of the host; "
            f"write at most that, or set memory.capacity first"
        )
    share = given(value / whole) if gpu.unified else None
    return _with_gpu(machine, index, replace(gpu, memory=given(value), unified_share=share))


def _gpu_bandwidth(machine: Machine, index: int, value: float) -> Machine:
    gpu = machine.gpus[index]
    measured = _scaled(gpu.measured, (_READ, "copy_bandwidth"), value / gpu.bandwidth.value)
    return _with_gpu(machine, index, replace(gpu, bandwidth=given(value), measured=measured))


def _gpu_peak(arithmetic: str) -> Change:
    def change(machine: Machine, index: int, value: float) -> Machine:
        gpu = machine.gpus[index]
        measured = gpu.measured
        if arithmetic in gpu.peaks:
            measured = _scaled(measured, (f"gemm_{arithmetic}",), value / gpu.peaks[arithmetic].value)
        peaks = {**gpu.peaks, arithmetic: given(value)}
        return _with_gpu(machine, index, replace(gpu, peaks=peaks, measured=measured))

    return change


def _gpu_measured(name: str) -> Change:
    def change(machine: Machine, index: int, value: float) -> Machine:
        gpu = machine.gpus[index]
        measured = {**gpu.measured, name: given(value, kind=SourceKind.MEASURED)}
        if name in _FETCH:
            gpu = _at_this_link(gpu, machine.pcie[index])
            measured = {key: number for key, number in measured.items() if key in gpu.measured or key == name}
        return _with_gpu(machine, index, replace(gpu, measured=measured))

    return change


def _at_this_link(gpu: Gpu, link: Link) -> Gpu:
    """The GPU with its profile's link set to the one it has here, so that what is measured here holds for it.

    Copies measured at the profile's own link are forgotten when that link is another.
    """
    generation = _generation(link)
    if gpu.unified or generation is None or (generation, link.lanes) == (gpu.pcie_generation, gpu.pcie_lanes):
        return gpu
    kept = {name: number for name, number in gpu.measured.items() if name not in _FETCH}
    return replace(gpu, pcie_generation=generation, pcie_lanes=link.lanes or gpu.pcie_lanes, measured=kept)


def _generation(link: Link) -> int | None:
    matched = re.match(r"pcie-(\d+)\.0\Z", link.key)
    return int(matched[1]) if matched else None


def _pcie(field: str) -> Change:
    def change(machine: Machine, index: int, value: float) -> Machine:
        from stowplan.machines.compose import pcie_link

        present = machine.pcie[index]
        generation = _generation(present)
        if generation is None:
            raise InputError(f"gpu{index}.pcie.{field}: {machine.key} joins GPU and host by {present.name}, not PCIe")
        lanes = present.lanes or 1
        if field == "lanes":
            if value > 32:
                raise InputError(f"gpu{index}.pcie.lanes: {value:.0f} lanes; PCIe joins 1 to 32")
            lanes = int(value)
        else:
            generation = int(value)
        link = pcie_link(generation, lanes)
        return replace(machine, pcie=(*machine.pcie[:index], link, *machine.pcie[index + 1 :]))

    return change


def _memory_capacity(machine: Machine, _: int, value: float) -> Machine:
    old = machine.memory.capacity.value
    gpus = tuple(
        replace(gpu, memory=replace(gpu.memory, value=gpu.memory.value * value / old)) if gpu.unified else gpu
        for gpu in machine.gpus
    )
    return replace(machine, gpus=gpus, memory=replace(machine.memory, capacity=given(value)))


def _memory_channels(machine: Machine, _: int, value: float) -> Machine:
    return replace(machine, memory=replace(machine.memory, channels=int(value)))


def _memory_channel_bandwidth(machine: Machine, _: int, value: float) -> Machine:
    return replace(machine, memory=replace(machine.memory, channel_bandwidth=given(value)))


def _memory_bandwidth(machine: Machine, _: int, value: float) -> Machine:
    per_socket = given(value / machine.sockets, kind=SourceKind.MEASURED)
    return replace(machine, cpu=replace(machine.cpu, measured={**machine.cpu.measured, _READ: per_socket}))


def _memory_nodes(machine: Machine, _: int, value: float) -> Machine:
    nodes = int(value)
    if nodes != 1 and nodes % machine.sockets:
        raise InputError(
            f"memory.nodes={nodes}: {machine.key} has {machine.sockets} socket(s), each divided alike; write 1 for one "
            f"node over all of them, or a multiple of {machine.sockets}"
        )
    return replace(machine, nodes=nodes)


def _socket_link_bandwidth(machine: Machine, _: int, value: float) -> Machine:
    if machine.sockets < 2:
        raise InputError(f"socket_link.bandwidth: {machine.key} has one socket")
    latency = given(0.0) if machine.socket_link is None else machine.socket_link.latency
    link = Link("given", "link between the sockets", given(value), latency)
    return replace(machine, socket_link=link)


def _cpu_cores(machine: Machine, _: int, value: float) -> Machine:
    return replace(machine, cpu=replace(machine.cpu, cores=int(value)))


def _cpu_clock(machine: Machine, _: int, value: float) -> Machine:
    return replace(machine, cpu=replace(machine.cpu, clock=given(value)))


def _reserved(machine: Machine, _: int, value: float) -> Machine:
    return replace(machine, reserved=given(value))


def _disk(edit: Callable[[Disk, Number], Disk], kind: SourceKind) -> Change:
    def change(machine: Machine, index: int, value: float) -> Machine:
        disk = edit(machine.disks[index], given(value, kind=kind))
        return replace(machine, disks=(*machine.disks[:index], disk, *machine.disks[index + 1 :]))

    return change


def _peer_bandwidth(machine: Machine, _: int, value: float) -> Machine:
    if machine.peer is None:
        raise InputError(f"peer.bandwidth: {machine.key} has no link between GPUs; copies go through the host")
    return replace(machine, peer=replace(machine.peer, bandwidth=given(value)))


OVERRIDES: Mapping[str, Override] = {
    "gpu.memory": Override("bytes", "capacity of the GPU; its limit where it shares the host's", _gpu_memory),
    "gpu.bandwidth": Override("bytes/s", "datasheet bandwidth of the GPU's memory", _gpu_bandwidth),
    "gpu.read_bandwidth": Override("bytes/s", "measured read bandwidth of the GPU", _gpu_measured(_READ)),
    "gpu.units": Override("count", "multiprocessors, compute units or cores", _gpu_number("units")),
    "gpu.clock": Override("hertz", "boost clock of the GPU", _gpu_number("clock")),
    "gpu.power": Override("watts", "board power", _gpu_number("power")),
    "gpu.price": Override("money", "price of one GPU", _gpu_number("price")),
    **{f"gpu.{each}": Override("flop/s", f"dense {each} peak", _gpu_peak(each)) for each in ARITHMETICS},
    "gpu.pcie.lanes": Override("count", "lanes between the GPU and the host", _pcie("lanes")),
    "gpu.pcie.generation": Override("count", "PCIe generation between the GPU and the host", _pcie("generation")),
    "gpu.h2d": Override("bytes/s", "measured pinned copies to the GPU", _gpu_measured("h2d_pinned")),
    "gpu.d2h": Override("bytes/s", "measured pinned copies from the GPU", _gpu_measured("d2h_pinned")),
    "gpu.h2d_pageable": Override("bytes/s", "measured pageable copies to the GPU", _gpu_measured("h2d_pageable")),
    "gpu.d2h_pageable": Override("bytes/s", "measured pageable copies from the GPU", _gpu_measured("d2h_pageable")),
    "gpu.launch": Override("seconds", "measured cost of one small kernel", _gpu_measured("launch")),
    "memory.capacity": Override("bytes", "capacity of host memory", _memory_capacity),
    "memory.channels": Override("count", "memory channels over all sockets", _memory_channels),
    "memory.channel_bandwidth": Override("bytes/s", "peak of one channel", _memory_channel_bandwidth),
    "memory.bandwidth": Override("bytes/s", "measured read bandwidth of host memory", _memory_bandwidth),
    "memory.nodes": Override("count", "memory nodes over all sockets: 8 for NPS4 on two, 1 for NPS0", _memory_nodes),
    "socket_link.bandwidth": Override("bytes/s", "raw links between two sockets, each way", _socket_link_bandwidth),
    "cpu.cores": Override("count", "physical cores of one socket", _cpu_cores),
    "cpu.clock": Override("hertz", "sustained all-core clock", _cpu_clock),
    "disk.capacity": Override(
        "bytes",
        "capacity of the disk",
        _disk(lambda disk, n: replace(disk, capacity=n), SourceKind.DATASHEET),
    ),
    "disk.read": Override(
        "bytes/s",
        "measured sequential read",
        _disk(lambda disk, n: replace(disk, read=n), SourceKind.MEASURED),
    ),
    "disk.write": Override(
        "bytes/s",
        "measured sequential write",
        _disk(lambda disk, n: replace(disk, write=n), SourceKind.MEASURED),
    ),
    "disk.latency": Override(
        "seconds",
        "time of one small read",
        _disk(lambda disk, n: replace(disk, latency=n), SourceKind.MEASURED),
    ),
    "disk.page_fault_read": Override(
        "bytes/s",
        "measured reading through memory-mapped page faults",
        _disk(lambda disk, n: replace(disk, page_fault_read=n), SourceKind.MEASURED),
    ),
    "peer.bandwidth": Override("bytes/s", "raw bandwidth between two GPUs, each way", _peer_bandwidth),
    "reserved": Override("bytes", "host memory kept by the system", _reserved),
}
