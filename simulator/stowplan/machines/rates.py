"""What the parts of a machine reach, each as a `Number` that carries its provenance and spread.

A measured figure is used where it was measured on the same configuration; otherwise the peak times a fraction that was
fitted over many machines (``hwprofiles/rates.toml``). The fraction's spread is the spread of such an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from stowplan.errors import InputError
from stowplan.machines.library import shared_rates
from stowplan.machines.machine import Cpu, Disk, Gpu, Link, Machine, Number, SourceKind

DEFAULT_SD: Mapping[SourceKind, float] = {
    SourceKind.MEASURED: 0.03,
    SourceKind.FITTED: 0.08,
    SourceKind.DATASHEET: 0.10,
    SourceKind.ASSUMED: 0.25,
}
"""Relative standard deviation of a number whose source states none.

Measured figures repeat within a few per cent between runs; fitted ones scatter as their data does; a datasheet peak is
exact, but what is reached of it is not; an assumed number may be a quarter off.
"""

# An arithmetic that a device lacks is done in the next one that it has.
_STAND_IN: Mapping[str, tuple[str, ...]] = {
    "fp4": ("fp8", "fp16", "bf16", "fp32"),
    "fp8": ("fp16", "bf16", "fp32"),
    "int8": ("fp16", "bf16", "fp32"),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "fp32": (),
}
_CONFIGURATION = re.compile(r"read_bandwidth:[a-z0-9]+-(\d+)x(\d+)\Z")
_PCIE = re.compile(r"pcie-(\d+)\.0\Z")


def relative_sd(number: Number) -> float:
    """The number's own relative standard deviation, or the usual one of its source kind."""
    return DEFAULT_SD[number.kind] if number.sd is None else number.sd


def dram_bandwidth(machine: Machine) -> Number:
    """Bytes/s that all cores together read from host memory, over all sockets.

    Measured for this machine or for its memory kind and channels per socket; otherwise a fitted share of the channels'
    peak, within the fabric's ceiling, and consistent with what the same CPU reaches with more or with fewer channels.
    """
    cpu, memory, sockets = machine.cpu, machine.memory, machine.sockets
    own = cpu.measured.get("read_bandwidth")
    if own is None and memory.channels % sockets == 0:
        own = cpu.measured.get(f"read_bandwidth:{memory.key}x{memory.channels // sockets}")
        if own is not None and not _is_nominal(machine):
            own = None
    if own is not None:
        return replace(own, value=own.value * sockets)
    fraction = shared_rates()["dram_desktop" if cpu.memory_channels <= 2 else "dram_server"]
    peak = memory.channel_bandwidth.value * memory.channels / sockets
    estimate = fraction.value * peak
    source = f"{fraction.source}, times {memory.channels} channels of {memory.name}"
    if cpu.bandwidth_ceiling is not None and cpu.bandwidth_ceiling.value < estimate:
        estimate, source = cpu.bandwidth_ceiling.value, f"fabric ceiling: {cpu.bandwidth_ceiling.source}"
        fraction = cpu.bandwidth_ceiling
    lower, upper = _neighbours(cpu, peak)
    bounded = max(lower, min(estimate, upper))
    kind = SourceKind.ASSUMED if SourceKind.ASSUMED in (fraction.kind, memory.channel_bandwidth.kind) else fraction.kind
    sd = max(relative_sd(fraction), relative_sd(memory.channel_bandwidth) if kind is SourceKind.ASSUMED else 0.0)
    return Number(bounded * sockets, kind, source, sd)


def _is_nominal(machine: Machine) -> bool:
    """Whether the channels run at the speed that the memory kind's name says, as they did where it was measured."""
    matched = re.search(r"-(\d+)\Z", machine.memory.key)
    nominal = 8e6 * int(matched[1]) if matched else 0.0
    return abs(machine.memory.channel_bandwidth.value - nominal) <= 0.01 * nominal


def _neighbours(cpu: Cpu, peak: float) -> tuple[float, float]:
    """What configurations with a lower peak reach at least, and those with a higher peak at most."""
    lower, upper = 0.0, float("inf")
    for name, number in cpu.measured.items():
        matched = _CONFIGURATION.match(name)
        if matched is None:
            continue
        measured_peak = 8e6 * int(matched[1]) * int(matched[2])
        if measured_peak <= peak:
            lower = max(lower, number.value)
        if measured_peak >= peak:
            upper = min(upper, number.value)
    return lower, upper


def gpu_read_bandwidth(gpu: Gpu) -> Number:
    """Bytes/s that a well-occupied kernel reads from the GPU's memory."""
    measured = gpu.measured.get("read_bandwidth")
    return measured if measured is not None else _share(gpu.bandwidth, shared_rates()["gpu_read"])


def host_to_device(machine: Machine, index: int = 0, *, pinned: bool = True) -> Number:
    """Bytes/s of large copies from host memory to one GPU, in one direction at a time."""
    return _copy(machine, index, "h2d", pinned)


