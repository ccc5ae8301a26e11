"""Traces as files: CSV or JSON lines in the plain format, or a synthetic log with BurstGPT's columns; gzip by ending.

A file appears in one step, whole or not at all, and has the same bytes for the same trace. What is synthetic says so in
a column of its own, which `reading` finds again.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stowplan.errors import InputError
from stowplan.traces.plain import SYNTHETIC
from stowplan.traces.synthesis import Log
from stowplan.traces.trace import Trace

_PIECE = 50_000
BURSTGPT_HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type,Synthetic"


def check_target(path: Path, endings: Sequence[str] = (".csv", ".jsonl"), *, replace: bool = False) -> None:
    """Refuse a name that cannot be written, before the work that leads to it.

    Raises:
        InputError: the name has another ending, or a file is there already and is not to be replaced.
    """
    if not path.name.removesuffix(".gz").endswith(tuple(endings)):
        allowed = ", ".join(f"{ending}{packed}" for ending in endings for packed in ("", ".gz"))
        raise InputError(f"{path}: the name of a trace to be written ends in one of {allowed}")
    if path.exists() and not replace:
        raise InputError(f"{path}: is there already; choose another name, or write over it with --replace")


def write_trace(trace: Trace, path: Path, *, replace: bool = False) -> None:
    """Write a trace as CSV, or as JSON lines where the name says ``.jsonl``; packed where it ends in ``.gz``.

    Raises:
        InputError: the name has another ending, a file is there already, or it cannot be written.
    """
    check_target(path, replace=replace)
    _write(path, _json_rows(trace) if ".jsonl" in path.suffixes else _csv_rows(trace))


def write_log(log: Log, path: Path, *, replace: bool = False) -> None:
    """Write a synthetic log, failures included, as CSV with the columns of BurstGPT; packed where it ends in ``.gz``.

    Raises:
        InputError: the name has another ending, a file is there already, or it cannot be written.
    """
    check_target(path, (".csv",), replace=replace)
    _write(path, _log_rows(log))


def _write(path: Path, pieces: Iterator[str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as text:
                    text.writelines(pieces)
            else:
                raw.writelines(piece.encode("utf-8") for piece in pieces)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _csv_rows(trace: Trace) -> Iterator[str]:
    extra = ["session"] if trace.session is not None else []
    extra += ["prefix_hashes"] if trace.prefix is not None else []
    extra += [SYNTHETIC] if SYNTHETIC in trace.origin else []
    yield ",".join(["arrival_s", "prompt_tokens", "output_tokens", *extra]) + "\n"
    for first, last in _pieces(len(trace)):
        columns: list[list[str]] = [
            [repr(value) for value in trace.arrival_s[first:last].tolist()],
            [str(value) for value in trace.prompt_tokens[first:last].tolist()],
            [str(value) for value in trace.output_tokens[first:last].tolist()],
        ]
        if trace.session is not None:
            columns.append([str(value) for value in trace.session[first:last].tolist()])
        if trace.prefix is not None:
            columns.append([" ".join(map(str, trace.prefix.of(row).tolist())) for row in range(first, last)])
        if SYNTHETIC in trace.origin:
            columns.append(["1"] * (last - first))
        yield "".join(",".join(fields) + "\n" for fields in zip(*columns, strict=True))


def _json_rows(trace: Trace) -> Iterator[str]:
    for first, last in _pieces(len(trace)):
        lines = []
        for row in range(first, last):
            fields: dict[str, object] = {
                "arrival_s": float(trace.arrival_s[row]),
                "prompt_tokens": int(trace.prompt_tokens[row]),
                "output_tokens": int(trace.output_tokens[row]),
            }
            if trace.session is not None:
                fields["session"] = int(trace.session[row])
            if trace.prefix is not None:
                fields["prefix_hashes"] = trace.prefix.of(row).tolist()
            if SYNTHETIC in trace.origin:
                fields[SYNTHETIC] = True
            lines.append(json.dumps(fields) + "\n")
        yield "".join(lines)


def _log_rows(log: Log) -> Iterator[str]:
    yield BURSTGPT_HEADER + "\n"
    for first, last in _pieces(len(log.arrival_s)):
        columns = (log.arrival_s, log.model, log.prompt_tokens, log.output_tokens, log.log_type)
        rows = zip(*(column[first:last].tolist() for column in columns), strict=True)
        yield "".join(
            f"{arrival:.15g},{log.models[model]},{prompt},{output},{prompt + output},{log.log_types[kind]},1\n"
            for arrival, model, prompt, output, kind in rows
        )


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _PIECE, count)) for first in range(0, count, _PIECE))
