"""Reader of measured kernel grids: gzipped CSV files, one per GPU and kernel class, times in milliseconds.

The files are tables of ai-dynamo/aiconfigurator (Apache-2.0), named ``<gpu>__<table>__<version>.csv.gz``.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import BadFile

Array = NDArray[np.float64]
GPUS: Mapping[str, str] = {
    "a100_sxm": "a100-80gb-sxm",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "l40s": "l40s",
    "b200_sxm": "b200",
}
"""Profile key of each GPU in the files' names."""
TYPES: Mapping[str, str] = {
    "bfloat16": "bf16",
    "half": "fp16",
    "int4_wo": "int4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
}
"""Our names of the files' types, where they differ."""
_MOST_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class Grid:
    """One file's samples.

    Attributes:
        gpu: profile key. version: of the software measured.
        columns: text by column name, all of one length.
        seconds: measured times.
    """

    gpu: str
    version: str
    columns: Mapping[str, tuple[str, ...]]
    seconds: Array

    def numbers(self, name: str) -> Array:
        """One column as numbers; zeros where the file has no such column."""
        if name not in self.columns:
            return np.zeros(len(self.seconds))
        return np.array([float(text) for text in self.columns[name]])

    def texts(self, name: str) -> NDArray[np.str_]:
        """One column as text."""
        return np.array(self.columns[name])

    def types(self, name: str) -> NDArray[np.str_]:
        """One column of types, by our names."""
        return np.array([TYPES.get(text, text) for text in self.columns[name]])

    def where(self, keep: NDArray[np.bool_]) -> Grid:
        """The samples at which `keep` is true."""
        at = np.flatnonzero(keep)
        columns = {name: tuple(values[i] for i in at) for name, values in self.columns.items()}
        return Grid(self.gpu, self.version, columns, self.seconds[at])


def read_grid(path: Path) -> Grid:
    """Samples of one file.

    Raises:
        BadFile: not a grid of that project: wrong name, missing column, a time that is not positive.
    """
    parts = path.name.removesuffix(".csv.gz").split("__")
    if len(parts) != 3 or parts[0] not in GPUS:
        raise BadFile(f"{path}: is not named <gpu>__<table>__<version>.csv.gz with a GPU of {', '.join(GPUS)}")
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [row for row, _ in zip(reader, range(_MOST_ROWS), strict=False)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path}: cannot be read as gzipped CSV ({error})") from error
    if not rows or "latency" not in rows[0]:
        raise BadFile(f"{path}: has no rows with a column 'latency'")
    seconds = []
    for number, row in enumerate(rows, start=2):
        try:
            milliseconds = float(row["latency"])
        except (TypeError, ValueError):
            milliseconds = math.nan
        if not (math.isfinite(milliseconds) and milliseconds > 0.0) or None in row.values():
            raise BadFile(f"{path}: line {number}: latency '{row['latency']}' is not a positive number of milliseconds")
        seconds.append(milliseconds * 1e-3)
    columns = {name: tuple(row[name] for row in rows) for name in rows[0]}
    return Grid(GPUS[parts[0]], parts[2], columns, np.array(seconds))


def find_grids(folder: Path, table: str) -> list[Grid]:
    """All GPUs' samples of one table, such as ``gemm_perf``; files of GPUs that are not known are left alone."""
    found = [
        read_grid(path) for path in sorted(folder.glob(f"*__{table}__*.csv.gz")) if path.name.split("__")[0] in GPUS
    ]
    return sorted(found, key=lambda grid: grid.gpu)
