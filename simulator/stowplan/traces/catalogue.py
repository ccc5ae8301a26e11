"""What `traces/` describes: shipped excerpts, generators' parameters, and where public traces can be downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, UnknownName

Kind = Literal["excerpt", "generator", "download"]

FOLDER_VARIABLE = "STOWPLAN_TRACES"
"""Environment variable that names the folder for downloads; ``~/.cache/stowplan/traces`` where it is not set."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file of somebody else: where it is, how long, and its published SHA-256."""

    url: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A named trace.

    Attributes:
        kind: shipped excerpt, generator, or download.
        path: the file here; that of a download may not exist yet.
        download: where a download comes from, else None.
        licence, attribution: what to say where it is used.
    """

    name: str
    kind: Kind
    title: str
    path: Path
    licence: str
    attribution: str
    download: Download | None = None


def download_folder() -> Path:
    """Folder that downloads go to unless the user names one."""
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "stowplan" / "traces"


def catalogue() -> Mapping[str, Entry]:
    """All named traces, in the order of the file.

    Raises:
        BadFile: the catalogue is damaged.
    """
    return {name: _entry(name, fields) for name, fields in _document().items()}


def find(name: str) -> Entry:
    """A trace by its name.

    Raises:
        UnknownName: there is none of that name, and no such file either.
    """
    known = catalogue()
    if name not in known:
        raise UnknownName("trace", name, known)
    return known[name]


@cache
def _document() -> Mapping[str, Mapping[str, Any]]:
    return read_toml(data_folder("traces") / "catalogue.toml")


def _entry(name: str, fields: Mapping[str, Any]) -> Entry:
    try:
        kind: Kind = fields["kind"]
        download = Download(fields["url"], fields["size"], fields["sha256"]) if kind == "download" else None
        folder = download_folder() if download else data_folder("traces")
        return Entry(
            name,
            kind,
            fields["title"],
            folder / fields["file"],
            fields["licence"],
            fields["attribution"],
            download,
        )
    except (KeyError, TypeError) as error:
        raise BadFile(f"{data_folder('traces') / 'catalogue.toml'}: [{name}] lacks {error}") from error
