"""Rows of a file with one JSON object per line, by the names of its fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.traces.lines import BadRow, Lines, read_lines
from stowplan.traces.rows import ReadOptions, Rows, check_row

_SMALLEST, _LARGEST = -(2**63), 2**64


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of a family's fields.

    Attributes:
        arrival: field of arrivals, each `arrival_s` seconds long.
        session, hashes: fields that a row may lack.
    """

    family: str
    arrival: str
    prompt: str
    output: str
    session: str | None = None
    hashes: str | None = None
    arrival_s: float = 1.0

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row holds all fields that this family must have."""
        return all(name in row for name in (self.arrival, self.prompt, self.output))


@dataclass(slots=True)
class _Piece:
    """Columns of one block of lines."""

    values: list[tuple[float, float, float]] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _File:
    rows: Rows
    fields: Fields
    sessions: dict[str, int]

    def read(self, lines: Lines) -> None:
        """Add a block of lines."""
        piece = _Piece()
        for position, text in enumerate(lines.texts):
            try:
                lines.check(position)
                if text and not text.isspace():
                    self._read_row(text, piece)
            except BadRow as bad:
                self.rows.refuse(lines.first + position, bad)
        if not piece.values:
            return
        table = np.array(piece.values, dtype=np.float64)
        self.rows.add(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())
        for pieces, found in (
            (self.rows.session, piece.session),
            (self.rows.hashes, piece.hashes),
            (self.rows.hash_counts, piece.counts),
        ):
            if pieces is not None:
                pieces.append(np.array(found, dtype=np.int64))

    def _read_row(self, text: str, piece: _Piece) -> None:
        row = parsed_object(text)
        names = (self.fields.arrival, self.fields.prompt, self.fields.output)
        arrival, prompt, output = (_number(row, name) for name in names)
        arrival *= self.fields.arrival_s
        check_row(arrival, prompt, output)
        hashes = _hashes(row, self.fields.hashes)
        piece.session.append(self._session(row))
        piece.values.append((arrival, prompt, output))
        piece.hashes += hashes
        piece.counts.append(len(hashes))

    def _session(self, row: Mapping[str, Any]) -> int:
        name = row.get(self.fields.session) if self.fields.session else None
        if name is None or name in ("", -1):
            return -1
        if isinstance(name, str | int):
            return self.sessions.setdefault(str(name), len(self.sessions))
        raise BadRow(f"'{self.fields.session}' is neither text nor a whole number", "session unreadable")


def parsed_object(text: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        BadRow: it is none.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"the line is not JSON ({str(error)[:80]})", "not JSON") from error
    if not isinstance(row, dict):
        raise BadRow("the line is JSON but not an object with named fields", "not an object")
    return row


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = "missing" if name not in row else f"'{str(value)[:40]}', which is not a number"
        raise BadRow(f"'{name}' is {shown}", "not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise BadRow(f"'{name}' is too large to be true", "too large") from error


def _hashes(row: Mapping[str, Any], name: str | None) -> list[int]:
    """Hashes of a row as signed numbers of 64 bits."""
    found = row.get(name, []) if name else []
    if not isinstance(found, list):
        raise BadRow(f"'{name}' is not a list of hashes", "hashes unreadable")
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not _SMALLEST <= value < _LARGEST:
            raise BadRow(
                f"'{name}' holds '{str(value)[:40]}'; hashes are whole numbers of 64 bits", "hashes unreadable"
            )
    return [value if value < -_SMALLEST else value - _LARGEST for value in found]


def read_json_lines(path: Path, fields: Fields, options: ReadOptions) -> Rows:
    """Rows of a file with one JSON object per line, plain or gzip.

    Raises:
        BadFile: unreadable, or a bad row that is not to be skipped.
    """
    rows = Rows(path, options, session=[], hashes=[], hash_counts=[])
    file = _File(rows, fields, {})
    for lines in read_lines(path):
        file.read(lines)
    if rows.hash_counts is not None and not any(bool(counts.any()) for counts in rows.hash_counts):
        rows.hashes = rows.hash_counts = None
    return rows
