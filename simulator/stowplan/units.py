"""Text quantities at the edge, SI floats inside.

A quantity in a file or on the command line always carries its unit: ``24 GiB``, ``25 GB/s``, ``312 TFLOP/s``.
GB is 10^9 bytes and GiB is 2^30 bytes; a bare number is refused.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from stowplan.errors import BadQuantity

Dimension = Literal["bytes", "bytes/s", "flop/s", "seconds", "hertz", "watts", "money", "count", "ratio", "1/s"]

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


def _table() -> dict[Dimension, dict[str, float]]:
    sizes = {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()}
    return {
        "bytes": sizes,
        "bytes/s": {f"{unit}/s": factor for unit, factor in sizes.items()},
        "flop/s": {f"{prefix}{stem}": factor for prefix, factor in _DECIMAL.items() for stem in ("FLOP/s", "OP/s")},
        "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0},
        "hertz": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
        "watts": {"W": 1.0, "kW": 1e3},
        "money": {"USD": 1.0, "$": 1.0},
        "1/s": {"/s": 1.0, "k/s": 1e3, "M/s": 1e6, "G/s": 1e9, "IOPS": 1.0, "kIOPS": 1e3},
        "count": {"": 1.0},
        "ratio": {"": 1.0, "%": 0.01},
    }


UNITS = _table()
_QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s][^\s]*)?\s*\Z")


def parse_quantity(text: str | float, dimension: Dimension, *, where: str = "value") -> float:
    """SI value of a quantity such as ``'24 GiB'``.

    Args:
        text: number and unit; a plain number is accepted only for ``count`` and ``ratio``.
        dimension: what the unit must measure.
        where: file and field for the error sentence.

    Raises:
        BadQuantity: no unit, a unit of another dimension, or a negative or non-finite number.
    """
    units = UNITS[dimension]
    example = next(unit for unit in reversed(units) if unit) if any(units) else ""
    matched = _QUANTITY.match(str(text))
    if matched is None or len(str(text)) > 64:
        raise BadQuantity(
            f"{where}: '{str(text)[:64]}' is not a quantity; write a number and a unit, such as '1 {example}'"
        )
    value, unit = float(matched[1].replace(",", "").replace("_", "")), matched[2] or ""
    if unit not in units:
        known = ", ".join(u for u in units if u) or "no unit"
        problem = f"has the unit '{unit}'" if unit else "has no unit"
        raise BadQuantity(f"{where}: '{text}' {problem}; expected {dimension} in one of: {known}")
    value *= units[unit]
    if not math.isfinite(value) or value < 0:
        raise BadQuantity(f"{where}: '{text}' must be a finite number that is not negative")
    return value


def format_bytes(value: float) -> str:
    """Size in binary units with three digits: ``'22.6 GiB'``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(value) >= _BINARY[unit[:2]]:
            return f"{_digits(value / _BINARY[unit[:2]])} {unit}"
    return f"{value:.0f} B"


def format_rate(value: float, stem: str = "B/s") -> str:
    """Rate in decimal units with three digits: ``'61.0 GB/s'``."""
    for prefix in ("P", "T", "G", "M", "k"):
        if abs(value) >= _DECIMAL[prefix]:
            return f"{_digits(value / _DECIMAL[prefix])} {prefix}{stem}"
    return f"{_digits(value)} {stem}"


def format_seconds(value: float) -> str:
    """Duration with three digits: ``'9.40 s'``, ``'41.0 ms'``."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{value / 1e-9:.0f} ns"


def _digits(value: float) -> str:
    """Three significant digits, never in exponent form below one million."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}"
