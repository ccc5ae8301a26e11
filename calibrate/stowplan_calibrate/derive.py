"""From samples to the figures of a machine: each a number with its spread and with how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stowplan.errors import StowplanError
from stowplan.machines.machine import Cpu, Disk, Gpu, Machine, Number, SourceKind
from stowplan_calibrate.results import Record, Results

_LEAST_SD = 0.02
"""Relative standard deviation below which no figure is claimed to be known: two runs on one machine differ by that."""
_Z95 = 1.96
_LARGE_BLOCK = 2**18


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted ``latency + size / bandwidth``: seconds and amounts per second, with relative standard errors."""

    latency: float
    bandwidth: float
    latency_sd: float
    bandwidth_sd: float
    spread: float
    samples: int


def measured_machine(machine: Machine, results: Results) -> Machine:
    """The machine with every figure that was measured in place of the datasheet's; the rest stays as it was."""
    gpus = tuple(measured_gpu(gpu, results, index) for index, gpu in enumerate(machine.gpus))
    disks = tuple(measured_disk(disk, results) if index == 0 else disk for index, disk in enumerate(machine.disks))
    return replace(machine, cpu=measured_cpu(machine.cpu, results, machine.sockets), disks=disks, gpus=gpus)


def measured_cpu(cpu: Cpu, results: Results, sockets: int = 1) -> Cpu:
    """Clock under load, vector peak per cycle, and read bandwidth of one socket."""
    clocks = _at_most_threads(results.named("host.clock"))
    if clocks is not None:
        clock = number(clocks, clocks.rate("operations"), "dependent additions on all cores")
        cpu = replace(cpu, clock=clock)
        peak = _at_most_threads(results.named("host.fma"))
        if peak is not None:
            per_cycle = peak.rate("flops") / (clock.value * float(peak.parameters["threads"]))
            cpu = replace(cpu, flops_per_cycle=number(peak, per_cycle, "fused multiply-adds in registers, per clock"))
    best = max(results.named("host.read"), key=Record.rate, default=None)
    if best is not None:
        bandwidth = number(best, best.rate() / sockets, f"sum over an array, {best.label}")
        cpu = replace(cpu, measured={**cpu.measured, "read_bandwidth": bandwidth})
    return cpu


def measured_disk(disk: Disk, results: Results) -> Disk:
    """Bandwidth and latency of O_DIRECT requests, and reading through page faults."""
    reads, writes = results.named("disk.read"), results.named("disk.write")
    line = request_line(reads)
    if line is not None:
        known = _spread_sd(line.latency_sd, line.spread)
        small = min(reads, key=lambda record: (float(record.parameters["block"]), float(record.parameters["depth"])))
        latency = Number(
            line.latency, SourceKind.FITTED, _how(small, f"latency + size/rate, {line.samples} points"), known
        )
        disk = replace(disk, latency=latency)
    for field, records in (("read", reads), ("write", writes)):
        large = [record for record in records if float(record.parameters["block"]) >= _LARGE_BLOCK]
        best = max(large, key=Record.rate, default=None)
        if best is not None:
            rate = number(best, best.rate(), f"O_DIRECT, {best.label}")
            disk = replace(disk, read=rate) if field == "read" else replace(disk, write=rate)
    cold = [record for record in results.named("disk.mapped") if record.parameters["cache"] == "cold"]
    best = max(cold, key=Record.rate, default=None)
    if best is not None:
        disk = replace(disk, page_fault_read=number(best, best.rate(), f"cold memory-mapped file, {best.label}"))
    return disk


def measured_gpu(gpu: Gpu, results: Results, index: int) -> Gpu:
    """Memory, copies, launches and large matrix products of one GPU."""

    def own(name: str, **parameters: object) -> list[Record]:
        wanted = {"gpu": index, **parameters}
        return [
            record
            for record in results.named(name)
            if all(record.parameters.get(key, 0 if key == "gpu" else None) == value for key, value in wanted.items())
        ]

    found: dict[str, Number] = {}
    for field, records in (("read_bandwidth", own("gpu.read")), ("copy_bandwidth", own("gpu.copy"))):
        best = max(records, key=Record.rate, default=None)
        if best is not None:
            found[field] = number(best, best.rate(), best.label)
    for direction in ("h2d", "d2h"):
        for memory in ("pinned", "pageable"):
            records = own(f"pcie.{direction}", memory=memory)
            line = size_line(records)
            if line is not None:
                sd = _spread_sd(line.bandwidth_sd, 0.0)
                how = _how(records[-1], f"latency + size/rate, {line.samples} sizes")
                found[f"{direction}_{memory}"] = Number(line.bandwidth, SourceKind.FITTED, how, sd)
    for field, mode in (("launch", "stream"), ("graph_launch", "graph")):
        for record in own("gpu.launch", mode=mode):
            seconds = record.samples.figure / record.amounts["operations"]
            found[field] = number(record, seconds, f"empty kernels, {record.label}")
    for dtype in ("fp16", "bf16", "fp8"):
        best = max(own("gpu.gemm", dtype=dtype), key=lambda record: record.rate("flops"), default=None)
        if best is not None:
            found[f"gemm_{dtype}"] = number(best, best.rate("flops"), best.label)
    return replace(gpu, measured={**gpu.measured, **found}) if found else gpu


