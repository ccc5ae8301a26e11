"""The whole comparison: which cases, their rows, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stowplan.errors import InputError, UnknownName
from stowplan.validate.pairs import Pair, Winners, by_group, pairs_of, winners, wrong_choices
from stowplan.validate.parallel import Progress, run_all
from stowplan.validate.rows import Part, Result, Row
from stowplan.validate.sources import Job, Unit, jobs
from stowplan.validate.statistics import Errors, errors, grouped
from stowplan.validate.targets import Reached, Targets, load_targets, reached


@dataclass(frozen=True, slots=True)
class Filters:
    """Which cases are compared; None leaves a choice open.

    Attributes:
        system: key of an engine or published system.
        hardware: a part of the text of machine or hardware, such as ``rtx-3090``.
        family: a family's name, or its first words: ``llama.cpp partial``.
    """

    system: str | None = None
    hardware: str | None = None
    family: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A unit without a prediction, why, and whether for want of memory."""

    unit: Unit
    reason: str
    memory: bool


@dataclass(frozen=True, slots=True)
class Fits:
    """What was said to fit, against what did.

    Attributes:
        ran: runs that finished; refused: those of them that were said not to fit.
        out_of_memory: runs that ended for want of memory; missed: those of them that were said to fit.
    """

    ran: int
    refused: int
    out_of_memory: int
    missed: int


@dataclass(frozen=True, slots=True)
class Validation:
    """Rows and their summaries.

    Attributes:
        rows: every compared figure, in the order of the sources.
        held_out, fitted, fresh: families of each part.
        targets: what was promised and what was reached on held-out hardware.
        winners, winners_fitted, winners_fresh: pairs of each part in all, None without a pair.
        by_group: pairs on held-out hardware by the systems that are compared.
        wrong: choices on held-out hardware whose winner was not predicted, the largest gains first.
        refused: runs that finished but have no prediction.
        fits: agreement on what fits, fresh runs left out.
    """

    rows: tuple[Row, ...]
    held_out: tuple[Errors, ...]
    fitted: tuple[Errors, ...]
    fresh: tuple[Errors, ...]
    targets: tuple[Reached, ...]
    winners: Winners | None
    winners_fitted: Winners | None
    winners_fresh: Winners | None
    by_group: tuple[Winners, ...]
    wrong: tuple[Pair, ...]
    refused: tuple[Refused, ...]
    fits: Fits

    def part(self, part: Part) -> list[Row]:
        """Rows of one part."""
        return [row for row in self.rows if row.part == part]


def chosen_jobs(filters: Filters) -> list[Job]:
    """Jobs that the filters leave.

    Raises:
        UnknownName: a system or family that no case has.
        InputError: the filters leave nothing.
    """
    every = jobs()
    if filters.system is not None:
        systems = {job.unit.system for job in every}
        if filters.system not in systems:
            raise UnknownName("validated system", filters.system, systems)
        every = [job for job in every if job.unit.system == filters.system]
    if filters.family is not None:
        names = {name for job in every for name in job.unit.families}
        every = [job for job in every if any(_is_family(name, filters.family) for name in job.unit.families)]
        if not every:
            raise UnknownName("family", filters.family, names)
    if filters.hardware is not None:
        wanted = filters.hardware.lower()
        every = [job for job in every if wanted in job.unit.machine.lower() or wanted in job.unit.hardware.lower()]
        if not every:
            raise InputError(
                f"--hardware {filters.hardware[:60]}: no case ran on it; give a GPU or processor as "
                "`stowplan list gpus` names it"
            )
    return every


def _is_family(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted} ")


def validate(filters: Filters, workers: int = 1, progress: Progress | None = None) -> Validation:
    """Predict every chosen case and compare.

    Raises:
        UnknownName, InputError: see `chosen_jobs`.
    """
    chosen = chosen_jobs(filters)
    results = run_all(chosen, workers, progress)
    return summarise([job.unit for job in chosen], results, filters.family)


def summarise(units: Sequence[Unit], results: Sequence[Result], family: str | None = None) -> Validation:
    """Families, targets and pairs of results, which are in the order of the units."""
    targets = load_targets()
    rows = tuple(row for result in results for row in result.rows if family is None or _is_family(row.family, family))
    held_out, fit, fresh = ([row for row in rows if row.part == part] for part in ("held-out", "fit", "fresh"))
    found, found_fit, found_fresh = pairs_of(held_out), pairs_of(fit), pairs_of(fresh)
    return Validation(
        rows=rows,
        held_out=tuple(_families(held_out, targets)),
        fitted=tuple(_families(fit, targets)),
        fresh=tuple(_families(fresh, targets)),
        targets=tuple(reached(targets, held_out)),
        winners=winners("held-out", found) if found else None,
        winners_fitted=winners("fit", found_fit) if found_fit else None,
        winners_fresh=winners("fresh", found_fresh) if found_fresh else None,
        by_group=tuple(by_group(found)),
        wrong=tuple(wrong_choices(found)),
        refused=tuple(
            Refused(unit, result.refused, result.does_not_fit)
            for unit, result in zip(units, results, strict=True)
            if result.refused is not None and result.ran
        ),
        fits=_fits([each for unit, each in zip(units, results, strict=True) if unit.part != "fresh"]),
    )


def _families(rows: Sequence[Row], targets: Targets) -> list[Errors]:
    return [errors(name, group, targets.median_for(group[0])) for name, group in grouped(rows).items()]


def _fits(results: Sequence[Result]) -> Fits:
    ran = [result for result in results if result.ran]
    ended = [result for result in results if not result.ran]
    return Fits(
        ran=len(ran),
        refused=sum(result.does_not_fit for result in ran),
        out_of_memory=len(ended),
        missed=sum(not result.does_not_fit for result in ended),
    )
