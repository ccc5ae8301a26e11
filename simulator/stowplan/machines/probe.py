"""This computer as a machine: what the operating system tells, nothing written and nothing measured.

Thin readers fetch texts; pure functions turn texts into facts, so that recorded texts of any computer can be replayed.
What cannot be known without measuring (memory speed, disk speed) is marked as assumed with a wide spread.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stowplan.errors import InputError
from stowplan.machines import library
from stowplan.machines.compose import join_parts
from stowplan.machines.library import given
from stowplan.machines.machine import Cpu, Disk, Gpu, Machine, Memory, Number, SourceKind
from stowplan.machines.nvml import NvmlGpu, read_nvml

_CALIBRATE = "unknown until measured; run a calibration"
_LONGEST_TEXT = 2**22
_MOST_DISKS = 64
_SECTOR = 512
_ISA_FLAGS: Mapping[str, str] = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx512_bf16": "bf16",
    "avx_vnni": "avx-vnni",
    "amx_tile": "amx",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve2": "sve2",
    "bf16": "bf16",
}
_NOT_DISKS = re.compile(r"(loop|ram|zram|sr|fd|dm-|md|nbd)")


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """What ``/proc/cpuinfo`` or sysctl says: model, sockets, physical cores of one socket, instruction sets, hertz."""

    model: str
    sockets: int
    cores: int
    isa: tuple[str, ...]
    clock: float | None


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What ``/sys/block`` says of one disk."""

    device: str
    model: str
    size: float
    rotational: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was found out about a computer; `nodes` counts the parts of its memory, 0 where nobody tells."""

    cpu: CpuFacts
    memory: float
    disks: tuple[DiskFacts, ...] = ()
    gpus: tuple[NvmlGpu, ...] = field(default=())
    nodes: int = 0


def probe_machine() -> Machine:
    """The machine that this process runs on.

    Raises:
        InputError: an operating system whose hardware cannot be read.
    """
    system = platform.system()
    if system == "Linux":
        cpu = parse_cpuinfo(_read(Path("/proc/cpuinfo")), platform.machine())
        memory = parse_meminfo(_read(Path("/proc/meminfo")))
        limit = parse_memory_limit(_read(Path("/sys/fs/cgroup/memory.max")))
        disks, nodes = read_disks(Path("/sys/block")), read_nodes(Path("/sys/devices/system/node"))
        found = Found(cpu, min(memory, limit or memory), disks, read_nvml(), nodes)
    elif system == "Darwin":
        found = parse_sysctl(_sysctl())
    else:
        raise InputError(f"--on auto cannot read the hardware of {system}; name a machine or its parts")
    return machine_of(found)


def machine_of(found: Found) -> Machine:
    """A machine from what was found; parts that the library knows by their reported names are taken from there."""
    cpu = _cpu_part(found.cpu)
    memory = _memory_part(cpu, found.cpu.sockets, found.memory)
    gpus = [_gpu_part(each) for each in found.gpus]
    apple = _apple_gpu(found.cpu.model)
    return join_parts(
        key="auto",
        spec="auto",
        gpus=[*gpus, *apple],
        cpu=cpu if memory.key.split("-", 1)[0] in cpu.memory_kind.split("/") else replace(cpu, memory_kind=memory.key),
        sockets=found.cpu.sockets,
        memory=memory,
        disks=[_disk_part(each) for each in found.disks],
        nodes=found.nodes if found.nodes == 1 or found.nodes % found.cpu.sockets == 0 else 0,
    )


def parse_cpuinfo(text: str, architecture: str = "x86_64") -> CpuFacts:
    """Facts from the text of ``/proc/cpuinfo``; tolerant of containers and of Arm, whose texts say little."""
    model, clock, flags = "", None, ""
    cores_of: dict[str, set[str]] = {}
    physical = core = "0"
    processors = 0
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        match name:
            case "processor":
                processors += 1
                physical, core = "0", value
            case "physical id":
                physical = value
            case "core id":
                core = value
                cores_of.setdefault(physical, set()).add(core)
            case "model name" | "Model":
                model = model or value
            case "cpu MHz":
                clock = max(clock or 0.0, _float(value) * 1e6)
            case "flags" | "Features":
                flags = flags or value
            case _:
                pass
    sockets = max(len(cores_of), 1)
    cores = max((len(each) for each in cores_of.values()), default=max(processors, 1))
    isa = tuple(dict.fromkeys(name for flag, name in _ISA_FLAGS.items() if flag in flags.split()))
    return CpuFacts(model or f"unnamed {architecture} CPU", sockets, cores, isa, clock or None)


def read_nodes(folder: Path) -> int:
    """Memory nodes that the system has numbered in ``/sys/devices/system/node``; 0 where it numbers none."""
    if not folder.is_dir():
        return 0
    return sum(1 for each in folder.iterdir() if re.fullmatch(r"node\d{1,4}", each.name))


def parse_meminfo(text: str) -> float:
    """Bytes of host memory from the text of ``/proc/meminfo``.

    Raises:
        InputError: no MemTotal line.
    """
    matched = re.search(r"^MemTotal:\s*(\d{1,15})\s*kB", text, re.MULTILINE)
    if matched is None or int(matched[1]) == 0:
        raise InputError("--on auto finds no MemTotal in /proc/meminfo; name a machine or its parts")
    return float(matched[1]) * 1024


def parse_memory_limit(text: str) -> float | None:
    """Bytes that a container may use, or None where there is no limit."""
    return float(text) if re.fullmatch(r"\s*[1-9]\d{0,17}\s*", text) else None


def parse_sysctl(text: str) -> Found:
    """Facts from the text of ``sysctl`` on macOS, lines of ``name: value``.

    Raises:
        InputError: no memory size.
    """
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, _, value in pairs}
    size = _float(values.get("hw.memsize", ""))
    if size <= 0:
        raise InputError("--on auto finds no hw.memsize in sysctl; name a machine or its parts")
    model = values.get("machdep.cpu.brand_string", "unnamed CPU")
    cores = values.get("hw.perflevel0.physicalcpu") or values.get("hw.physicalcpu", "1")
    arm = model.startswith("Apple")
    flags = values.get("machdep.cpu.leaf7_features", "").upper()
    isa = ("neon", "dotprod") if arm else (("avx2",) if "AVX2" in flags else ())
    clock = _float(values.get("hw.cpufrequency", "")) or None
    return Found(CpuFacts(model, 1, max(int(_float(cores)), 1), isa, clock), size)


def read_disks(folder: Path) -> tuple[DiskFacts, ...]:
    """Disks under ``/sys/block`` (or a copy of it), solid-state first; only small text files are read."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ()
    disks = []
    for name in names[:_MOST_DISKS]:
        size = _float(_read(folder / name / "size")) * _SECTOR
        if _NOT_DISKS.match(name) or size <= 0:
            continue
        model = _read(folder / name / "device" / "model").strip() or name
        # Virtual disks claim to rotate whatever lies under them.
        virtual = name.startswith(("vd", "xvd"))
        rotational = _read(folder / name / "queue" / "rotational").strip() == "1" and not virtual
        disks.append(DiskFacts(name, model, size, rotational))
    return tuple(sorted(disks, key=lambda disk: (disk.rotational, disk.device)))


