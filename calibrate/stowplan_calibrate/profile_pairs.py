"""Two profiles: merged into one, or compared number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stowplan.machines.machine import SourceKind
from stowplan.units import UNITS
from stowplan_calibrate.profile import Document

_KINDS = [kind.value for kind in SourceKind]
_DEFAULT_SD = 0.03


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of two profiles.

    Attributes:
        path: where it stands, such as ``parts.vda.read``.
        first, second: its entries; None where a profile lacks it.
        ratio: second over first; None where there is nothing to compare.
        beyond_noise: whether they differ by more than twice their standard deviations together.
    """

    path: str
    first: Document | None
    second: Document | None
    ratio: float | None
    beyond_noise: bool


def numbers_of(table: Mapping[str, object], prefix: str = "") -> dict[str, Document]:
    """Every number of a document by dotted path."""
    found: dict[str, Document] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            if "value" in value:
                found[f"{prefix}{key}"] = value
            else:
                found |= numbers_of(value, f"{prefix}{key}.")
    return found


def differences(first: Document, second: Document) -> list[Difference]:
    """Every number of either profile whose value or source differs, sorted by path."""
    left, right = numbers_of(first), numbers_of(second)
    found = []
    for path in sorted(left.keys() | right.keys()):
        a, b = left.get(path), right.get(path)
        if a is not None and b is not None and (a["value"], a["source"]) == (b["value"], b["source"]):
            continue
        ratio = _ratio(a, b)
        apart = ratio is not None and abs(math.log(ratio)) > 2.0 * math.hypot(_sd(a), _sd(b))
        found.append(Difference(path, a, b, ratio, apart))
    return found


def merged(first: Document, second: Document) -> Document:
    """The first profile with every number that the second knows better, or as well and later.

    Measured beats fitted beats datasheet beats assumed; of equals the second one is taken. What only one has is kept.
    """
    result: Document = dict(first)
    for key, value in second.items():
        present = first.get(key)
        if present is None:
            result[key] = value
        elif isinstance(value, dict) and isinstance(present, dict):
            if "value" in value:
                result[key] = value if _rank(value) <= _rank(present) else present
            else:
                result[key] = merged(present, value)
    return result


def _rank(entry: Document) -> int:
    kind = entry.get("source")
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _ratio(first: Document | None, second: Document | None) -> float | None:
    if first is None or second is None:
        return None
    a, b = plain_value(first["value"]), plain_value(second["value"])
    return b / a if a and b and a > 0 and b > 0 else None


def plain_value(value: object) -> float | None:
    """A value as a number: SI where it has a unit; None where it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    amount, _, unit = str(value).strip().partition(" ")
    factor = next((units[unit] for units in UNITS.values() if unit in units), None)
    try:
        return None if factor is None else float(amount) * factor
    except ValueError:
        return None


def _sd(entry: Document | None) -> float:
    sd = None if entry is None else entry.get("sd")
    return float(sd) if isinstance(sd, int | float) else _DEFAULT_SD
