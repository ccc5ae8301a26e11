"""Published systems as rows: what a paper reports of its system against the system's declaration, simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from stowplan.machines import load_machine
from stowplan.validate.case_rows import hardware_of
from stowplan.validate.published import run_published
from stowplan.validate.published_cases_reader import PublishedCase, load_published_cases
from stowplan.validate.rows import Result, Row
from stowplan.validate.sources import Unit

_FIGURES: Mapping[str, str] = {"tpot_s": "tpot", "ttft_s": "ttft", "context": "capacity", "batch": "capacity"}


def units() -> Sequence[Unit]:
    """Every published case but those that are a run of an engine with cases of its own."""
    return [_unit(case) for case in load_published_cases() if case.command is None or case.baseline is not None]


def result(name: str) -> Result:
    """The row of the case of this name."""
    case = _by_id()[name]
    found, unit = run_published(case), _unit(case)
    if found.simulated is None:
        return Result(refused=found.reason)
    asked = f"{case.batch} x ({case.depth} + {case.prompt} + {case.generate})"
    against = f" against {case.baseline.system}" if case.baseline is not None else ""
    settings = ", ".join(f"{path} {value}" for path, value in sorted(case.settings.items()))
    place = f"{unit.machine} | {case.model} {case.quant}"
    row = Row(
        id=case.id,
        record=case.id.partition("/")[0],
        system=case.system,
        kind="",
        figure=unit.figures[0],
        part=unit.part,
        hardware=unit.hardware,
        machine=unit.machine,
        model=f"{case.model} {case.quant}",
        run=f"{case.system}{against}: {asked}" + (f"; {settings}" if settings else ""),
        question=f"{place} | {case.id}" if case.baseline is not None else f"{place} | {unit.figures[0]} of {asked}",
        predicted=found.simulated,
        measured=case.published,
        source=f"{case.source}, {case.where}",
        note=case.note,
        assumed=case.assumed,
    )
    return Result(rows=(row,))


@cache
def _by_id() -> dict[str, PublishedCase]:
    return {case.id: case for case in load_published_cases()}


def _unit(case: PublishedCase) -> Unit:
    figure = "speed-up" if case.baseline is not None else _FIGURES.get(case.figure, case.figure)
    return Unit(
        name=case.id,
        record=case.id.partition("/")[0],
        system=case.system,
        part="fit" if case.role == "fit" else "held-out",
        kinds=("",),
        hardware=hardware_of(load_machine(case.machine, list(case.overrides))),
        machine=" ".join([case.machine, *(f"--set {text}" for text in case.overrides)]),
        figures=("largest" if case.role == "upto" else figure,),
    )
