"""What the predictions are to reach on hardware that no constant was set on, as data (``targets.toml``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile
from stowplan.validate.rows import FIGURES, Row
from stowplan.validate.statistics import Errors, errors

_FILE = Path(__file__).resolve().parent / "targets.toml"
_FIELDS = ("name", "systems", "kinds", "figures", "median", "p90")


@dataclass(frozen=True, slots=True)
class Target:
    """Largest errors that a group of rows may have.

    Attributes:
        name: the group, in words.
        systems, kinds, figures: rows that it is about; an empty tuple leaves the choice open.
        median, p90: of the absolute relative error.
    """

    name: str
    systems: tuple[str, ...]
    kinds: tuple[str, ...]
    figures: tuple[str, ...]
    median: float
    p90: float | None

    def about(self, row: Row) -> bool:
        """Whether a row counts."""
        return (
            (not self.systems or row.system in self.systems)
            and (not self.kinds or row.kind in self.kinds)
            and row.figure in self.figures
        )


@dataclass(frozen=True, slots=True)
class Targets:
    """All of them, the share of winners to predict, and the coverage that 80 % intervals should have."""

    groups: tuple[Target, ...]
    winners: float
    coverage: tuple[float, float]

    def median_for(self, row: Row) -> float | None:
        """Largest median error that was promised for rows like this one."""
        return next((target.median for target in self.groups if target.about(row)), None)


@dataclass(frozen=True, slots=True)
class Reached:
    """A target and what was reached; `errors` is None where nothing was measured."""

    target: Target
    errors: Errors | None

    @property
    def met(self) -> bool | None:
        """Whether both limits hold; None where nothing was measured."""
        found, target = self.errors, self.target
        if found is None:
            return None
        return found.median_abs_error <= target.median and (target.p90 is None or found.p90_abs_error <= target.p90)


@cache
def load_targets() -> Targets:
    """The shipped targets.

    Raises:
        BadFile: a target lacks a field, or has one that is unknown or of a wrong type.
    """
    data = read_toml(_FILE)
    coverage = [float(each) for each in data["coverage"]]
    return Targets(
        groups=tuple(_target(raw) for raw in data["target"]),
        winners=float(data["winners"]),
        coverage=(coverage[0], coverage[1]),
    )


def _target(raw: Mapping[str, object]) -> Target:
    where = f"{_FILE}: target '{raw.get('name')}'"
    unknown = [name for name in raw if name not in _FIELDS]
    if unknown:
        raise BadFile(f"{where}: '{unknown[0]}' is not a field; it has {', '.join(_FIELDS)}")
    figures = _texts(raw, "figures", where)
    wrong = [name for name in figures if name not in FIGURES]
    if wrong or not figures:
        raise BadFile(f"{where}: figures must be of {', '.join(FIGURES)}")
    median, p90 = raw.get("median"), raw.get("p90")
    if not isinstance(median, float) or not (p90 is None or isinstance(p90, float)):
        raise BadFile(f"{where}: median and p90 are shares such as 0.12")
    return Target(str(raw["name"]), _texts(raw, "systems", where), _texts(raw, "kinds", where), figures, median, p90)


def _texts(raw: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    value = raw.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadFile(f"{where}: {name} must be a list of texts")
    return tuple(value)


def reached(targets: Targets, rows: Sequence[Row]) -> list[Reached]:
    """Every target beside the errors of the rows that it is about."""
    found = []
    for target in targets.groups:
        mine = [row for row in rows if target.about(row)]
        found.append(Reached(target, errors(target.name, mine, target.median) if mine else None))
    return found
