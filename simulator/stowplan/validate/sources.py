"""Where rows come from: the shipped cases, and modules that compare something else, such as replays of serving runs.

A source is a module with two functions, and is named in `_MODULES`:

- ``units() -> Sequence[Unit]``: pieces of work in the order in which their rows are reported; cheap, predicts nothing.
- ``result(name: str) -> Result``: the rows of one unit, by its name. It runs in another process and must depend on
  nothing but its argument and shipped data. ``Result(rows=(Row(...), ...))`` is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from stowplan.validate.rows import Part, Result, family_name

_MODULES = ("stowplan.validate.case_rows", "stowplan.validate.published_rows", "stowplan.validate.replay_rows")


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work: its name within its source, and what filters ask for.

    Attributes:
        name: case or experiment, unique within its source.
        record: record that it belongs to.
        system, part: as of its rows.
        kinds: kinds that its rows may have.
        hardware: GPUs and processor; machine: the machine as text.
        figures: figures that its rows may hold.
    """

    name: str
    record: str
    system: str
    part: Part
    kinds: tuple[str, ...]
    hardware: str
    machine: str
    figures: tuple[str, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the groups that its rows may be counted in."""
        return tuple(family_name(self.system, kind, each) for kind in self.kinds for each in self.figures)


class Source(Protocol):
    """What a module of `_MODULES` offers."""

    units: Callable[[], Sequence[Unit]]
    result: Callable[[str], Result]


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of one source; it can be sent to another process."""

    module: str
    unit: Unit

    def run(self) -> Result:
        """Its rows."""
        return _source(self.module).result(self.unit.name)


def _source(module: str) -> Source:
    return cast(Source, import_module(module))


def jobs(modules: Iterable[str] = _MODULES) -> list[Job]:
    """Every unit of every source, in order."""
    return [Job(module, unit) for module in modules for unit in _units(module)]


@cache
def _units(module: str) -> tuple[Unit, ...]:
    return tuple(_source(module).units())
