"""What a measurement is: a name, a group, a share of the time, and the points at which it is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.host.library import HostLibrary, load_host_library
from stowplan_calibrate.results import Parameter, Taking, identity
from stowplan_calibrate.sampling import Limits, Taken, sample

GROUPS = ("gpu", "pcie", "cpu", "disk")


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a measurement.

    Attributes:
        parameters: threads, bytes, shapes: what tells it from the other points.
        amounts: what one run moves or computes.
        run: does the work once and says how long it took.
    """

    parameters: Mapping[str, Parameter]
    amounts: Mapping[str, float]
    run: Callable[[], Taken]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What measurements may use.

    Attributes:
        cores: physical cores; nodes: memory nodes.
        memory: bytes of host memory that measurements may allocate in all.
        folder: where the disk is measured.
        quick: fewer points and smaller data.
        library: the compiled host kernels, or None where there is no compiler (numpy stands in).
        gpus: number of GPUs that the driver reports.
    """

    cores: int
    memory: float
    folder: Path
    quick: bool = False
    library: HostLibrary | None = None
    gpus: int = 0
    nodes: int = 1

    @property
    def thread_counts(self) -> list[int]:
        """1, 2, 4 ... and all cores; one and all of them where there is little time."""
        powers = [1 << i for i in range(self.cores.bit_length()) if 1 << i < self.cores]
        return [*dict.fromkeys([*([1] if self.quick else powers), self.cores])]

    def needs_library(self) -> HostLibrary:
        """The compiled kernels.

        Raises:
            CannotMeasure: there is no C compiler.
        """
        if self.library is None:
            raise CannotMeasure("no C compiler is here, and numpy cannot stand in for this measurement")
        return self.library


Opener = Callable[[Surroundings], AbstractContextManager[Sequence[Point]]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One entry of the suite.

    Attributes:
        name: unique, such as ``host.read``.
        group: one of `GROUPS`.
        title: for the progress line.
        weight: share of the run's time, relative to the others.
        open: makes the points; buffers and files live as long as its context.
        tool: what takes the samples, such as the compiler that built the kernels.
        sense: readings of clocks and power around every point.
    """

    name: str
    group: str
    title: str
    weight: float
    open: Opener
    tool: str = "stowplan_calibrate"
    sense: Callable[[], Mapping[str, float]] = field(default=dict)

    def take(self, around: Surroundings, budget_s: float, have: Collection[str]) -> Iterator[Taking]:
        """Points that are not in `have`, one after another; time that a point leaves goes to the later ones."""
        began = time.monotonic()
        with self.open(around) as points:
            for index, point in enumerate(points):
                if identity(self.name, point.parameters) in have:
                    continue
                left = max(0.0, budget_s - (time.monotonic() - began)) / (len(points) - index)
                samples = sample(point.run, Limits(budget_s=left), sense=self.sense)
                yield Taking(self.name, point.parameters, point.amounts, samples, self.tool)


@dataclass(frozen=True, slots=True)
class Batch:
    """An entry of the suite that takes all its points by itself, as a program that is run does; see `Measurement`."""

    name: str
    group: str
    title: str
    weight: float
    run: Callable[[Surroundings, float, Collection[str]], Iterator[Taking]]

    def take(self, around: Surroundings, budget_s: float, have: Collection[str]) -> Iterator[Taking]:
        """Points that are not in `have`."""
        return self.run(around, budget_s, have)


Entry = Measurement | Batch


def optional_library() -> HostLibrary | None:
    """The host library where it can be built."""
    try:
        return load_host_library()
    except CannotMeasure:
        return None
