"""What the fits are worth: the same cases predicted from datasheets alone, with kernel fits, and with everything.

From datasheets alone every part reaches the figure that its maker prints and only moving and computing cost time. With
kernel fits, parts reach what was measured on them or fitted, and kernels have their efficiencies. With everything,
launches, synchronisation and the engine's own work per step are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, InputError
from stowplan.figures import Figures
from stowplan.machines.machine import Machine, Number, SourceKind
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.validate.case_rows import cases_by_id, plain_rows
from stowplan.validate.fitted import Constant, constants
from stowplan.validate.parallel import Progress, run_all
from stowplan.validate.rows import Part, Result, Row
from stowplan.validate.run import attempt
from stowplan.validate.sources import Unit
from stowplan.validate.statistics import errors, grouped
from stowplan.validate.targets import load_targets
from stowplan.validate.validation import Filters, chosen_jobs

_FILE = Path(__file__).resolve().parent / "ablation.toml"
_ALMOST_NOTHING = 1e-9


class Level(StrEnum):
    """How much a prediction knows."""

    DATASHEET = "datasheet"
    KERNELS = "kernels"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class AblationJob:
    """One case at one level; it can be sent to another process."""

    case: str
    level: Level

    def run(self) -> Result:
        """Its rows, without intervals."""
        case = cases_by_id()[self.case]
        change = None if self.level is Level.EVERYTHING else partial(_changed, level=self.level)
        return attempt(case, lambda: plain_rows(case, change))


def _changed(setup: Setup, system: str, *, level: Level) -> Figures:
    return ablated(setup.figures, setup.machine, load_system(system).kernels, level)


def ablated(figures: Figures, machine: Machine, engine: str, level: Level) -> Figures:
    """The table as a prediction of this level would have it; `engine` is whose constants it holds."""
    numbers = dict(figures)
    times = _times(engine)
    for name, number in figures.items():
        if name.startswith(f"{engine}."):
            constant = name.removeprefix(f"{engine}.")
            if constant in times:
                numbers[name] = replace(number, value=number.value * _ALMOST_NOTHING)
            elif level is Level.DATASHEET:
                numbers[name] = replace(number, value=_neutral(constant, number.value))
    if level is Level.DATASHEET:
        numbers |= datasheet_figures(machine, numbers)
    return Figures(numbers)


def datasheet_figures(machine: Machine, known: Mapping[str, Number]) -> dict[str, Number]:
    """What the makers of a machine's parts print, under the names of `stowplan.figures.machine_figures`."""
    memory = machine.memory
    dram = memory.channel_bandwidth.value * memory.channels
    found = {"host.dram": dram}
    if machine.socket_link is not None:
        found["host.link"] = machine.socket_link.bandwidth.value
    for index, (gpu, link) in enumerate(zip(machine.gpus, machine.pcie, strict=True)):
        found[f"gpu{index}.hbm"] = gpu.bandwidth.value
        rate = min(dram, dram / 2 if gpu.unified else link.bandwidth.value)
        found |= {f"gpu{index}.{way}.{kind}": rate for way in ("h2d", "d2h") for kind in ("pinned", "pageable")}
    if len(machine.gpus) > 1:
        links = [link.bandwidth.value for link in machine.pcie]
        found["peer"] = min(links) if machine.peer is None else machine.peer.bandwidth.value
    if machine.disks:
        found["disk.faults"] = machine.disks[0].read.value
    return {
        name: Number(value, SourceKind.DATASHEET, "datasheet", None) for name, value in found.items() if name in known
    }


@cache
def _times(engine: str) -> frozenset[str]:
    """Constants of an engine that are durations: what it spends beside moving and computing."""
    data = read_toml(data_folder("hwprofiles") / "kernels" / f"{engine}.toml")

    def walk(prefix: str, table: Mapping[str, object]) -> Iterator[str]:
        for key, entry in table.items():
            if isinstance(entry, Mapping):
                if entry.get("dimension") == "seconds":
                    yield f"{prefix}{key}"
                elif "value" not in entry:
                    yield from walk(f"{prefix}{key}.", entry)

    base = _times(str(data["base"])) if "base" in data else frozenset()
    return base | frozenset(walk("", data))


