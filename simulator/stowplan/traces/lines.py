"""Lines of a text file, plain or gzip, in blocks of bounded size whatever the file contains."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from stowplan.errors import BadFile

LONGEST_LINE = 8 * 2**20
"""Bytes of a line beyond which it is not kept; a prompt of two million tokens as hashes of 16-token blocks fits."""

_BLOCK = 4 * 2**20
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadRow(ValueError):
    """A row that cannot be read: the problem as a sentence, and the same in few words."""

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Lines:
    """Consecutive lines without their ends.

    Attributes:
        first: number of the first line, counted from 1.
        texts: the lines; a broken one is empty.
        broken: what is wrong with a line that cannot be shown as text, by position in `texts`.
    """

    first: int
    texts: list[str]
    broken: Mapping[int, str] = field(default_factory=dict)

    def check(self, position: int) -> None:
        """Refuse a broken line.

        Raises:
            BadRow: the line cannot be shown as text.
        """
        if position in self.broken:
            raise BadRow(self.broken[position], "not text")


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked where it is gzip by its first bytes.

    Raises:
        BadFile: it cannot be opened, read or unpacked.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            if not packed:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked  # type: ignore[misc]  # GzipFile reads as IO[bytes] does without being declared so
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFile(f"{path}: is a damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error


def first_line(path: Path) -> tuple[int, str]:
    """Number and text of the first line that is not blank; number 0 where there is none.

    Raises:
        BadFile: unreadable, or that line is not text or is longer than `LONGEST_LINE`.
    """
    for lines in read_lines(path):
        for position, text in enumerate(lines.texts):
            if position in lines.broken:
                raise BadFile(f"{path}:{lines.first + position}: {lines.broken[position]}")
            if text and not text.isspace():
                return lines.first + position, text
    return 0, ""


def read_lines(path: Path) -> Iterator[Lines]:
    """All lines of a file.

    Raises:
        BadFile: it cannot be opened, read or unpacked.
    """
    with open_bytes(path) as stream:
        number, pending, skipping = 1, b"", False
        while piece := stream.read(_BLOCK):
            if number == 1 and not pending and not skipping:
                piece = piece.removeprefix(_BYTE_ORDER_MARK)
            if skipping:
                _, newline, piece = piece.partition(b"\n")
                if not newline:
                    continue
                skipping = False
            data = pending + piece if pending else piece
            end = data.rfind(b"\n")
            pending = data[end + 1 :]
            if end >= 0:
                lines = _decoded(number, data[:end])
                yield lines
                number += len(lines.texts)
            if len(pending) > LONGEST_LINE:
                yield Lines(number, [""], {0: _too_long()})
                number, pending, skipping = number + 1, b"", True
        if pending:
            yield _decoded(number, pending)


def _decoded(number: int, data: bytes) -> Lines:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").removesuffix(b"\r")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _one_by_one(number, data)
    texts = text.split("\n")
    if b"\0" in data or (len(data) > LONGEST_LINE and max(map(len, texts)) > LONGEST_LINE):
        return _one_by_one(number, data)
    return Lines(number, texts)


def _one_by_one(number: int, data: bytes) -> Lines:
    texts: list[str] = []
    broken: dict[int, str] = {}
    for position, line in enumerate(data.split(b"\n")):
        text = ""
        if len(line) > LONGEST_LINE:
            broken[position] = _too_long()
        elif b"\0" in line:
            broken[position] = "the line holds a zero byte and is not text"
        else:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                broken[position] = "the line is not UTF-8 text"
        texts.append(text)
    return Lines(number, texts, broken)


def _too_long() -> str:
    return f"the line is longer than {LONGEST_LINE // 2**20} MiB; one request per line is expected"
