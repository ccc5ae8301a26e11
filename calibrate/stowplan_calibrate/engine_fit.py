"""An engine's constants on one machine, fitted to the engine's own benchmark rows.

The prediction itself is the caller's: a function from figures to seconds. Every constant of the engine that moves the
predictions may be adjusted by a factor; products get a constant for each storage format that was run. How far a
constant is known beforehand counts as one more sample, so a log that says little about a constant leaves it where it
was. What the fit is worth is measured on model files that were left out of it, one after another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stowplan.errors import InputError
from stowplan.figures import Figures
from stowplan.kernels import kernel_names
from stowplan.machines.machine import Number, SourceKind

Predict = Callable[[Figures, int], float]
"""Seconds that run number `int` takes with the given figures."""

NOISE = 0.05
"""Relative scatter of one benchmark row that the fit expects."""
_MOVES = 0.02
_LEAST_SD, _MOST_SD = 0.01, 10.0
_NOT_KERNELS = (".isa.", ".isa_gemm.", ".model_sd.", ".kernels.", "runtime", ".sockets")
_PRODUCTS = ("gemv", "gemm")
_RANGE = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark row as the fit sees it.

    Attributes:
        label: for people; file: what is left out together in the check.
        phase: ``decode`` or ``prefill``.
        seconds: measured.
        formats: storage formats of the weights that it reads.
    """

    label: str
    file: str
    phase: str
    seconds: float
    formats: frozenset[str]


