"""Compact regular expressions for sets of layer numbers, in the subset that every engine's regex dialect shares."""

from __future__ import annotations

from collections.abc import Iterable


def number_pattern(numbers: Iterable[int]) -> str:
    """A pattern that matches exactly the decimal numbers given, such as ``(1[1-9]|[2-8][0-9]|9[0-3])``.

    Raises:
        ValueError: no numbers, or a negative one.
    """
    wanted = sorted(set(numbers))
    if not wanted or wanted[0] < 0:
        raise ValueError(f"layer numbers must be a non-empty set of numbers from 0, not {wanted[:3]}")
    pieces: list[str] = []
    for low, high in _runs(wanted):
        pieces += _range_pieces(low, high)
    return pieces[0] if len(pieces) == 1 else f"({'|'.join(pieces)})"


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _range_pieces(low: int, high: int) -> list[str]:
    """Alternatives for one range: split where the number of digits or the leading digits change."""
    if len(str(low)) != len(str(high)):
        middle = 10 ** len(str(low))
        return _range_pieces(low, middle - 1) + _range_pieces(middle, high)
    if low // 10 == high // 10:
        prefix = str(low // 10) if low >= 10 else ""
        return [prefix + _digit(low % 10, high % 10)]
    pieces: list[str] = []
    if low % 10:
        pieces += _range_pieces(low, low // 10 * 10 + 9)
        low = low // 10 * 10 + 10
    tail = _range_pieces(high // 10 * 10, high) if high % 10 != 9 else []
    if tail:
        high = high // 10 * 10 - 1
    if low <= high:
        pieces += [f"{lead}[0-9]" for lead in _range_pieces(low // 10, high // 10)]
    return pieces + tail


def _digit(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"
