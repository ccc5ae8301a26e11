"""Outcomes on disk: what is finished stays finished, whoever is killed, and several processes may share one file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stowplan.errors import BadFile

_BUSY_S = 60.0
_MOST_ASKED = 500  # SQLite takes 999 parameters in its smallest builds
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcome (
    key TEXT PRIMARY KEY,
    scenario TEXT NOT NULL,
    outcome TEXT NOT NULL
) WITHOUT ROWID
"""


class Store:
    """Outcomes by key in an SQLite file in write-ahead mode; each outcome is committed by itself.

    Raises:
        BadFile: the file is no store, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_SCHEMA)

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Outcomes that are there, by key."""
        found: dict[str, str] = {}
        with self._open() as connection:
            for start in range(0, len(keys), _MOST_ASKED):
                asked = keys[start : start + _MOST_ASKED]
                marks = ",".join("?" * len(asked))
                found |= dict(connection.execute(f"SELECT key, outcome FROM outcome WHERE key IN ({marks})", asked))
        return found

    def put(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Keep (key, scenario, outcome) rows; one that is there already stays as it is."""
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO outcome VALUES (?, ?, ?)", list(rows))

    def __len__(self) -> int:
        with self._open() as connection:
            return int(connection.execute("SELECT count(*) FROM outcome").fetchone()[0])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=_BUSY_S)
            try:
                connection.execute("PRAGMA synchronous = NORMAL")  # in this mode a killed process loses nothing
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise BadFile(f"{self.path}: cannot be used as a store of results ({error}); name another file") from error
