"""The probe on recorded texts, on a stand-in for the driver's library, and on this very machine."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.machines import SourceKind, load_machine
from stowplan.machines import rates as r
from stowplan.machines.nvml import NvmlGpu, read_nvml
from stowplan.machines.probe import (
    CpuFacts,
    DiskFacts,
    Found,
    machine_of,
    parse_cpuinfo,
    parse_meminfo,
    parse_memory_limit,
    parse_sysctl,
    read_disks,
    read_nodes,
)

GIB = 2**30
DESKTOP_CPU = CpuFacts("AMD Ryzen 9 7950X 16-Core Processor", 1, 16, ("avx2", "avx512"), 4.5e9)


def cpuinfo(model: str, sockets: int, cores: int, threads: int, flags: str) -> str:
    blocks, processor = [], 0
    for socket in range(sockets):
        for core in range(cores):
            for _ in range(threads):
                blocks.append(
                    f"processor\t: {processor}\nvendor_id\t: x\nmodel name\t: {model}\ncpu MHz\t\t: 4500.000\n"
                    f"physical id\t: {socket}\ncore id\t\t: {core}\ncpu cores\t: {cores}\nflags\t\t: {flags}\n"
                )
                processor += 1
    return "\n".join(blocks)


def test_cpuinfo_counts_physical_cores_per_socket() -> None:
    text = cpuinfo("AMD EPYC 9355 32-Core Processor", 2, 32, 2, "fpu avx2 fma f16c avx512f avx512_vnni avx512_bf16")
    facts = parse_cpuinfo(text)
    assert (facts.sockets, facts.cores) == (2, 32)
    assert facts.isa == ("avx2", "fma", "f16c", "avx512", "vnni", "bf16")
    assert facts.clock == 4.5e9


def test_cpuinfo_of_arm_and_of_nothing() -> None:
    arm = "".join(
        f"processor\t: {i}\nFeatures\t: fp asimd asimddp sve2 i8mm bf16\nCPU part\t: 0xd4f\n\n" for i in range(4)
    )
    facts = parse_cpuinfo(arm, "aarch64")
    assert (facts.model, facts.sockets, facts.cores) == ("unnamed aarch64 CPU", 1, 4)
    assert facts.isa == ("neon", "dotprod", "i8mm", "sve2", "bf16")
    assert parse_cpuinfo("").cores == 1


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=300))
def test_parsers_survive_any_text(text: str) -> None:
    assert parse_cpuinfo(text).cores >= 1
    parse_memory_limit(text)
    for parse in (parse_meminfo, parse_sysctl):
        try:
            parse(text)
        except InputError:
            continue


def test_meminfo_and_limits() -> None:
    assert parse_meminfo("MemTotal:       131072000 kB\nMemFree: 1 kB\n") == 131072000 * 1024
    with pytest.raises(InputError, match="MemTotal"):
        parse_meminfo("MemFree: 1 kB")
    assert parse_memory_limit("max\n") is None
    assert parse_memory_limit("8589934592\n") == 8 * GIB
    assert parse_memory_limit("") is None


def test_a_known_desktop_becomes_its_library_parts() -> None:
    gpu = NvmlGpu("NVIDIA GeForce RTX 4090", 25757220864.0, 4, 16)
    disk = DiskFacts("nvme0n1", "Samsung SSD 990 PRO 2TB", 2e12, False)
    machine = machine_of(Found(DESKTOP_CPU, 128 * GIB, (disk,), (gpu,)))
    assert (machine.cpu.key, machine.gpus[0].key, machine.disks[0].key) == (
        "ryzen-9-7950x",
        "rtx-4090",
        "samsung-990-pro",
    )
    assert machine.spec == "auto"
    assert r.host_to_device(machine).kind is SourceKind.MEASURED
    assert r.dram_bandwidth(machine).kind is SourceKind.ASSUMED


def test_memory_nodes_are_those_that_the_system_numbers(tmp_path: Path) -> None:
    for name in ("node0", "node1", "node10", "possible", "online", "nodes"):
        (tmp_path / name).mkdir()
    assert read_nodes(tmp_path) == 3
    assert read_nodes(tmp_path / "absent") == 0
    server = CpuFacts("AMD EPYC 9355 32-Core Processor", 2, 32, ("avx2", "avx512"), 3.9e9)
    nodes = [machine_of(Found(server, 768 * GIB, nodes=count)).nodes for count in (0, 1, 2, 3, 8)]
    assert nodes == [2, 1, 2, 2, 8]


def test_a_gpu_on_a_narrow_link_loses_what_was_measured_on_a_wide_one() -> None:
    gpu = NvmlGpu("NVIDIA GeForce RTX 4090", 25757220864.0, 4, 4)
    machine = machine_of(Found(DESKTOP_CPU, 128 * GIB, (), (gpu,)))
    assert machine.pcie[0].lanes == 4
    assert r.host_to_device(machine).value < 8e9


def test_an_unknown_gpu_is_built_from_the_driver() -> None:
    gpu = NvmlGpu("NVIDIA GeForce RTX 3090 of nowhere", 24 * GIB, 4, 16, 384, 9751e6, 1695e6, 10496)
    machine = machine_of(Found(DESKTOP_CPU, 64 * GIB, (), (gpu,)))
    assert machine.gpus[0].bandwidth.value == pytest.approx(936e9, rel=0.001)
    assert machine.gpus[0].peaks["fp32"].value == pytest.approx(35.6e12, rel=0.01)
    assert machine.gpus[0].bandwidth.kind is SourceKind.ASSUMED
    with pytest.raises(InputError, match="mystery"):
        machine_of(Found(DESKTOP_CPU, 64 * GIB, (), (NvmlGpu("mystery", 24 * GIB, 4, 16),)))


def test_unknown_parts_say_that_they_are_assumed() -> None:
    disk = DiskFacts("nvme0n1", "Nobody's NVMe", 1e12, False)
    machine = machine_of(Found(CpuFacts("Some CPU", 1, 4, ("avx2",), None), 16 * GIB, (disk,)))
    dram = r.dram_bandwidth(machine)
    assert dram.kind is SourceKind.ASSUMED
    assert "calibration" in dram.source
    assert r.relative_sd(dram) >= 0.3
    assert machine.disks[0].read.kind is SourceKind.ASSUMED
    assert machine.memory.capacity.value == 16 * GIB


def test_a_mac_from_sysctl() -> None:
    text = "hw.memsize: 137438953472\nhw.physicalcpu: 16\nhw.perflevel0.physicalcpu: 12\n"
    machine = machine_of(parse_sysctl(text + "machdep.cpu.brand_string: Apple M4 Max\n"))
    assert (machine.cpu.key, machine.gpus[0].key) == ("apple-m4-max-cpu", "apple-m4-max")
    assert machine.gpus[0].memory.value == pytest.approx(0.75 * 128 * GIB)
    with pytest.raises(InputError, match=r"hw\.memsize"):
        parse_sysctl("")


def test_disks_of_a_recorded_sys_block(tmp_path: Path) -> None:
    for name, size, rotational, model in (
        ("sda", 15628053168, "1", "ST8000"),
        ("nvme0n1", 3907029168, "0", "Samsung SSD 990 PRO 2TB "),
        ("vda", 100000, "1", ""),
        ("loop0", 100, "0", ""),
        ("sdb", 0, "0", "card reader"),
    ):
        (tmp_path / name / "queue").mkdir(parents=True)
        (tmp_path / name / "device").mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
        (tmp_path / name / "queue" / "rotational").write_text(f"{rotational}\n")
        (tmp_path / name / "device" / "model").write_text(f"{model}\n")
    disks = read_disks(tmp_path)
    assert [disk.device for disk in disks] == ["nvme0n1", "vda", "sda"]
    assert disks[0].size == 3907029168 * 512
    assert [disk.rotational for disk in disks] == [False, False, True]
    assert read_disks(tmp_path / "absent") == ()


class FakeNvml:
    """Answers like the driver's library; pointers are filled as C would."""

    def __init__(self, count: int = 1, starts: bool = True) -> None:
        self.count, self.starts, self.stopped = count, starts, False

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0 if self.starts else 9

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.stopped = True
        return 0

    def nvmlDeviceGetCount_v2(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self.count
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> int:  # noqa: N802
        out._obj.value = 1000 + index.value
        return 0

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, length: Any) -> int:  # noqa: N802
        buffer.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, out: Any) -> int:  # noqa: N802
        out._obj.total = 150754820096
        return 0

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any, out: Any) -> int:  # noqa: N802
        out._obj.value = 5
        return 0

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any, out: Any) -> int:  # noqa: N802
        return 3


def test_nvml_is_read_through_its_c_interface() -> None:
    fake = FakeNvml(2)
    gpus = read_nvml(lambda _: cast(ctypes.CDLL, fake))
    assert gpus == (NvmlGpu("NVIDIA H200", 150754820096.0, 5, 0),) * 2
    assert fake.stopped
    assert read_nvml(lambda _: cast(ctypes.CDLL, FakeNvml(starts=False))) == ()


def test_no_driver_means_no_gpu() -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(name)

    assert read_nvml(absent) == ()
    assert read_nvml(lambda _: cast(ctypes.CDLL, object())) == ()


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc of Linux")
def test_this_machine() -> None:
    machine = load_machine("auto", ["memory.bandwidth=20GB/s"])
    assert machine.cores >= 1
    assert machine.memory.capacity.value > 2**28
    assert r.dram_bandwidth(machine).value == pytest.approx(20e9)
    again = load_machine(machine.spec, [f"{path}={value}" for path, value in machine.overrides])
    assert (again.cpu.isa, again.memory, again.disks) == (machine.cpu.isa, machine.memory, machine.disks)
