"""Constants of an engine's kernels that were measured on one machine; they stand in that machine's own file.

::

    [constants."llama.cpp".cpu.gemv]
    q4_k = { value = 2.3, dimension = "count", source = "fitted", where = "llama-bench, 2026-11-21, 8 runs", sd = 0.04 }

They replace the shipped constants of the same name (``hwprofiles/kernels/``) in predictions for that machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from stowplan.errors import BadFile
from stowplan.machines.machine import Number
from stowplan.machines.schema import read_number
from stowplan.units import UNITS, Dimension

_DEEPEST = 6


def read_constants(raw: object, where: str) -> dict[str, Number]:
    """Numbers by dotted name, engine first, such as ``llama.cpp.cpu.gemv.q4_k``.

    Args:
        raw: what a machine's file holds under ``constants``.
        where: the file, for error sentences.

    Raises:
        BadFile: not tables of numbers, or a number without value, source or where.
        BadQuantity: a value without unit, of another dimension, or out of range.
    """
    return dict(_walk(raw, "", f"{where}: constants", 0))


def _walk(raw: object, prefix: str, where: str, depth: int) -> Iterator[tuple[str, Number]]:
    if not isinstance(raw, dict) or depth > _DEEPEST:
        raise BadFile(f"{where} must be a table of numbers with value, dimension, source and where")
    for key, entry in raw.items():
        name, at = f"{prefix}{key}", f"{where}.{key}"
        if isinstance(entry, dict) and "value" in entry:
            yield name, _number(entry, at)
        else:
            yield from _walk(entry, f"{name}.", at, depth + 1)


def _number(entry: Mapping[str, Any], where: str) -> Number:
    dimension = entry.get("dimension", "ratio")
    if dimension not in UNITS:
        raise BadFile(f"{where}: dimension '{str(dimension)[:40]}' is unknown; one of {', '.join(UNITS)}")
    plain = {name: value for name, value in entry.items() if name != "dimension"}
    return read_number(plain, cast(Dimension, dimension), where)
