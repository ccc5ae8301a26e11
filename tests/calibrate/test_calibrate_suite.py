"""A suite keeps to its budget, resumes, keeps partial results when it is cancelled or the disk is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stowplan.errors import BadFile, InputError
from stowplan.machines import load_machine
from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.campaign import chosen_groups, save_profile, whole_suite
from stowplan_calibrate.derive import NothingMeasured
from stowplan_calibrate.measuring import Entry, Measurement, Point, Surroundings
from stowplan_calibrate.results import Record, ResultsFolder, Skipped
from stowplan_calibrate.sampling import Taken
from stowplan_calibrate.suite import Outcome, environment, host_suite, run_suite


class Told:
    """What a run said, in order."""

    def __init__(self, cancel_after: int = 10**9) -> None:
        self.lines: list[str] = []
        self._cancel_after = cancel_after

    def started(self, entry: Entry, left_s: float) -> None:
        self.lines.append(f"start {entry.name}")

    def finished(self, record: Record) -> None:
        self.lines.append(f"done {record.name} {record.label}")
        if sum(line.startswith("done") for line in self.lines) >= self._cancel_after:
            raise KeyboardInterrupt

    def skipped(self, skipped: Skipped) -> None:
        self.lines.append(f"skip {skipped.name}")


def measurement(name: str, points: int, seconds: float = 1e-4, log: list[str] | None = None) -> Measurement:
    @contextmanager
    def open_(around: Surroundings) -> Iterator[Sequence[Point]]:
        (log if log is not None else []).append(f"open {name}")
        yield [Point({"threads": i}, {"bytes": 1e6}, lambda: Taken(seconds)) for i in range(1, points + 1)]
        (log if log is not None else []).append(f"close {name}")

    return Measurement(name, "cpu", name, 1.0, open_, "a test")


def refusing(name: str) -> Measurement:
    @contextmanager
    def open_(around: Surroundings) -> Iterator[Sequence[Point]]:
        if around.cores:
            raise CannotMeasure("O_DIRECT is refused (Invalid argument)")
        yield []

    return Measurement(name, "disk", name, 1.0, open_)


def run(folder: Path, suite: Sequence[Entry], told: Told | None = None, budget_s: float = 0.05) -> Outcome:
    around = Surroundings(cores=2, memory=1e9, folder=folder)
    return run_suite(suite, around, ResultsFolder(folder), told or Told(), budget_s=budget_s)


def test_points_are_measured_and_refusals_kept_with_their_reason(tmp_path: Path) -> None:
    told = Told()
    outcome = run(tmp_path, [measurement("host.read", 2), refusing("disk.read"), measurement("host.copy", 1)], told)
    assert (outcome.measured, outcome.cancelled) == (3, False)
    assert [each.name for each in outcome.skipped] == ["disk.read"]
    assert told.lines == [
        "start host.read",
        "done host.read threads 1",
        "done host.read threads 2",
        "start disk.read",
        "skip disk.read",
        "start host.copy",
        "done host.copy threads 1",
    ]
    found = ResultsFolder(tmp_path).read()
    assert [record.tool for record in found.records] == ["a test"] * 3
    assert "O_DIRECT" in found.skipped[0].reason


def test_a_cancelled_run_keeps_its_points_and_the_next_one_goes_on(tmp_path: Path) -> None:
    log: list[str] = []
    suite = [measurement("host.read", 3, log=log), measurement("host.copy", 2, log=log)]
    first = run(tmp_path, suite, Told(cancel_after=2))
    assert first.cancelled
    assert len(ResultsFolder(tmp_path).read().records) == 2
    second = run(tmp_path, suite)
    assert (second.measured, second.present, second.cancelled) == (3, 2, False)
    assert len(ResultsFolder(tmp_path).read().records) == 5
    third = run(tmp_path, suite)
    assert (third.measured, third.present) == (0, 5)


def test_time_is_shared_and_kept_to(tmp_path: Path) -> None:
    now = iter(range(10_000))
    outcome = run_suite(
        [measurement("host.read", 1)],
        Surroundings(cores=2, memory=1e9, folder=tmp_path),
        ResultsFolder(tmp_path),
        Told(),
        budget_s=0.0,
        now=lambda: float(next(now)),
    )
    assert outcome.measured == 1
    assert len(ResultsFolder(tmp_path).read().records[0].samples.seconds) == 3


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").mkdir()
    with pytest.raises(BadFile, match="cannot be written"):
        run(tmp_path, [measurement("host.read", 1)])


def test_names_of_the_host_suite_are_unique_and_grouped() -> None:
    suite = host_suite("gcc")
    assert len({entry.name for entry in suite}) == len(suite)
    assert {entry.group for entry in suite} == {"cpu", "disk"}


def test_gpu_entries_are_there_only_where_they_can_be(tmp_path: Path) -> None:
    without = Surroundings(cores=2, memory=1e9, folder=tmp_path)
    assert all(entry.group in ("cpu", "disk") for entry in whole_suite(without, None, None))
    asked = whole_suite(without, ("gpu", "pcie"), None)
    assert asked
    for entry in asked:
        with pytest.raises(CannotMeasure, match="no NVIDIA GPU is here"):
            list(entry.take(without, 1.0, ()))
    two = Surroundings(cores=2, memory=1e9, folder=tmp_path, gpus=2)
    names = [entry.name for entry in whole_suite(two, ("pcie",), None)]
    assert {"cuda.copies.0", "cuda.copies.1"} <= set(names)


@pytest.mark.parametrize("text", ["", "cpus", "cpu,ssd", ","])
def test_unknown_groups_are_named(text: str) -> None:
    with pytest.raises(InputError, match="gpu, pcie, cpu, disk"):
        chosen_groups(text)


def test_groups_are_read() -> None:
    assert chosen_groups(None) is None
    assert chosen_groups(" CPU, disk,cpu") == ("cpu", "disk")


def test_no_profile_is_made_of_nothing(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.append(Skipped("disk.read", "disk", "O_DIRECT is refused"))
    with pytest.raises(NothingMeasured, match="O_DIRECT is refused"):
        save_profile(load_machine("cpu-laptop-32"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["measurements.jsonl"]


def test_the_environment_says_where_it_was(tmp_path: Path) -> None:
    found = environment(Surroundings(cores=4, memory=1e9, folder=tmp_path), "a machine", {"gcc": "12"})
    assert (found["machine"], found["cores"], found["versions"]) == ("a machine", 4, {"gcc": "12"})