def number(record: Record, value: float, what: str) -> Number:
    """A measured number: its value, its spread, and in words what was done, with what, when and how often.

    The spread is that of the figure, but no less than the interference that the run saw: another run sees another.
    """
    half = record.samples.half_width
    sd = max(_LEAST_SD, record.samples.noise, 0.0 if math.isinf(half) else half / _Z95)
    return Number(value, SourceKind.MEASURED, _how(record, what), round(sd, 4))


def size_line(records: Sequence[Record]) -> Line | None:
    """Seconds over bytes as ``latency + bytes / bandwidth``; None where there are too few sizes."""
    return _fit_line([(record.amounts["bytes"], 1.0) for record in records], [r.samples.figure for r in records])


def request_line(records: Sequence[Record]) -> Line | None:
    """Seconds of a request as ``latency / depth + bytes / bandwidth``: those in flight hide each other's latency."""
    points = [(float(r.parameters["block"]), float(r.parameters["depth"])) for r in records]
    return _fit_line(points, [r.samples.figure / r.amounts["operations"] for r in records])


def _fit_line(points: Sequence[tuple[float, float]], seconds: Sequence[float]) -> Line | None:
    from stowplan_calibrate.fitting.robust import fit  # scipy is slow to import and `calibrate show` does without

    if len({size for size, _ in points}) < 3 or len(points) < 4:
        return None

    def model(p: Mapping[str, float], x: Sequence[tuple[float, float]]) -> list[float]:
        return [p["latency"] / depth + size / p["bandwidth"] for size, depth in x]

    rates = [size / taken for (size, _), taken in zip(points, seconds, strict=True)]
    start = {"latency": min(seconds), "bandwidth": max(rates)}
    bounds = {name: (value * 1e-4, value * 1e4) for name, value in start.items()}
    found = fit(model, points, seconds, start, bounds)
    errors = {name: found.standard_errors[name] / found.parameters[name] for name in start}
    return Line(
        found.parameters["latency"],
        found.parameters["bandwidth"],
        errors["latency"],
        errors["bandwidth"],
        found.spread,
        found.samples,
    )


def throttled(results: Results) -> list[str]:
    """A sentence for every measurement that slowed down while it was taken."""
    return [
        f"{record.name} ({record.label}) slowed down while it was measured; let the machine cool and measure again"
        for record in results.records
        if record.samples.throttled
    ]


def _at_most_threads(records: Iterable[Record]) -> Record | None:
    return max(records, key=lambda record: float(record.parameters["threads"]), default=None)


def _spread_sd(standard_error: float, spread: float) -> float:
    return round(min(10.0, max(_LEAST_SD, standard_error, spread)), 4)


def _how(record: Record, what: str) -> str:
    sensors = ", ".join(_sensor(name, after) for name, (_, after) in record.samples.sensors.items())
    told = f"; {sensors}" if sensors else ""
    count = len(record.samples.seconds)
    return f"stowplan calibrate {record.date[:10]}: {what}; {record.tool}; {count} samples{told}"


def _sensor(name: str, value: float) -> str:
    units: Mapping[str, Callable[[float], str]] = {
        "clock": lambda v: f"{v / 1e9:.2f} GHz",
        "power": lambda v: f"{v:.0f} W",
        "temperature": lambda v: f"{v:.0f} C",
    }
    shown = next((show(value) for suffix, show in units.items() if name.endswith(suffix)), f"{value:g}")
    return f"{name} {shown}"


class NothingMeasured(StowplanError):
    """A results folder without any measurement that a profile could be made of."""