@dataclass(frozen=True, slots=True)
class _Neutral:
    """What constants of some names are where nothing was fitted."""

    patterns: tuple[str, ...]
    value: float | None
    factor: float


@cache
def _rules() -> tuple[_Neutral, ...]:
    rules = []
    for raw in read_toml(_FILE).get("neutral", []):
        given = [name for name in ("value", "factor", "keep") if name in raw]
        if len(given) != 1 or not raw.get("patterns"):
            raise BadFile(f"{_FILE}: every [[neutral]] has patterns and one of value, factor, keep")
        rules.append(_Neutral(tuple(raw["patterns"]), raw.get("value"), float(raw.get("factor", 1.0))))
    return tuple(rules)


def _neutral(constant: str, value: float) -> float:
    """A constant where nothing was fitted; one that no rule names stays as it is."""
    rule = rule_for(constant)
    if rule is None:
        return value
    return value * rule.factor if rule.value is None else rule.value


def rule_for(constant: str) -> _Neutral | None:
    """The first rule that names a constant."""
    return next((rule for rule in _rules() if any(fnmatchcase(constant, p) for p in rule.patterns)), None)


@dataclass(frozen=True, slots=True)
class LevelErrors:
    """Errors of one group at one level."""

    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class FamilyLevels:
    """A group of held-out rows at every level, in the order of `Level`; `n` figures that all levels predict."""

    name: str
    n: int
    levels: tuple[LevelErrors, ...]


@dataclass(frozen=True, slots=True)
class SystemPart:
    """Records and hardware of one part of a system's cases."""

    system: str
    part: Part
    records: int
    hardware: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ablation:
    """What the fits are worth, on what they were made, and every constant with its source."""

    families: tuple[FamilyLevels, ...]
    parts: tuple[SystemPart, ...]
    constants: tuple[Constant, ...]


def ablate(filters: Filters, workers: int = 1, progress: Progress | None = None) -> Ablation:
    """Predict every chosen case at every level.

    Raises:
        UnknownName, InputError: see `stowplan.validate.validation.chosen_jobs`; or nothing but replays is chosen.
    """
    names = cases_by_id()
    chosen = [job.unit for job in chosen_jobs(filters) if job.unit.name in names and job.unit.part != "fresh"]
    if not chosen:
        raise InputError("an ablation changes the figures of placements; choose a system with cases of its own")
    jobs = [AblationJob(unit.name, level) for level in Level for unit in chosen]
    results = run_all(jobs, workers, progress)
    rows: dict[Level, dict[tuple[str, str], Row]] = {level: {} for level in Level}
    for job, result in zip(jobs, results, strict=True):
        rows[job.level] |= {(row.id, row.figure): row for row in result.rows if row.part == "held-out"}
    shared = set.intersection(*(set(each) for each in rows.values()))
    return Ablation(tuple(_levels(rows, shared)), tuple(_parts(chosen)), tuple(constants()))


def _levels(
    rows: Mapping[Level, Mapping[tuple[str, str], Row]], shared: set[tuple[str, str]]
) -> Iterator[FamilyLevels]:
    """Groups that targets name, then families."""
    every = [row for key, row in rows[Level.EVERYTHING].items() if key in shared]
    groups = {target.name: [row for row in every if target.about(row)] for target in load_targets().groups}
    groups |= grouped(every)
    for name, members in groups.items():
        if members:
            keys = [(row.id, row.figure) for row in members]
            found = [errors(name, [rows[level][key] for key in keys]) for level in Level]
            levels = tuple(LevelErrors(each.median_abs_error, each.p90_abs_error) for each in found)
            yield FamilyLevels(name, len(members), levels)


def _parts(units: Sequence[Unit]) -> Iterator[SystemPart]:
    for system, part in sorted({(unit.system, unit.part) for unit in units}):
        mine = [unit for unit in units if (unit.system, unit.part) == (system, part)]
        hardware = tuple(sorted({unit.hardware for unit in mine}))
        yield SystemPart(system, part, len({unit.record for unit in mine}), hardware)
