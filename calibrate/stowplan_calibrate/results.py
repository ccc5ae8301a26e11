"""Results of a calibration: one folder, one JSON line per measurement with every raw sample, safe to interrupt.

``environment.json`` says what was measured on and with; ``measurements.jsonl`` grows by one whole line at a time. A
line that a crash or a full disk cut short is taken away before the next one is written, and is ignored by readers.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from stowplan.errors import BadFile
from stowplan.plan import write_atomically
from stowplan_calibrate.sampling import Sampled

SCHEMA = "stowplan.measurement/1"
_LARGEST_FILE = 512 * 2**20
Parameter = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement at one point.

    Attributes:
        name: what was measured, such as ``host.read`` or ``gpu.h2d``.
        group: cpu, disk, gpu or pcie.
        parameters: the point: threads, bytes, shapes, formats.
        amounts: what one sample moves or computes: bytes, flops, operations.
        samples: every raw sample in seconds, and the sensors.
        tool, date: what took it and when (ISO 8601, UTC).
    """

    name: str
    group: str
    parameters: Mapping[str, Parameter]
    amounts: Mapping[str, float]
    samples: Sampled
    tool: str
    date: str

    @property
    def point(self) -> str:
        """Name and parameters as one text: what makes a measurement the same one when a run is resumed."""
        return identity(self.name, self.parameters)

    def rate(self, amount: str = "bytes") -> float:
        """Amount per second of an undisturbed run."""
        return self.amounts[amount] / self.samples.figure

    @property
    def label(self) -> str:
        """The point for people: ``threads 2, bytes 268435456``."""
        return ", ".join(f"{name} {value}" for name, value in self.parameters.items())


@dataclass(frozen=True, slots=True)
class Taking:
    """A point as it was taken, before the suite adds group and date."""

    name: str
    parameters: Mapping[str, Parameter]
    amounts: Mapping[str, float]
    samples: Sampled
    tool: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A measurement that could not be made, and the sentence that says why."""

    name: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that a folder holds.

    Attributes:
        environment: machine, versions and date of the run.
        records: measurements in the order taken; of two at the same point the later one.
        skipped: what could not be measured, the last word of each.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def named(self, name: str) -> list[Record]:
        """Records of one measurement."""
        return [record for record in self.records if record.name == name]


def identity(name: str, parameters: Mapping[str, Parameter]) -> str:
    """One text for a measurement at a point."""
    return json.dumps([name, dict(sorted(parameters.items()))], separators=(",", ":"))


class ResultsFolder:
    """A folder that a run appends to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = folder / "measurements.jsonl"

    def prepare(self, environment: Mapping[str, Any]) -> None:
        """Make the folder and write what is said of where the measurements are taken.

        Raises:
            BadFile: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadFile(f"{self.folder}: the folder cannot be made ({error.strerror or error})") from error
        text = json.dumps(environment, indent=2, sort_keys=True) + "\n"
        write_atomically(self.folder / "environment.json", text.encode())

    def append(self, item: Record | Skipped) -> None:
        """Add one line, whole or not at all.

        Raises:
            BadFile: it cannot be written: no room, no permission.
        """
        line = (json.dumps(_document(item), separators=(",", ":")) + "\n").encode()
        try:
            with open(self.lines, "ab", buffering=0) as file:
                before = _whole_bytes(self.lines)
                file.truncate(before)
                try:
                    _write_whole(file, line)
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as error:
            raise BadFile(
                f"{self.lines}: cannot be written ({error.strerror or error}); what was measured before is kept"
            ) from error

    def read(self) -> Results:
        """What the folder holds; raises as `read_results`, but an absent folder is empty."""
        return read_results(self.folder) if self.lines.is_file() else Results()


def read_results(folder: Path) -> Results:
    """Records of a results folder.

    Raises:
        BadFile: no such folder, too large, or a line that is no measurement.
    """
    path = folder / "measurements.jsonl"
    environment: dict[str, Any] = {}
    if (folder / "environment.json").is_file():
        environment = _read_json(folder / "environment.json")
    records: dict[str, Record] = {}
    skipped: dict[str, Skipped] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        item = _item(line, f"{path}: line {number}")
        if isinstance(item, Skipped):
            skipped[item.name] = item
        else:
            records.pop(item.point, None)
            records[item.point] = item
    done = {record.name for record in records.values()}
    return Results(environment, tuple(records.values()), tuple(s for s in skipped.values() if s.name not in done))


def _document(item: Record | Skipped) -> dict[str, Any]:
    return {"schema": SCHEMA, "kind": "skipped" if isinstance(item, Skipped) else "record"} | asdict(item)


def _write_whole(file: FileIO, line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, "no room for the whole line")
    os.fsync(file.fileno())


def _whole_bytes(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    content = path.read_bytes() if path.is_file() else b""
    return content.rfind(b"\n") + 1


def _whole_lines(path: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise BadFile(f"{path}: larger than 512 MiB; a calibration writes a few megabytes")
        text = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error}); run `stowplan calibrate run`") from error
    try:
        yield from text[: text.rfind(b"\n") + 1].decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: is not UTF-8 text ({error.reason})") from error


def _item(line: str, where: str) -> Record | Skipped:
    try:
        raw = json.loads(line)
        if raw["schema"] != SCHEMA:
            raise BadFile(f"{where}: schema '{str(raw['schema'])[:60]}' is not {SCHEMA}; measure again")
        if raw["kind"] == "skipped":
            return Skipped(str(raw["name"]), str(raw["group"]), str(raw["reason"]))
        samples = raw["samples"]
        sensors = {str(name): (float(pair[0]), float(pair[1])) for name, pair in samples["sensors"].items()}
        return Record(
            name=str(raw["name"]),
            group=str(raw["group"]),
            parameters=dict(raw["parameters"]),
            amounts={str(name): float(value) for name, value in raw["amounts"].items()},
            samples=_sampled(samples, sensors),
            tool=str(raw["tool"]),
            date=str(raw["date"]),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise BadFile(f"{where}: is not a measurement ({type(error).__name__}: {error})") from error


def _sampled(raw: Mapping[str, Any], sensors: Mapping[str, tuple[float, float]]) -> Sampled:
    seconds, running = _positive(raw["seconds"]), tuple(float(share) for share in raw.get("running", ()))
    if running and (len(running) != len(seconds) or not all(0.0 <= share <= 1.0 for share in running)):
        raise ValueError("running must hold one share between 0 and 1 for every sample")
    return Sampled(seconds, sensors, str(raw["stopped"]), running)


def _positive(values: Iterable[Any]) -> tuple[float, ...]:
    seconds = tuple(float(value) for value in values)
    if not seconds or not all(0.0 < value < 1e9 for value in seconds):
        raise ValueError("seconds must be positive numbers")
    return seconds


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadFile(f"{path}: must hold one JSON object")
    return found
