"""Storage formats of weights and of the key/value cache, with their exact sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import InputError, UnknownName

_SCALED = re.compile(r"(\d{1,2}(?:\.\d{1,6})?)bpw\Z")
_ALIASES = {
    "fp32": "f32",
    "float32": "f32",
    "fp16": "f16",
    "float16": "f16",
    "bfloat16": "bf16",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
}


@dataclass(frozen=True, slots=True)
class Format:
    """How weights are packed.

    Attributes:
        key: lower-case name, such as ``q4_k``.
        name: name for people, as the tools that write it spell it.
        family: float, integer, legacy, k-quant, i-quant, ternary, microscaling, iqk, trellis, float8, int4, or
            scaled for a made-up format of a given size.
        block: consecutive weights of a row that are packed together.
        block_bytes: bytes of one block, scales included.
        ggml_id: the number in GGUF files, None for formats that GGUF lacks.
        row_bytes: bytes that come once per row.
        column_bytes: bytes that come once per column.
        scale_tile, scale_bytes: a scale of so many bytes per tile of (rows, columns), 0 meaning all of them.
        fallback: key of the format that is written instead where a row is no multiple of the block.
    """

    key: str
    name: str
    family: str
    block: int
    block_bytes: float
    ggml_id: int | None = None
    row_bytes: int = 0
    column_bytes: int = 0
    scale_tile: tuple[int, int] = (0, 0)
    scale_bytes: int = 0
    fallback: str | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of one weight with the scales of its block and tile; scales per row, column or matrix excluded."""
        tile = self.scale_tile[0] * self.scale_tile[1]
        return 8.0 * (self.block_bytes / self.block + (self.scale_bytes / tile if tile else 0.0))


@cache
def formats() -> Mapping[str, Format]:
    """Every known format by key."""
    data = read_toml(data_folder("models") / "formats.toml")
    found: dict[str, Format] = {}
    for table in ("ggml", "ik", "gpu"):
        for key, entry in data[table].items():
            tile = entry.get("scale_tile", (0, 0))
            found[key] = Format(
                key=key,
                name=key if table == "gpu" else key.upper(),
                family=entry["family"],
                block=entry["block"],
                block_bytes=entry["bytes"],
                ggml_id=entry.get("id"),
                row_bytes=entry.get("row_bytes", 0),
                column_bytes=entry.get("column_bytes", 0),
                scale_tile=(tile[0], tile[1]),
                scale_bytes=entry.get("scale_bytes", 0),
                fallback=entry.get("fallback"),
            )
    return MappingProxyType(found)


@cache
def formats_by_ggml_id() -> Mapping[int, Format]:
    """Formats that GGUF files can hold, by their number."""
    return MappingProxyType({f.ggml_id: f for f in formats().values() if f.ggml_id is not None})


@cache
def kv_formats() -> tuple[str, ...]:
    """Keys of the formats that a key/value cache can be kept in."""
    return tuple(read_toml(data_folder("models") / "formats.toml")["kv_cache"]["keys"])


def load_format(key: str) -> Format:
    """Format of that key, in any letter case; ``3.42bpw`` makes a format of that many bits.

    Raises:
        UnknownName: no such format.
    """
    known = formats()
    wanted = key.lower().replace("-", "_")
    wanted = _ALIASES.get(wanted, wanted)
    if wanted in known:
        return known[wanted]
    scaled = _SCALED.match(wanted)
    if scaled and 0 < float(scaled[1]) <= 64:
        return Format(wanted, wanted, "scaled", block=1, block_bytes=float(scaled[1]) / 8)
    raise UnknownName("format", key, known)


def fitting_format(wanted: Format, columns: int) -> Format:
    """The format itself, or the first of its fallbacks whose block divides rows of so many weights."""
    chosen = wanted
    while columns % chosen.block and chosen.fallback:
        chosen = formats()[chosen.fallback]
    return chosen


def bytes_for(stored: Format, rows: int, columns: int, count: int = 1) -> int:
    """Exact bytes of `count` matrices of `rows` x `columns` weights.

    Formats of GPU checkpoints pad the last group of a row; GGUF formats cannot.

    Raises:
        InputError: a row of a GGUF format is no multiple of its block (see `fitting_format`).
    """
    if columns % stored.block and stored.ggml_id is not None:
        raise InputError(
            f"format {stored.key}: a row of {columns} weights is no multiple of its block of {stored.block}; "
            f"use {stored.fallback or 'f16'}"
        )
    blocks = -(-columns // stored.block)
    per_matrix = math.ceil(rows * blocks * stored.block_bytes)
    per_matrix += rows * stored.row_bytes + columns * stored.column_bytes
    if stored.scale_bytes:
        tile_rows, tile_columns = stored.scale_tile[0] or rows, stored.scale_tile[1] or columns
        per_matrix += -(-rows // tile_rows) * -(-columns // tile_columns) * stored.scale_bytes
    return per_matrix * count


def kv_bytes_per_element(key: str) -> float:
    """Bytes of one cached element, scales of its block included.

    Raises:
        UnknownName: the key/value cache cannot be kept in that format.
    """
    if key == "f16":  # by far the commonest: no data file needed
        return 2.0
    known = kv_formats()
    wanted = _ALIASES.get(key.lower(), key.lower())
    if wanted not in known:
        raise UnknownName("format", key, known)
    chosen = load_format(wanted)
    return chosen.block_bytes / chosen.block
