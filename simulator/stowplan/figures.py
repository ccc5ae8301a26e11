"""The numbers that a prediction rests on, in one immutable table that can be perturbed.

A figure is a rate of the machine (``host.dram``) or a constant of an engine's kernels (``llama.cpp.gpu.kernel_gap``).
Every figure keeps its provenance; the interval of a prediction follows from how much the prediction moves when one
figure moves by its own uncertainty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile
from stowplan.machines import rates
from stowplan.machines.machine import Machine, Number, SourceKind
from stowplan.units import UNITS, parse_quantity

_UNITLESS = {"count", "ratio"}


class Figures(Mapping[str, Number]):
    """Named numbers; `figures[name]` is the `Number`, `figures.value(name)` its SI value."""

    def __init__(self, numbers: Mapping[str, Number]) -> None:
        self._numbers = dict(numbers)

    def __getitem__(self, name: str) -> Number:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def value(self, name: str) -> float:
        """SI value of a figure."""
        return self._numbers[name].value

    def get_value(self, name: str) -> float | None:
        """SI value of a figure, or None where nobody knows it."""
        number = self._numbers.get(name)
        return None if number is None else number.value

    def scaled(self, name: str, factor: float) -> Figures:
        """The same table with one figure multiplied by `factor`."""
        number = self._numbers[name]
        return Figures({**self._numbers, name: replace(number, value=number.value * factor)})

    def sd(self, name: str) -> float:
        """Relative standard deviation of a figure: its own, or its source kind's."""
        number = self._numbers[name]
        return rates.DEFAULT_SD[number.kind] if number.sd is None else number.sd


def machine_figures(machine: Machine) -> dict[str, Number]:
    """Effective rates of a machine by name.

    ``host.dram``, ``host.clock``, ``host.lanes`` (fp32 FLOPs per core and cycle, its vectors' width), with several
    sockets ``host.link`` (what one reads of another's memory); per GPU i
    ``gpu{i}.hbm``, ``gpu{i}.unit_clock`` (units times clock), ``gpu{i}.power``, ``gpu{i}.flop_energy`` (joules),
    ``gpu{i}.peak.{arithmetic}``, ``gpu{i}.{h2d,d2h}.{pinned,pageable}``; ``disk.read``, ``disk.write``,
    ``disk.faults``, ``disk.latency``; ``peer`` for copies between GPUs.
    """
    numbers = {
        "host.dram": rates.dram_bandwidth(machine),
        "host.clock": machine.cpu.clock,
        "host.lanes": replace(machine.cpu.flops_per_cycle, sd=0.0),
    }
    link = rates.socket_link(machine)
    if link is not None:
        numbers["host.link"] = link
    for i, gpu in enumerate(machine.gpus):
        name = f"gpu{i}"
        numbers[f"{name}.hbm"] = rates.gpu_read_bandwidth(gpu)
        if gpu.units is not None and gpu.clock is not None:
            numbers[f"{name}.unit_clock"] = replace(gpu.clock, value=gpu.units.value * gpu.clock.value)
        if gpu.power is not None:
            numbers[f"{name}.power"] = gpu.power
        energy = rates.flop_energy(gpu)
        if energy is not None:
            numbers[f"{name}.flop_energy"] = energy
        for arithmetic, peak in gpu.peaks.items():
            numbers[f"{name}.peak.{arithmetic}"] = peak
        for pinned, label in ((True, "pinned"), (False, "pageable")):
            numbers[f"{name}.h2d.{label}"] = rates.host_to_device(machine, i, pinned=pinned)
            numbers[f"{name}.d2h.{label}"] = rates.device_to_host(machine, i, pinned=pinned)
    if len(machine.gpus) > 1:
        numbers["peer"] = rates.gpu_to_gpu(machine)
    if machine.disks:
        disk = machine.disks[0]
        numbers["disk.read"] = rates.disk_read(disk)
        numbers["disk.write"] = disk.write
        numbers["disk.faults"] = rates.page_fault_read(disk)
        numbers["disk.latency"] = disk.latency
    return numbers


@lru_cache(maxsize=8)
def engine_constants(engine: str) -> Mapping[str, Number]:
    """Constants of an engine's kernels from ``hwprofiles/kernels/{engine}.toml``, dotted names, SI values.

    A file that names a ``base`` holds only what differs from that engine.

    Raises:
        BadFile: an entry without value, unit or source.
    """
    path = data_folder("hwprofiles") / "kernels" / f"{engine}.toml"
    numbers: dict[str, Number] = {}

    def walk(prefix: str, table: Mapping[str, object]) -> None:
        for key, entry in table.items():
            where = f"{path.name}: {prefix}{key}"
            if not isinstance(entry, Mapping):
                raise BadFile(f"{where} must be a table with value, unit and source")
            if "value" not in entry:
                walk(f"{prefix}{key}.", entry)
                continue
            dimension = str(entry.get("dimension", "ratio"))
            if dimension not in UNITS:
                raise BadFile(f"{where}: dimension '{dimension}' is unknown; one of {', '.join(UNITS)}")
            value = entry["value"]
            amount = float(value) if dimension in _UNITLESS else parse_quantity(value, dimension, where=where)
            sd = entry.get("sd")
            numbers[f"{prefix}{key}"] = Number(
                amount, SourceKind(entry["source"]), str(entry["where"]), None if sd is None else float(sd)
            )

    data = read_toml(path)
    if "base" in data:
        numbers |= engine_constants(str(data["base"]))
    walk("", {key: table for key, table in data.items() if isinstance(table, dict)})
    return numbers


def figures_for(machine: Machine, engine: str, variant: str | None = None) -> Figures:
    """Everything that a prediction on `machine` with `engine` may rest on.

    A `variant` of the engine (a fork with kernels of its own) replaces the engine's constants under the same names.
    Constants that were measured on this machine replace the shipped ones of the engine that they were measured with.
    """
    constants = {f"{engine}.{name}": number for name, number in engine_constants(variant or engine).items()}
    measured = {} if variant not in (None, engine) else machine.constants
    own = {name: number for name, number in measured.items() if name.startswith(f"{engine}.")}
    return Figures(machine_figures(machine) | constants | own)
