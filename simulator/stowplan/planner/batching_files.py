"""Request lengths from CSV or JSONL, and batches to and from JSONL.

A batches file starts with one record of the whole (``schema_version``, method, makespan, bound) and has one record for
every batch in the order in which they run, with its requests by their number in the requests file, counted from 0.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stowplan.errors import BadFile
from stowplan.plan import write_atomically

if TYPE_CHECKING:
    from stowplan.planner.batching import Batching
    from stowplan.planner.batching_costs import Requests
    from stowplan.planner.batching_run import BatchRun

SCHEMA = "stowplan.batches/1"
COLUMNS = ("prompt_tokens", "output_tokens")

_LONGEST_LINE = 2**24
_MOST_REQUESTS = 200_000


def read_requests(path: Path) -> Requests:
    """Lengths of a ``.csv`` or ``.jsonl`` file (or ``.gz`` of either) with the columns prompt_tokens, output_tokens.

    Raises:
        BadFile: not readable, another ending, a missing column, a length that is no whole number in range, an endless
            line or too many requests; names the file and the line.
    """
    from stowplan.planner.batching_costs import Requests

    ending = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if ending not in ("csv", "jsonl"):
        raise BadFile(f"{path}: the name must end in .csv or .jsonl (or either with .gz)")
    rows = _csv_rows(path) if ending == "csv" else _jsonl_rows(path)
    prompt, output = list[int](), list[int]()
    for line, row in rows:
        if len(prompt) == _MOST_REQUESTS:
            raise BadFile(f"{path}, line {line}: more than {_MOST_REQUESTS} requests; split the file")
        prompt.append(_length(row, COLUMNS[0], 1, f"{path}, line {line}"))
        output.append(_length(row, COLUMNS[1], 0, f"{path}, line {line}"))
    if not prompt:
        raise BadFile(f"{path}: holds no requests")
    return Requests.of(prompt, output)


def write_batches(path: Path, batching: Batching, runs: Sequence[BatchRun]) -> None:
    """Write batches in one step; raises `BadFile` when that fails."""
    records: list[dict[str, Any]] = [
        {
            "schema_version": SCHEMA,
            "method": batching.method,
            "requests": sum(len(batch.requests) for batch in batching.batches),
            "batches": len(batching.batches),
            "makespan_s": batching.makespan_s,
            "bound_s": batching.bound_s,
            "gap": batching.gap,
        }
    ]
    records += [
        {
            "batch": number,
            "requests": list(batch.requests),
            "reserved_tokens": batch.reserved,
            "start_s": run.start_s,
            "prefilled_s": run.prefilled_s,
            "end_s": run.end_s,
            "micro_batches": [[[p.request, p.first, p.last] for p in pieces] for pieces in run.micro_batches],
        }
        for number, (batch, run) in enumerate(zip(batching.batches, runs, strict=True))
    ]
    lines = (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in records)
    write_atomically(path, "".join(lines).encode("utf-8"))


def read_batches(path: Path) -> list[list[int]]:
    """Request numbers of every batch of a file that `write_batches` wrote, in order.

    Raises:
        BadFile: not such a file, or a request that is missing or named twice.
    """
    rows = [row for _, row in _jsonl_rows(path)]
    if not rows or rows[0].get("schema_version") != SCHEMA:
        raise BadFile(f"{path}: is no batches file ({SCHEMA}); `stowplan batch ... -o FILE.jsonl` writes them")
    batches: list[list[int]] = []
    for number, row in enumerate(rows[1:]):
        members = row.get("requests")
        if not isinstance(members, list) or not all(type(each) is int for each in members) or not members:
            raise BadFile(f"{path}, line {number + 2}: requests: expected a list of request numbers")
        batches.append(members)
    served = sorted(request for members in batches for request in members)
    if served != list(range(len(served))) or len(served) != rows[0].get("requests"):
        raise BadFile(f"{path}: a request is missing or in two batches")
    return batches


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, none longer than 16 MiB."""
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise BadFile(f"{path}, line {number}: longer than 16 MiB; expected one request per line")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise BadFile(f"{path}, line {number}: is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise BadFile(f"{path}: cannot be read ({reason})") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            found = ", ".join(header)[:100] or "nothing"
            raise BadFile(
                f"{path}, line 1: no column {' or '.join(missing)} (found: {found}); the first line names them"
            )
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise BadFile(f"{path}, line {reader.line_num}: {len(row)} values for {len(header)} columns")
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise BadFile(f"{path}, line {reader.line_num}: is not CSV ({error})") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadFile(f"{path}, line {number}: is not JSON ({str(error)[:100]})") from error
        if not isinstance(row, dict):
            raise BadFile(
                f'{path}, line {number}: expected an object such as {{"prompt_tokens": 74, "output_tokens": 9}}'
            )
        yield number, row


def _length(row: Mapping[str, object], column: str, least: int, where: str) -> int:
    from stowplan.planner.batching_costs import LONGEST

    value = row.get(column)
    text = value.strip() if isinstance(value, str) else value
    whole = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20 else text
    if type(whole) is not int or not least <= whole <= LONGEST:
        raise BadFile(f"{where}: {column} is {str(value)[:40]!r}; expected a whole number from {least} to {LONGEST}")
    return whole
