"""What was fitted on what: every constant of the engines and every machine-wide fraction, with its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stowplan.datafiles import data_folder, read_toml


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant that predictions rest on.

    Attributes:
        file: data file that it is in.
        name: dotted name within the file.
        value: as written there, with its unit.
        kind: measured, fitted, datasheet or assumed.
        where: what it was read from or fitted to.
    """

    file: str
    name: str
    value: str
    kind: str
    where: str


def constants() -> list[Constant]:
    """Constants of every engine and the fractions that all machines share, in the order of the files."""
    root = data_folder("hwprofiles")
    files = [root / "rates.toml", *sorted((root / "kernels").glob("*.toml"))]
    return [
        Constant(path.name, name, str(entry["value"]), str(entry.get("source", "")), str(entry.get("where", "")))
        for path in files
        for name, entry in _entries("", read_toml(path))
    ]


def _entries(prefix: str, table: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for key, entry in table.items():
        if isinstance(entry, Mapping):
            if "value" in entry:
                yield f"{prefix}{key}", entry
            else:
                yield from _entries(f"{prefix}{key}.", entry)