def _cpu_part(facts: CpuFacts) -> Cpu:
    key = library.find_reported("cpu", facts.model)
    if key is not None:
        # A virtual machine has fewer cores; the system's count includes efficiency cores, the profile's does not.
        known = library.load_cpu(key)
        return replace(known, cores=min(known.cores, facts.cores))
    wide = 64 if "avx512" in facts.isa else 32
    server = re.search(r"epyc|xeon|threadripper|ampere|graviton|neoverse", facts.model, re.IGNORECASE) is not None
    channels = 8 if server else 2
    clock = facts.clock or 2.5e9
    return Cpu(
        key="unknown-cpu",
        name=facts.model[:80],
        cores=facts.cores,
        isa=facts.isa,
        clock=Number(clock, SourceKind.ASSUMED, "as the system reports it now" if facts.clock else _CALIBRATE, 0.2),
        flops_per_cycle=Number(wide, SourceKind.ASSUMED, "by its vector instruction sets", 0.5),
        memory_channels=channels,
        memory_kind="unknown",
        pcie_generation=4,
        pcie_lanes=64 if server else 16,
        # A virtual machine or container has a few cores of a large socket: a core alone reads about 10 GB/s.
        bandwidth_ceiling=Number(10e9 * facts.cores, SourceKind.ASSUMED, f"10 GB/s a core; {_CALIBRATE}", 0.5),
    )


