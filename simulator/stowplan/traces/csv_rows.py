"""Rows of a CSV file by the names of its columns: whole blocks at once, one by one where a block holds a bad row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stowplan.traces.lines import BadRow, Lines, read_lines
from stowplan.traces.rows import ReadOptions, Rows, all_well, check_row
from stowplan.traces.trace import Floats, Integers

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\Z", re.ASCII)
_NAMED = re.compile(r"[+-]?(?:nan|inf|infinity)\Z", re.IGNORECASE)
_EPOCH = np.datetime64(0, "us")


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of a family's columns, in lower case; None where the family has no such column.

    Attributes:
        arrival: column of arrivals; `dated` says whether they are dates with times in UTC or seconds.
        session: column of conversation ids of any text; empty or ``nan`` is none.
        hashes: column of prefix hashes, whole numbers with spaces between.
    """

    family: str
    prompt: str
    output: str
    arrival: str | None = None
    session: str | None = None
    hashes: str | None = None
    dated: bool = False

    def fits(self, header: Mapping[str, int]) -> bool:
        """Whether a header holds all columns that this family must have."""
        return all(name is None or name in header for name in (self.arrival, self.prompt, self.output))


def columns_of(header: str) -> dict[str, int]:
    """Position of every column of a header line by its name in lower case."""
    names = [name.strip().strip('"').strip().lower() for name in header.split(",")]
    return {name: position for position, name in enumerate(names)}


@dataclass(slots=True)
class _Table:
    """One file being read: where its columns are and what its sessions are called."""

    rows: Rows
    layout: Layout
    header: Mapping[str, int]
    sessions: dict[str, int]

    def __post_init__(self) -> None:
        if self._at(self.layout.session) is not None:
            self.rows.session = []
        if self._at(self.layout.hashes) is not None:
            self.rows.hashes, self.rows.hash_counts = [], []

    def _at(self, name: str | None) -> int | None:
        return None if name is None else self.header.get(name)

    def read(self, lines: Lines) -> None:
        """Add a block of lines."""
        if not lines.broken and self._read_block(lines.texts):
            return
        good: list[str] = []
        values: list[tuple[float, float, float]] = []
        for position, text in enumerate(lines.texts):
            try:
                lines.check(position)
                if text and not text.isspace():
                    values.append(self._parsed(text))
                    good.append(text)
            except BadRow as bad:
                self.rows.refuse(lines.first + position, bad)
        if good:
            table = np.array(values, dtype=np.float64)
            self._add(good, table[:, 0], table[:, 1], table[:, 2], self._hashes(good))

    def _read_block(self, texts: list[str]) -> bool:
        """Add a block whose rows are all good; False, with nothing added, where that is in doubt."""
        if {text.count(",") for text in texts} != {len(self.header) - 1}:
            return False
        numbers = [self.header[self.layout.prompt], self.header[self.layout.output]]
        arrival = self._at(self.layout.arrival)
        if arrival is not None and not self.layout.dated:
            numbers.append(arrival)
        try:
            table = np.loadtxt(texts, delimiter=",", usecols=numbers, comments=None, ndmin=2)
            if arrival is None:
                arrivals = np.zeros(len(table))
            elif self.layout.dated:
                arrivals = _seconds([text.split(",", arrival + 1)[arrival] for text in texts])
            else:
                arrivals = table[:, 2].copy()
            hashes = self._hashes(texts)
        except (ValueError, OverflowError):
            return False
        if len(table) != len(texts) or not all_well(arrivals, table[:, 0], table[:, 1]):
            return False
        self._add(texts, arrivals, table[:, 0].copy(), table[:, 1].copy(), hashes)
        return True

    def _add(
        self, texts: list[str], arrivals: Floats, prompt: Floats, output: Floats, hashes: tuple[Integers, Integers]
    ) -> None:
        session = self._at(self.layout.session)
        if session is not None and self.rows.session is not None:
            self.rows.session.append(self._sessions(texts, session))
        if self.rows.hashes is not None and self.rows.hash_counts is not None:
            self.rows.hashes.append(hashes[0])
            self.rows.hash_counts.append(hashes[1])
        self.rows.add(arrivals, prompt, output)

    def _hashes(self, texts: list[str]) -> tuple[Integers, Integers]:
        """All hashes of these rows and how many each row has.

        Raises:
            ValueError, OverflowError: a hash is not a whole number of 64 bits.
        """
        column = self._at(self.layout.hashes)
        if column is None:
            return np.zeros(0, np.int64), np.zeros(len(texts), np.int64)
        words = [text.split(",", column + 1)[column].strip().strip('"').split() for text in texts]
        found = np.array([int(word) for row in words for word in row], dtype=np.int64)
        return found, np.array([len(row) for row in words], dtype=np.int64)

    def _sessions(self, texts: list[str], column: int) -> Integers:
        ids = np.empty(len(texts), dtype=np.int64)
        for position, text in enumerate(texts):
            name = text.split(",", column + 1)[column].strip()
            known = name and name.lower() not in ("nan", "none", "-1")
            ids[position] = self.sessions.setdefault(name, len(self.sessions)) if known else -1
        return ids

    def _parsed(self, text: str) -> tuple[float, float, float]:
        """Arrival, prompt and output of one line.

        Raises:
            BadRow: a column is missing or is not what it should be.
        """
        fields = [part.strip().strip('"') for part in text.split(",")]
        if len(fields) != len(self.header):
            raise BadRow(f"{len(fields)} columns where the header has {len(self.header)}", "wrong number of columns")
        read = _dated if self.layout.dated else _number
        arrival = (
            0.0 if self.layout.arrival is None else read(self.layout.arrival, fields[self.header[self.layout.arrival]])
        )
        prompt, output = (_number(name, fields[self.header[name]]) for name in (self.layout.prompt, self.layout.output))
        check_row(arrival, prompt, output)
        try:
            self._hashes([text])
        except (ValueError, OverflowError) as error:
            raise BadRow(
                f"'{self.layout.hashes}' must hold whole numbers of 64 bits with spaces between", "hashes unreadable"
            ) from error
        return arrival, prompt, output


