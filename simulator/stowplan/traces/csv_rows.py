"""Rows of a CSV file by the names of its columns: whole blocks at once, one by one where a block holds a bad row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stowplan.errors import BadFile
from stowplan.traces.lines import Lines, read_lines
from stowplan.traces.rows import ReadOptions, Rows, all_well, row_problem
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
            number = lines.first + position
            if position in lines.broken:
                self.rows.refuse(number, lines.broken[position], "not text")
                continue
            if not text or text.isspace():
                continue
            parsed = self._parsed(text)
            problem = parsed if isinstance(parsed[0], str) else row_problem(*parsed)  # type: ignore[arg-type]
            if problem is not None:
                self.rows.refuse(number, str(problem[0]), str(problem[1]))
                continue
            good.append(text)
            values.append(parsed)  # type: ignore[arg-type]
        if good:
            table = np.array(values, dtype=np.float64)
            self._add(good, table[:, 0], table[:, 1], table[:, 2])

    def _read_block(self, texts: list[str]) -> bool:
        """Add a block whose rows are all good; False, with nothing added, where that is in doubt."""
        whole = "\n".join(texts)
        if whole.count(",") != len(texts) * (len(self.header) - 1) or '"' in whole:
            return False
        numbers = [self.header[self.layout.prompt], self.header[self.layout.output]]
        arrival = self._at(self.layout.arrival)
        if arrival is not None and not self.layout.dated:
            numbers.append(arrival)
        if any(not text or text.isspace() for text in texts):
            return False
        try:
            table = np.loadtxt(texts, delimiter=",", usecols=numbers, comments=None, ndmin=2)
            if arrival is None:
                arrivals = np.zeros(len(table))
            elif self.layout.dated:
                arrivals = _seconds([text.split(",", arrival + 1)[arrival] for text in texts])
            else:
                arrivals = table[:, 2].copy()
        except ValueError:
            return False
        if len(table) != len(texts) or not all_well(arrivals, table[:, 0], table[:, 1]):
            return False
        return self._add(texts, arrivals, table[:, 0].copy(), table[:, 1].copy())

    def _add(self, texts: list[str], arrivals: Floats, prompt: Floats, output: Floats) -> bool:
        session, hashes = self._at(self.layout.session), self._at(self.layout.hashes)
        if session is not None and self.rows.session is not None:
            self.rows.session.append(self._sessions(texts, session))
        if hashes is not None and self.rows.hashes is not None and self.rows.hash_counts is not None:
            fields = [text.split(",", hashes + 1)[hashes].split() for text in texts]
            try:
                self.rows.hashes.append(np.array([int(word) for words in fields for word in words], dtype=np.int64))
            except (ValueError, OverflowError) as error:
                raise BadFile(
                    f"{self.rows.path}: column '{self.layout.hashes}' must hold whole numbers of 64 bits with spaces "
                    f"between them ({error})"
                ) from error
            self.rows.hash_counts.append(np.array([len(words) for words in fields], dtype=np.int64))
        self.rows.add(arrivals, prompt, output)
        return True

    def _sessions(self, texts: list[str], column: int) -> Integers:
        ids = np.empty(len(texts), dtype=np.int64)
        for position, text in enumerate(texts):
            name = text.split(",", column + 1)[column].strip()
            known = name and name.lower() not in ("nan", "none", "-1")
            ids[position] = self.sessions.setdefault(name, len(self.sessions)) if known else -1
        return ids

    def _parsed(self, text: str) -> tuple[float, float, float] | tuple[str, str]:
        """Arrival, prompt and output of one line, or a sentence and a reason why it has none."""
        fields = [part.strip().strip('"') for part in text.split(",")]
        if len(fields) != len(self.header):
            return f"{len(fields)} columns where the header has {len(self.header)}", "wrong number of columns"
        arrival = 0.0
        if self.layout.arrival is not None:
            shown = fields[self.header[self.layout.arrival]]
            found = _dated(shown) if self.layout.dated else _number(shown)
            if found is None:
                kind = "a date and time in UTC" if self.layout.dated else "a number"
                return f"'{self.layout.arrival}' is '{shown[:40]}', which is not {kind}", f"not {kind}"
            arrival = found
        lengths = []
        for name in (self.layout.prompt, self.layout.output):
            shown = fields[self.header[name]]
            found = _number(shown)
            if found is None:
                return f"'{name}' is '{shown[:40]}', which is not a number", "not a number"
            lengths.append(found)
        return arrival, lengths[0], lengths[1]


def _number(text: str) -> float | None:
    return float(text) if (_NUMBER.match(text) or _NAMED.match(text)) and len(text) < 400 else None


def _dated(text: str) -> float | None:
    try:
        return float(_seconds([text])[0])
    except ValueError:
        return None


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


Reader = Callable[[Path, ReadOptions, tuple[int, str]], Rows]