def _memory_part(cpu: Cpu, sockets: int, size: float) -> Memory:
    """Memory of the size found; its kind and speed are assumed from the CPU's family."""
    family = cpu.memory_kind.split("/")[-1]
    usual = {"ddr4": 3200, "ddr5": 4800, "lpddr5": 6400, "lpddr5x": 7500}.get(family, 3200)
    if cpu.key.startswith("apple") and family == "lpddr5x":
        usual = 8533
    speed = Number(usual * 8e6, SourceKind.ASSUMED, f"{usual} MT/s assumed; {_CALIBRATE}", 0.3)
    capacity = given(size, "as the system reports it", SourceKind.MEASURED)
    return Memory(family, f"{family} memory of unknown speed", cpu.memory_channels * sockets, speed, capacity)


def _disk_part(facts: DiskFacts) -> Disk:
    capacity = given(facts.size, "as the system reports it", SourceKind.MEASURED)
    key = library.find_reported("disk", facts.model)
    if key is not None:
        return library.load_disk(key, capacity)
    like = "hdd-7200" if facts.rotational else "nvme-gen4"
    if not facts.rotational and facts.device.startswith("sd"):
        like = "samsung-860-qvo"
    usual = library.load_disk(like, capacity)
    return replace(
        usual,
        key=facts.device,
        name=facts.model[:80],
        read=_unknown(usual.read),
        write=_unknown(usual.write),
        latency=_unknown(usual.latency),
        page_fault_read=None if usual.page_fault_read is None else _unknown(usual.page_fault_read),
        price=None,
    )


def _unknown(usual: Number) -> Number:
    return Number(usual.value, SourceKind.ASSUMED, _CALIBRATE, 0.5)


def _gpu_part(found: NvmlGpu) -> Gpu:
    """The library's GPU of that name with what the driver says of this one, or one from the driver alone."""
    key = library.find_reported("gpu", found.name)
    if key is None:
        return _unknown_gpu(found)
    gpu = library.load_gpu(key)
    if gpu.unified:
        return gpu
    if abs(found.memory - gpu.memory.value) > 0.1 * gpu.memory.value:
        gpu = replace(gpu, memory=given(found.memory, "as the driver reports it", SourceKind.MEASURED))
    if (found.pcie_generation, found.pcie_lanes) != (gpu.pcie_generation, gpu.pcie_lanes):
        copies = {name: number for name, number in gpu.measured.items() if not name.startswith(("h2d", "d2h"))}
        gpu = replace(
            gpu,
            pcie_generation=found.pcie_generation or gpu.pcie_generation,
            pcie_lanes=found.pcie_lanes or gpu.pcie_lanes,
            measured=copies if found.pcie_lanes else gpu.measured,
        )
    return gpu


def _unknown_gpu(found: NvmlGpu) -> Gpu:
    """A GPU without a profile: bandwidth and vector peak follow from what the driver says, the rest is assumed.

    Raises:
        InputError: the driver does not say enough.
    """
    if min(found.memory, found.bus_bits, found.memory_clock, found.cores, found.clock) <= 0:
        raise InputError(
            f"--on auto finds the GPU '{found.name[:80]}', of which no profile and no driver says enough; "
            "name the machine's parts, or write a profile for the GPU into the folder that STOWPLAN_PROFILES names"
        )
    vector = 2 * found.cores * found.clock
    return Gpu(
        key="unknown-gpu",
        name=found.name[:80],
        vendor="nvidia",
        memory=given(found.memory, "as the driver reports it", SourceKind.MEASURED),
        bandwidth=Number(
            found.bus_bits / 8 * 2 * found.memory_clock, SourceKind.ASSUMED, "bus width x memory clock", 0.1
        ),
        peaks={
            "fp32": Number(vector, SourceKind.ASSUMED, "2 x cores x clock as the driver reports them", 0.1),
            "fp16": Number(2 * vector, SourceKind.ASSUMED, f"twice the vector peak; {_CALIBRATE}", 0.5),
        },
        units=None,
        clock=given(found.clock, "as the driver reports it"),
        pcie_generation=found.pcie_generation or 3,
        pcie_lanes=found.pcie_lanes or 8,
    )


def _apple_gpu(model: str) -> Sequence[Gpu]:
    """An Apple chip's GPU has the chip's name."""
    key = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return [library.load_gpu(key)] if key.startswith("apple-") and library.has_part("gpu", key) else []


def _read(path: Path) -> str:
    """Text of a system file, empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_TEXT).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl() -> str:
    names = ("hw.memsize", "hw.physicalcpu", "hw.perflevel0.physicalcpu", "hw.cpufrequency")
    command = ["/usr/sbin/sysctl", *names, "machdep.cpu.brand_string", "machdep.cpu.leaf7_features"]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _float(text: str) -> float:
    matched = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*", text)
    return float(matched[1]) if matched else 0.0