def _number(column: str, text: str) -> float:
    if len(text) < 400 and (_NUMBER.match(text) or _NAMED.match(text)):
        return float(text)
    raise BadRow(f"'{column}' is '{text[:40]}', which is not a number", "not a number")


def _dated(column: str, text: str) -> float:
    try:
        return float(_seconds([text])[0])
    except ValueError as error:
        raise BadRow(f"'{column}' is '{text[:40]}', which is not a date with time in UTC", "not a date") from error


def _seconds(texts: list[str]) -> Floats:
    """Seconds since 1970 of dates with times in UTC, rounded down to microseconds.

    Raises:
        ValueError: one is no date, or names another time zone than UTC.
    """
    plain = [text.strip().removesuffix("+00:00").removesuffix("Z") for text in texts]
    if any(len(text) < 19 for text in plain):
        raise ValueError("no date with a time")
    if any(text.rfind("-") > 10 or "+" in text for text in plain):
        raise ValueError("a time zone other than UTC")
    times = np.array(plain, dtype="M8[us]") - _EPOCH
    return np.asarray(times.astype(np.int64) / 1e6)


def read_csv(path: Path, layout: Layout, options: ReadOptions, header: tuple[int, str]) -> Rows:
    """Rows of a CSV file.

    Args:
        path: the file, plain or gzip.
        layout: names of its columns.
        options: what to do with bad rows.
        header: number and text of the line with the names.

    Raises:
        BadFile: unreadable, or a bad row that is not to be skipped.
    """
    rows = Rows(path, options)
    table = _Table(rows, layout, columns_of(header[1]), {})
    for lines in read_lines(path):
        skipped = max(0, header[0] + 1 - lines.first)
        if skipped >= len(lines.texts):
            continue
        kept = {position - skipped: what for position, what in lines.broken.items() if position >= skipped}
        table.read(Lines(lines.first + skipped, lines.texts[skipped:], kept))
    return rows
