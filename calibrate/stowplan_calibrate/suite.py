"""The list of measurements, run within a time budget, resumable, with everything kept that was finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.host import compute, disk, memory, nodes
from stowplan_calibrate.measuring import Entry, Measurement, Opener, Surroundings
from stowplan_calibrate.results import Record, ResultsFolder, Skipped
from stowplan_calibrate.sensors import host_sensors

FULL_S, QUICK_S = 240.0, 60.0
"""Time budgets of a full and of a quick run in seconds."""


def host_suite(tool: str) -> tuple[Measurement, ...]:
    """Measurements that need no GPU; `tool` is what built the host library, or what stands in for it."""

    def entry(name: str, group: str, title: str, weight: float, open_: Opener) -> Measurement:
        return Measurement(name, group, title, weight, open_, tool, host_sensors)

    return (
        entry("host.clock", "cpu", "clock of the cores", 1, compute.clocks),
        entry("host.fma", "cpu", "peak of the vector units", 1, compute.peaks),
        entry("host.read", "cpu", "reading host memory", 4, memory.reads),
        entry("host.copy", "cpu", "copying host memory", 2, memory.copies),
        entry("host.triad", "cpu", "triad over host memory", 2, memory.triads),
        entry("host.gemv", "cpu", "products with one row", 4, compute.gemv),
        entry("host.gemm", "cpu", "matrix products", 3, compute.gemm),
        entry("host.attention", "cpu", "attention on the CPU", 2, compute.attention),
        entry("host.faults", "cpu", "page faults of fresh memory", 1, memory.anonymous_faults),
        entry("host.nodes", "cpu", "memory of other nodes", 2, nodes.cross_reads),
        entry("disk.read", "disk", "reading the disk", 5, disk.reads),
        entry("disk.write", "disk", "writing the disk", 4, disk.writes),
        entry("disk.mapped", "disk", "page faults of a mapped file", 3, disk.mapped),
    )


class Watcher(Protocol):
    """What is told while the suite runs."""

    def started(self, entry: Entry, left_s: float) -> None:
        """An entry begins; so many seconds of the budget are left."""

    def finished(self, record: Record) -> None:
        """A point is done and kept."""

    def skipped(self, skipped: Skipped) -> None:
        """A measurement cannot be made here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: points measured, points that were there already, measurements skipped, and seconds."""

    measured: int
    present: int
    skipped: tuple[Skipped, ...]
    seconds: float
    cancelled: bool = False


def run_suite(
    suite: Sequence[Entry],
    around: Surroundings,
    folder: ResultsFolder,
    watcher: Watcher,
    *,
    budget_s: float,
    now: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Take every measurement of the suite that the folder does not hold yet.

    Time is shared by weight; what one measurement leaves goes to the later ones. Cancelling (Ctrl-C) keeps every point
    that was finished.

    Raises:
        BadFile: the folder cannot be read or written; everything before stays.
    """
    began, measured = now(), 0
    left_out: list[Skipped] = []
    done = {record.point for record in folder.read().records}
    present = len(done)
    try:
        for index, entry in enumerate(suite):
            weights = sum(each.weight for each in suite[index:])
            left = max(0.0, budget_s - (now() - began))
            watcher.started(entry, left)
            try:
                for taking in entry.take(around, left * entry.weight / weights, done):
                    date = datetime.now(UTC).isoformat(timespec="seconds")
                    record = Record(
                        taking.name, entry.group, taking.parameters, taking.amounts, taking.samples, taking.tool, date
                    )
                    folder.append(record)
                    done.add(record.point)
                    measured += 1
                    watcher.finished(record)
            except CannotMeasure as error:
                skipped = Skipped(entry.name, entry.group, str(error))
                folder.append(skipped)
                left_out.append(skipped)
                watcher.skipped(skipped)
    except KeyboardInterrupt:
        return Outcome(measured, present, tuple(left_out), now() - began, cancelled=True)
    return Outcome(measured, present, tuple(left_out), now() - began)


def environment(around: Surroundings, machine: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """What a results folder says of where it was measured."""
    return {
        "schema": "stowplan.environment/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "cores": around.cores,
        "nodes": around.nodes,
        "memory_bytes": around.memory,
        "folder": str(around.folder),
        "quick": around.quick,
        "versions": dict(versions),
    }
