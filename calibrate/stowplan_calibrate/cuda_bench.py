"""The CUDA programs as entries of the suite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.cuda.programs import PROGRAMS, Measured, Program, build_program, run_program
from stowplan_calibrate.gpu_sensors import GpuSensors
from stowplan_calibrate.host.disk import test_file
from stowplan_calibrate.measuring import Batch, Surroundings
from stowplan_calibrate.results import Taking, identity
from stowplan_calibrate.sampling import Limits, Sampled, relative_half_width

_PRECISION = Limits().precision
_FIRST_SHARE = 0.3
"""Share of the time that a first pass gets; points that are not precise after it get the rest."""


def gpu_suite(gpus: int) -> tuple[Batch, ...]:
    """Measurements of every GPU that the driver reports."""
    return tuple(
        Batch(f"cuda.{program.stem}.{index}", program.group, f"{program.title} {index}", program.weight, run)
        for index in range(max(1, gpus))
        for program in PROGRAMS
        for run in (partial(take, program, index),)
    )


def take(
    program: Program, index: int, around: Surroundings, budget_s: float, have: Collection[str]
) -> Iterator[Taking]:
    """Points of one program on one GPU that are not in `have`.

    Raises:
        CannotMeasure: no GPU, no nvcc, a busy GPU, or the program fails.
    """
    if around.gpus == 0:
        raise CannotMeasure("no NVIDIA GPU is here")
    sensors = GpuSensors(index)
    occupied = sensors.busy()
    if occupied:
        raise CannotMeasure(occupied)
    path, compiler = build_program(program)
    if not program.reads_file:
        yield from _passes(program, path, compiler, index, sensors, budget_s, have, None)
        return
    with test_file(around) as file:
        yield from _passes(program, path, compiler, index, sensors, budget_s, have, file)


def _passes(
    program: Program,
    path: Path,
    compiler: str,
    index: int,
    sensors: GpuSensors,
    budget_s: float,
    have: Collection[str],
    file: Path | None,
) -> Iterator[Taking]:
    """One pass, and a second one where points of the first are not precise; samples of both are kept."""
    found: dict[str, Measured] = {}
    before = sensors()
    for share in (_FIRST_SHARE, 1.0 - _FIRST_SHARE):
        for point in run_program(path, index, budget_s * share / program.points, file=file):
            key = identity(point.name, point.parameters)
            seconds = (*found[key].samples.seconds, *point.samples.seconds) if key in found else point.samples.seconds
            found[key] = Measured(point.name, point.parameters, point.amounts, Sampled(seconds, stopped="budget"))
        if all(relative_half_width(each.samples.kept) <= _PRECISION for each in found.values()):
            break
    after = sensors()
    pairs = {name: (before[name], after[name]) for name in sorted(before.keys() & after.keys())}
    for key, point in found.items():
        if key not in have:
            precise = not math.isinf(point.samples.half_width) and point.samples.half_width <= _PRECISION
            samples = Sampled(point.samples.seconds, pairs, "precise" if precise else "budget")
            yield Taking(point.name, point.parameters, point.amounts, samples, compiler)