@dataclass(frozen=True, slots=True)
class Compared:
    """Seconds measured and predicted of one row."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.row.seconds - 1.0


@dataclass(frozen=True, slots=True)
class EngineFit:
    """What a fit of an engine found.

    Attributes:
        constants: adjusted constants by name, as a machine's file holds them.
        before: rows predicted with the shipped constants; after: with the fitted ones.
        held_out: rows predicted by fits that had not seen their file; empty where all rows are of one file.
        rejected: labels of rows that were set aside.
    """

    constants: Mapping[str, Number]
    before: tuple[Compared, ...]
    after: tuple[Compared, ...]
    held_out: tuple[Compared, ...]
    rejected: tuple[str, ...]


def errors(compared: Sequence[Compared]) -> tuple[float, float, float]:
    """Median, 90th percentile and worst of the absolute relative errors.

    Raises:
        InputError: nothing to compare.
    """
    if not compared:
        raise InputError("there are no rows to compare")
    sizes = sorted(abs(each.error) for each in compared)
    return statistics.median(sizes), sizes[min(len(sizes) - 1, math.ceil(0.9 * len(sizes)) - 1)], sizes[-1]


def fit_engine(
    engine: str, figures: Figures, rows: Sequence[Row], predict: Predict, where: str, *, check: bool = True
) -> EngineFit:
    """Constants of `engine` that bring the predictions closest to the measured rows.

    Args:
        engine: whose constants may move; figures: all figures, the engine's constants among them.
        rows: what was measured; predict: seconds of a row under given figures.
        where: provenance of the constants: which log, when, which build.
        check: whether to measure the fit on files left out of it, which takes a fit for every file.

    Raises:
        InputError: too few rows, or rows that no constant of the engine moves.
    """
    if len(rows) < 3:
        raise InputError(f"an engine is fitted to at least 3 benchmark rows, but there are {len(rows)}")
    begin = with_formats(engine, figures, rows)
    names = _movable(engine, begin, rows, predict)
    if not names:
        raise InputError(f"no constant of {engine} moves these predictions; were they run on this machine?")
    fitted, sds, rejected = _fit(begin, names, list(range(len(rows))), rows, predict)
    held_out = _left_out(begin, names, rows, predict) if check else []
    spread = {phase: _spread(held_out or _compare(rows, fitted, predict), phase) for phase in ("decode", "prefill")}
    constants = {name: Number(fitted.value(name), SourceKind.FITTED, where, _sd(sds[name])) for name in names}
    for phase, sd in spread.items():
        if sd is not None:
            told = f"spread of {'held-out ' if held_out else ''}residuals; {where}"
            constants[f"{engine}.model_sd.{phase}"] = Number(_sd(sd), SourceKind.FITTED, told)
    return EngineFit(
        constants,
        tuple(_compare(rows, figures, predict)),
        tuple(_compare(rows, fitted, predict)),
        tuple(held_out),
        tuple(rows[i].label for i in rejected),
    )


def with_formats(engine: str, figures: Figures, rows: Sequence[Row]) -> Figures:
    """The figures with a constant of its own for every format's products that were run, at its family's value."""
    added: dict[str, Number] = {}
    for name in sorted({name for row in rows for name in row.formats}):
        for table in _PRODUCTS:
            prefix = f"{engine}.cpu.{table}."
            own = prefix + kernel_names(name)[0]
            known = next((prefix + each for each in kernel_names(name) if prefix + each in figures), None)
            if known is not None and own not in figures:
                added[own] = figures[known]
    return Figures({**figures, **added})


def _movable(engine: str, figures: Figures, rows: Sequence[Row], predict: Predict) -> list[str]:
    """Constants of the engine that move at least one prediction by `_MOVES` of their own change."""
    before = [predict(figures, i) for i in range(len(rows))]
    step = math.exp(0.1)
    names = []
    for name in figures:
        if not name.startswith(f"{engine}.") or any(part in f"{name}." for part in _NOT_KERNELS):
            continue
        if figures.value(name) <= 0.0:
            continue
        slower = figures.scaled(name, 1.0 / step)
        moves = [abs(math.log(predict(slower, i) / before[i])) / 0.1 for i in range(len(rows))]
        if max(moves) > _MOVES:
            names.append(name)
    return names


def _fit(
    begin: Figures, names: Sequence[str], chosen: Sequence[int], rows: Sequence[Row], predict: Predict
) -> tuple[Figures, dict[str, float], list[int]]:
    """Figures after a fit to the chosen rows, relative standard errors, and the rows that were set aside."""
    from stowplan_calibrate.fitting.robust import fit  # scipy is slow to import

    samples: list[int | str] = [*chosen, *names]  # a name stands for what is known of that constant beforehand
    measured = [rows[i].seconds for i in chosen] + [1.0] * len(names)

    def model(factors: Mapping[str, float], x: Sequence[int | str]) -> list[float]:
        moved = _scaled(begin, factors)
        return [
            factors[each] ** (NOISE / max(begin.sd(each), NOISE)) if isinstance(each, str) else predict(moved, each)
            for each in x
        ]

    found = fit(model, samples, measured, dict.fromkeys(names, 1.0), dict.fromkeys(names, (1 / _RANGE, _RANGE)))
    sds = {name: found.standard_errors[name] / found.parameters[name] for name in names}
    rejected = [chosen[i] for i in found.rejected if i < len(chosen)]
    return _scaled(begin, found.parameters), sds, rejected


def _scaled(figures: Figures, factors: Mapping[str, float]) -> Figures:
    numbers = {name: replace(figures[name], value=figures[name].value * factor) for name, factor in factors.items()}
    return Figures({**figures, **numbers})


def _left_out(begin: Figures, names: Sequence[str], rows: Sequence[Row], predict: Predict) -> list[Compared]:
    """Every row predicted by a fit to the rows of the other files that have the same formats."""
    found: list[Compared] = []
    for file in dict.fromkeys(row.file for row in rows):
        others = [i for i, row in enumerate(rows) if row.file != file]
        needed = {name for row in rows if row.file == file for name in row.formats}
        seen = {name for i in others for name in rows[i].formats}
        if len(others) < 3 or not needed <= seen:
            continue
        figures, _, _ = _fit(begin, names, others, rows, predict)
        found += [Compared(row, predict(figures, i)) for i, row in enumerate(rows) if row.file == file]
    return found


def _compare(rows: Sequence[Row], figures: Figures, predict: Predict) -> list[Compared]:
    return [Compared(row, predict(figures, i)) for i, row in enumerate(rows)]


def _spread(compared: Sequence[Compared], phase: str) -> float | None:
    """Robust standard deviation of the log residuals around zero; None for fewer than three rows."""
    logs = [abs(math.log1p(each.error)) for each in compared if each.row.phase == phase]
    return 1.4826 * statistics.median(logs) if len(logs) >= 3 else None


def _sd(value: float) -> float:
    """A relative standard deviation as files hold it: never better than two runs repeat, never infinite."""
    return round(min(_MOST_SD, max(_LEAST_SD, value)), 4)
