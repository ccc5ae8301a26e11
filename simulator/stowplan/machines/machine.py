"""What a machine is, once its parts have been read and composed. SI floats inside; every number knows its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class SourceKind(StrEnum):
    """How a number came to be known, best first."""

    MEASURED = "measured"
    FITTED = "fitted"
    DATASHEET = "datasheet"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Number:
    """A physical number in SI units with its provenance.

    Attributes:
        value: SI value (bytes, bytes/s, FLOP/s, seconds, hertz, watts).
        kind: measured, fitted, datasheet or assumed.
        source: where it was read or how it was measured.
        sd: relative standard deviation, where the source states one.
    """

    value: float
    kind: SourceKind
    source: str
    sd: float | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator.

    Attributes:
        key: stable kebab-case name of its file.
        name: name for people.
        vendor: nvidia, amd, apple or intel.
        memory: capacity in bytes.
        bandwidth: datasheet memory bandwidth in bytes/s.
        peaks: dense peak FLOP/s by arithmetic: fp32 (vector), fp16 (matrix unit, fp32 accumulation), bf16, fp8,
            int8, fp4. An arithmetic that the device lacks is absent.
        units: streaming multiprocessors, compute units or GPU cores.
        clock: boost clock in hertz.
        pcie_generation, pcie_lanes: host interface; generation 0 for unified memory.
        measured: achieved figures by name: read_bandwidth, copy_bandwidth, h2d_pinned, d2h_pinned, h2d_pageable,
            d2h_pageable (bytes/s), launch, graph_launch (seconds), gemm_fp16, gemm_bf16, gemm_fp8 (FLOP/s).
        unified: whether its memory is the host's.
        unified_share: share of the host's memory that the GPU may use, when unified.
        peer_link: key of the GPU-to-GPU link (such as nvlink-4), or None for PCIe through the host.
        process: manufacturing process (n4, 8n, 12n, 16n; n4-hbm, n7-hbm with HBM), which decides the energy of an
            operation; None if unknown.
        power: board power in watts; price: US dollars; both optional.
    """

    key: str
    name: str
    vendor: str
    memory: Number
    bandwidth: Number
    peaks: Mapping[str, Number]
    units: Number | None
    clock: Number | None
    pcie_generation: int
    pcie_lanes: int
    measured: Mapping[str, Number] = field(default_factory=dict)
    unified: bool = False
    unified_share: Number | None = None
    peer_link: str | None = None
    process: str | None = None
    power: Number | None = None
    price: Number | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """One processor package (socket).

    Attributes:
        cores: physical cores of one socket (performance cores where the kinds differ).
        isa: vector instruction sets, such as ("avx2", "avx512", "vnni", "amx") or ("neon", "dotprod").
        clock: sustained all-core clock in hertz.
        flops_per_cycle: fp32 fused multiply-add FLOPs per core and cycle.
        memory_channels: channels that the socket has.
        memory_kind: the memory it takes, such as ddr5.
        bandwidth_ceiling: what the fabric between cores and memory passes, where it binds before the channels do.
        measured: achieved bytes/s of one socket by memory configuration, such as ``read_bandwidth:ddr5-6000x2`` (kind x
            channels of the socket); plain ``read_bandwidth`` is what this very machine reaches, whatever its memory.
        pcie_generation: generation of its own lanes.
        pcie_lanes: lanes of one socket that accelerators can use; several GPUs share them.
        socket_link: key of what joins two sockets of it, all links together; None if nobody says.
        memory_clusters: groups of channels of one socket that firmware interleaves apart where an odd number of
            channels is populated, so that it cannot interleave all of them.
    """

    key: str
    name: str
    cores: int
    isa: tuple[str, ...]
    clock: Number
    flops_per_cycle: Number
    memory_channels: int
    memory_kind: str
    pcie_generation: int
    pcie_lanes: int = 16
    bandwidth_ceiling: Number | None = None
    measured: Mapping[str, Number] = field(default_factory=dict)
    power: Number | None = None
    price: Number | None = None
    socket_link: str | None = None
    memory_clusters: int = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """Host memory as it is fitted.

    Attributes:
        channels: populated channels over all sockets.
        channel_bandwidth: peak bytes/s of one channel.
        capacity: bytes over all sockets.
    """

    key: str
    name: str
    channels: int
    channel_bandwidth: Number
    capacity: Number
    price: Number | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """One SSD or disk.

    Attributes:
        read, write: sequential bytes/s with large requests at depth.
        latency: seconds of one small read.
        page_fault_read: bytes/s through memory-mapped page faults.
    """

    key: str
    name: str
    capacity: Number
    read: Number
    write: Number
    latency: Number
    page_fault_read: Number | None = None
    price: Number | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A connection: a PCIe lane group, NVLink, UPI or a network; bytes/s in each direction."""

    key: str
    name: str
    bandwidth: Number
    latency: Number
    lanes: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Parts composed into one host.

    Attributes:
        key: the machine's file name, or the composition text that made it.
        spec: text after ``--on`` that rebuilds this machine, overrides excluded.
        overrides: the ``--set path=value`` pairs applied, in order.
        constants: constants of engines' kernels that were measured here, by name such as ``llama.cpp.cpu.gemv.q4_k``;
            they replace the shipped ones.
        gpus: accelerators in device order; empty on a CPU-only machine.
        cpu, sockets: processor and how many of it.
        memory: host memory; for unified machines also the GPU's.
        disks: in order of preference; empty when nothing may be read from disk.
        pcie: effective link of each GPU to the host, in device order (already the lesser of GPU and CPU side).
        peer: GPU-to-GPU link, None when copies go through the host.
        network: network links by key.
        reserved: bytes of host memory that the operating system and other programs keep.
        nodes: parts into which firmware divides the memory, each interleaved over its own channels: one for each
            socket, more with clusters in a socket (NPS4), one in all where it interleaves over the sockets (NPS0).
        socket_link: the links between two sockets, all together, raw in each direction; None with one socket.
    """

    key: str
    name: str
    spec: str
    gpus: tuple[Gpu, ...]
    cpu: Cpu
    sockets: int
    memory: Memory
    disks: tuple[Disk, ...]
    pcie: tuple[Link, ...]
    peer: Link | None
    network: Mapping[str, Link]
    reserved: Number
    nodes: int = 1
    socket_link: Link | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    constants: Mapping[str, Number] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """The overrides as ``--set`` takes them: ``path=value``."""
        return [f"{path}={value}" for path, value in self.overrides]

    @property
    def interleave_sets(self) -> int:
        """Parts of the memory that are interleaved each over channels of their own: the nodes, or smaller ones.

        An odd number of channels makes disjoint regions, each within a group of channels (Dell, Balanced Memory with
        2nd Generation AMD EPYC Processors for PowerEdge Servers, 2020, guideline 4.2).
        """
        own, rest = divmod(self.memory.channels, self.sockets)
        even = rest == 0 and (own == 1 or own % 2 == 0)
        return self.nodes if even else max(self.nodes, self.cpu.memory_clusters * self.sockets)

    @property
    def cores(self) -> int:
        """Physical cores over all sockets."""
        return self.cpu.cores * self.sockets
