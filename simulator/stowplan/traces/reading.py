"""Any file as a trace: its family is told by its header or first row; shipped and downloaded traces have names."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path

from stowplan.errors import BadFile
from stowplan.traces import azure, burstgpt, lengths, mooncake, plain
from stowplan.traces.catalogue import catalogue, find
from stowplan.traces.csv_rows import Layout, columns_of, read_csv
from stowplan.traces.json_rows import Fields, parsed_object, read_json_lines
from stowplan.traces.lines import BadRow, first_line
from stowplan.traces.rows import ReadOptions, Rows, with_arrivals
from stowplan.traces.servegen import is_servegen, read_servegen
from stowplan.traces.trace import Trace

LAYOUTS: Sequence[Layout] = (burstgpt.LAYOUT, azure.LAYOUT, plain.LAYOUT, lengths.LAYOUT, lengths.PLAIN_LAYOUT)
FIELDS: Sequence[Fields] = (mooncake.FIELDS, plain.FIELDS)


def load_trace(name: str, options: ReadOptions | None = None) -> Trace:
    """A trace by the name of a shipped one, of a generator, or by the path of a file.

    Raises:
        UnknownName: neither a file nor a known name.
        InputError: the file cannot be read as a trace.
    """
    chosen = options or ReadOptions()
    if os.path.exists(name) or os.sep in name or Path(name).suffix:
        return read_trace(Path(name), chosen)
    entry = find(name)
    if entry.kind == "generator":
        from stowplan.traces.synthesis import load_parameters, synthesise

        return synthesise(load_parameters(entry.path), seed=chosen.seed).trace
    if not entry.path.is_file():
        raise BadFile(f"{name}: is not on this machine yet; run `stowplan traces fetch {name}` to download it")
    return read_trace(entry.path, chosen)


def read_trace(path: Path, options: ReadOptions | None = None) -> Trace:
    """A trace from a file of any known family, plain or gzip; or from a folder or archive of ServeGen clients.

    Raises:
        BadFile: unreadable, of no known family, or with a bad row that is not to be skipped.
        InputError: no request is left.
    """
    chosen = options or ReadOptions()
    if not os.path.exists(path):  # unlike Path.exists, False for names that no file can have
        names = ", ".join(sorted(catalogue()))
        raise BadFile(f"{path}: there is no such file; known names are {names}")
    if is_servegen(path):
        return read_servegen(path, chosen)
    if path.is_dir():
        raise BadFile(f"{path}: is a folder without ServeGen clients (chunk-N-trace.csv); give a file")
    number, text = first_line(path)
    if number == 0:
        raise BadFile(f"{path}: is empty")
    rows, family = (
        _json(path, chosen, number, text) if text.lstrip().startswith("{") else _csv(path, chosen, number, text)
    )
    note = f"{path.name} ({family})"
    if family.startswith(lengths.LAYOUT.family):
        rows, arrivals = with_arrivals(rows)
        note = f"{note}; {arrivals}"
    return rows.trace(path.name.split(".")[0], note)


def _csv(path: Path, options: ReadOptions, number: int, text: str) -> tuple[Rows, str]:
    header = columns_of(text)
    for layout in LAYOUTS:
        if layout.fits(header):
            return read_csv(path, layout, options, (number, text)), _family(layout.family, header)
    wanted = "; ".join(
        f"{layout.family}: {', '.join(name for name in (layout.arrival, layout.prompt, layout.output) if name)}"
        for layout in LAYOUTS
    )
    raise BadFile(f"{path}:{number}: the columns '{text[:120]}' are of no known trace; expected one of {wanted}")


def _json(path: Path, options: ReadOptions, number: int, text: str) -> tuple[Rows, str]:
    try:
        row = parsed_object(text)
    except BadRow as bad:
        raise BadFile(f"{path}:{number}: {bad}; one object with a request per line is expected") from bad
    for fields in FIELDS:
        if fields.fits(row):
            return read_json_lines(path, fields, options), _family(fields.family, row)
    wanted = "; ".join(f"{each.family}: {each.arrival}, {each.prompt}, {each.output}" for each in FIELDS)
    raise BadFile(f"{path}:{number}: the fields {', '.join(row)[:120]} are of no known trace; expected one of {wanted}")


def _family(name: str, columns: Container[str]) -> str:
    """Name of a family, with a note where the file says that it is synthetic."""
    return f"{name}, {plain.SYNTHETIC}" if plain.SYNTHETIC in columns else name