def device_to_host(machine: Machine, index: int = 0, *, pinned: bool = True) -> Number:
    """Bytes/s of large copies from one GPU to host memory, in one direction at a time."""
    return _copy(machine, index, "d2h", pinned)


def _copy(machine: Machine, index: int, direction: str, pinned: bool) -> Number:
    if not 0 <= index < len(machine.gpus):
        raise InputError(f"{machine.key} has {len(machine.gpus)} GPU(s); there is no GPU {index}")
    gpu, link = machine.gpus[index], machine.pcie[index]
    dram = dram_bandwidth(machine)
    if gpu.unified:
        # Within one memory every byte copied is read and written.
        return replace(dram, value=dram.value / 2)
    at_profile = _is_profile_link(gpu, link)
    rate = gpu.measured.get(f"{direction}_pinned") if at_profile else None
    if rate is None:
        rate = _share(link.bandwidth, shared_rates()["link_pinned"])
    if not pinned:
        measured = gpu.measured.get(f"{direction}_pageable") if at_profile else None
        rate = measured if measured is not None else _share(rate, shared_rates()["link_pageable"])
    return rate if rate.value <= dram.value else dram


def _is_profile_link(gpu: Gpu, link: Link) -> bool:
    """Whether the GPU sits on the link that its own profile was measured with."""
    matched = _PCIE.match(link.key)
    return matched is not None and (int(matched[1]), link.lanes) == (gpu.pcie_generation, gpu.pcie_lanes)


def gpu_to_gpu(machine: Machine) -> Number:
    """Bytes/s of large copies from one GPU to another, in each direction.

    Raises:
        InputError: the machine has fewer than two GPUs.
    """
    if len(machine.gpus) < 2:
        raise InputError(f"{machine.key} has {len(machine.gpus)} GPU(s); copies between GPUs need two")
    if machine.peer is not None:
        return _share(machine.peer.bandwidth, shared_rates()["link_pinned"])
    count = range(len(machine.gpus))
    copies = [copy(machine, index) for index in count for copy in (host_to_device, device_to_host)]
    return _share(min(copies, key=lambda rate: rate.value), shared_rates()["peer_through_host"])


def socket_link(machine: Machine) -> Number | None:
    """Bytes/s that one socket reads of another's memory while it reads nothing else; None with one socket."""
    if machine.sockets < 2:
        return None
    shared = shared_rates()
    if machine.socket_link is not None:
        return _share(machine.socket_link.bandwidth, shared["socket_link"])
    dram = dram_bandwidth(machine)
    return _share(replace(dram, value=dram.value / machine.sockets), shared["socket_link_of_dram"])


def disk_read(disk: Disk) -> Number:
    """Bytes/s of sequential reads with large requests at depth."""
    return disk.read


def page_fault_read(disk: Disk) -> Number:
    """Bytes/s of reading a memory-mapped file by page faults."""
    if disk.page_fault_read is not None:
        return disk.page_fault_read
    rates = shared_rates()
    estimate, ceiling = _share(disk.read, rates["page_fault_share"]), rates["page_fault_ceiling"]
    return estimate if estimate.value <= ceiling.value else ceiling


def peak(gpu: Gpu, arithmetic: str) -> Number:
    """FLOP/s of a dense peak; for an arithmetic that the device lacks, that of the one that stands in for it.

    Raises:
        InputError: no such arithmetic, or no peak from which it could be had.
    """
    if arithmetic not in _STAND_IN:
        raise InputError(f"no arithmetic is called '{arithmetic}'; it is one of {', '.join(_STAND_IN)}")
    for name in (arithmetic, *_STAND_IN[arithmetic]):
        if name in gpu.peaks:
            return gpu.peaks[name]
    raise InputError(f"{gpu.key} states no peak for {arithmetic}; give one with gpu.{arithmetic}=...")


def flop_energy(gpu: Gpu) -> Number | None:
    """Joules of the board per FLOP of large products, by its manufacturing process; None where nobody measured it."""
    return shared_rates().get(f"flop_energy_{gpu.process}")


def launch_overhead(gpu: Gpu, *, graph: bool = False) -> Number:
    """Seconds that one small kernel costs in a stream, or in a captured graph."""
    name = "graph_launch" if graph else "launch"
    measured = gpu.measured.get(name)
    return measured if measured is not None else shared_rates()[name]


def _share(whole: Number, fraction: Number) -> Number:
    """A fitted fraction of a number; the fraction's spread covers datasheet peaks, since it was fitted on them."""
    nominal = whole.kind is SourceKind.DATASHEET
    kind = SourceKind.ASSUMED if SourceKind.ASSUMED in (whole.kind, fraction.kind) else fraction.kind
    own = 0.0 if nominal else relative_sd(whole)
    sd = (own**2 + relative_sd(fraction) ** 2) ** 0.5
    return Number(whole.value * fraction.value, kind, f"{fraction.source}, of {whole.source}", sd)
