"""Planted truths come back: lines of latency and bandwidth, clocks, peaks; the machine that is made of them says so."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.machines import load_machine
from stowplan.machines.machine import SourceKind
from stowplan_calibrate.derive import measured_machine, request_line, size_line, throttled
from stowplan_calibrate.results import Parameter, Record, Results
from stowplan_calibrate.sampling import Sampled


def record(
    name: str, at: dict[str, Parameter], amounts: dict[str, float], seconds: float, noise: float = 0.0
) -> Record:
    rng = random.Random(f"{name}{sorted(at.items())}")
    samples = tuple(seconds * math.exp(abs(rng.gauss(0.0, noise))) for _ in range(12))
    sampled = Sampled(samples, {"host clock": (3e9, 3e9)})
    return Record(name, "cpu", at, amounts, sampled, "gcc 12.2", "2026-11-21T10:00:00+00:00")


def requests(latency: float, bandwidth: float, noise: float, name: str = "disk.read") -> list[Record]:
    return [
        record(
            name,
            {"block": block, "depth": depth, "access": "random"},
            {"bytes": 64.0 * block * depth, "operations": 64.0 * depth},
            64.0 * depth * (latency / depth + block / bandwidth),
            noise,
        )
        for block in (4096, 65536, 2**20, 2**22)
        for depth in (1, 8)
    ]


@settings(max_examples=20)
@given(st.floats(1e-6, 1e-2), st.floats(1e8, 2e10))
def test_latency_and_bandwidth_of_a_disk_come_back(latency: float, bandwidth: float) -> None:
    line = request_line(requests(latency, bandwidth, 0.0))
    assert line is not None
    assert line.latency == pytest.approx(latency, rel=0.02)
    assert line.bandwidth == pytest.approx(bandwidth, rel=0.02)


def test_noise_and_an_outlier_leave_the_line_within_its_error() -> None:
    found = requests(80e-6, 3e9, 0.05)
    found[2] = record("disk.read", dict(found[2].parameters), dict(found[2].amounts), 9 * found[2].samples.figure)
    line = request_line(found)
    assert line is not None
    assert line.latency == pytest.approx(80e-6, rel=0.1)
    assert line.bandwidth == pytest.approx(3e9, rel=0.1)


def test_too_few_sizes_make_no_line() -> None:
    assert request_line(requests(1e-4, 1e9, 0.0)[:4]) is None
    assert size_line([]) is None


def copies(latency: float, bandwidth: float, direction: str, memory: str) -> list[Record]:
    return [
        record(
            f"pcie.{direction}",
            {"gpu": 0, "bytes": size, "memory": memory},
            {"bytes": float(size)},
            latency + size / bandwidth,
            0.01,
        )
        for size in (4096 * 4**i for i in range(9))
    ]


def all_records() -> list[Record]:
    found = [
        record("host.clock", {"threads": 8}, {"operations": 4.2e9}, 1.0),
        record("host.clock", {"threads": 1}, {"operations": 5.0e9}, 1.0),
        record("host.fma", {"threads": 8}, {"flops": 32 * 8 * 4.2e9}, 1.0),
        record("host.read", {"threads": 1}, {"bytes": 20e9}, 1.0),
        record("host.read", {"threads": 4}, {"bytes": 61e9}, 1.0),
        record("host.read", {"threads": 8}, {"bytes": 58e9}, 1.0),
        record("disk.mapped", {"threads": 1, "cache": "cold"}, {"bytes": 2e9}, 1.0),
        record("disk.mapped", {"threads": 1, "cache": "warm"}, {"bytes": 9e9}, 1.0),
        record("gpu.read", {"gpu": 0, "bytes": 2**30}, {"bytes": 900e9}, 1.0),
        record("gpu.launch", {"gpu": 0, "mode": "stream"}, {"operations": 512.0}, 512 * 2.1e-6),
        record("gpu.launch", {"gpu": 0, "mode": "graph"}, {"operations": 512.0}, 512 * 1.1e-6),
        record("gpu.gemm", {"gpu": 0, "dtype": "bf16", "m": 8192}, {"flops": 150e12, "bytes": 1e9}, 1.0),
        record("gpu.gemm", {"gpu": 0, "dtype": "bf16", "m": 16}, {"flops": 20e12, "bytes": 1e9}, 1.0),
    ]
    found += requests(70e-6, 3.1e9, 0.02) + requests(20e-6, 1.4e9, 0.02, "disk.write")
    for direction, pinned, pageable in (("h2d", 24e9, 11e9), ("d2h", 25e9, 9e9)):
        found += copies(9e-6, pinned, direction, "pinned") + copies(30e-6, pageable, direction, "pageable")
    return found


def test_every_figure_of_a_machine_is_measured() -> None:
    machine = measured_machine(load_machine("rtx-4090-desktop-128"), Results(records=tuple(all_records())))
    gpu, disk = machine.gpus[0], machine.disks[0]
    assert machine.cpu.clock.value == pytest.approx(4.2e9)
    assert machine.cpu.flops_per_cycle.value == pytest.approx(32.0)
    assert machine.cpu.measured["read_bandwidth"].value == pytest.approx(61e9)
    assert disk.read.value == pytest.approx(3.1e9, rel=0.05)
    assert disk.write.value == pytest.approx(1.4e9, rel=0.05)
    assert disk.latency.value == pytest.approx(70e-6, rel=0.1)
    assert disk.page_fault_read is not None
    assert disk.page_fault_read.value == pytest.approx(2e9)
    assert gpu.measured["read_bandwidth"].value == pytest.approx(900e9)
    assert gpu.measured["h2d_pinned"].value == pytest.approx(24e9, rel=0.03)
    assert gpu.measured["d2h_pageable"].value == pytest.approx(9e9, rel=0.03)
    assert gpu.measured["launch"].value == pytest.approx(2.1e-6)
    assert gpu.measured["graph_launch"].value == pytest.approx(1.1e-6)
    assert gpu.measured["gemm_bf16"].value == pytest.approx(150e12)
    assert machine.cpu.clock.kind is SourceKind.MEASURED
    assert disk.latency.kind is SourceKind.FITTED


def test_provenance_names_tool_date_clock_and_samples() -> None:
    machine = measured_machine(load_machine("cpu-laptop-32"), Results(records=tuple(all_records())))
    told = machine.cpu.clock.source
    for words in ("2026-11-21", "gcc 12.2", "3.00 GHz", "12 samples"):
        assert words in told
    assert machine.cpu.clock.sd is not None
    assert machine.cpu.clock.sd >= 0.02


def test_what_was_not_measured_stays_as_it_was() -> None:
    before = load_machine("rtx-4090-desktop-128")
    after = measured_machine(before, Results())
    assert after == before


def test_a_second_gpu_is_not_the_first() -> None:
    before = load_machine("dual-rtx-3090-desktop-128")
    own = [record("gpu.read", {"gpu": 1, "bytes": 2**30}, {"bytes": 800e9}, 1.0)]
    after = measured_machine(before, Results(records=tuple(own)))
    assert after.gpus[0] == before.gpus[0]
    assert after.gpus[1].measured["read_bandwidth"].value == pytest.approx(800e9)


def test_two_sockets_share_what_all_cores_read() -> None:
    before = load_machine("dual-epyc-9355-rtx-pro-6000-1152")
    own = [record("host.read", {"threads": 64}, {"bytes": 900e9}, 1.0)]
    assert measured_machine(before, Results(records=tuple(own))).cpu.measured["read_bandwidth"].value == pytest.approx(
        450e9
    )


def test_throttling_is_told() -> None:
    slowing = Sampled(tuple(1.0 + 0.03 * i for i in range(15)), {"sm clock": (1.9e9, 1.2e9)})
    hot = Record("gpu.gemm", "gpu", {"gpu": 0}, {"flops": 1e12}, slowing, "nvcc", "2026-11-21T10:00:00+00:00")
    (told,) = throttled(Results(records=(hot,)))
    assert "slowed down" in told
    assert throttled(Results(records=tuple(all_records()))) == []
