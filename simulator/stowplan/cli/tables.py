"""Lines of aligned text for people: at most 110 columns, colour only on a terminal and only for meaning."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH = 110
"""Columns that every line keeps to, whatever the terminal."""

Style = Literal["", "answer", "limit", "warning", "faint", "verbatim"]

_COLOURS: dict[Style, str] = {
    "": "",
    "answer": "bold",
    "limit": "yellow",
    "warning": "red",
    "faint": "dim",
    "verbatim": "",
}
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Line:
    """One line and what it means; ``verbatim`` is to be pasted, so nothing may wrap or colour it."""

    text: str
    style: Style = ""


def labelled(label: str, text: str, style: Style = "") -> list[Line]:
    """A label of eleven columns and text beside it, continued under itself."""
    pieces = textwrap.wrap(text, WIDTH - 13, break_long_words=False, break_on_hyphens=False) or [""]
    return [Line(f"{_INDENT}{label if number == 0 else '':<11}{piece}", style) for number, piece in enumerate(pieces)]


def paragraph(text: str, style: Style = "") -> list[Line]:
    """Text wrapped at the width."""
    pieces = textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [Line(_INDENT + piece, style) for piece in pieces]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> list[Line]:
    """Aligned columns, the header faint; the last column wraps within the width.

    Args:
        header: names of the columns; an empty header is left out.
        rows: cells.
        numbers: indices of columns that are aligned at the right.
    """
    body = [list(row) for row in rows]
    right = set(numbers)
    cells = [list(header), *body]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    before_last = sum(widths[:-1]) + 3 * (len(widths) - 1)
    room = max(20, WIDTH - 2 - before_last)
    lines: list[Line] = []
    for number, row in enumerate(cells):
        if number == 0 and not any(header):
            continue
        pieces = textwrap.wrap(row[-1], room, break_on_hyphens=False) if len(row[-1]) > room else [row[-1]]
        for position, piece in enumerate(pieces or [""]):
            shown = [*row[:-1], piece] if position == 0 else [*([""] * (len(row) - 1)), piece]
            last = len(shown) - 1
            text = "   ".join(
                cell.rjust(min(widths[column], room) if column == last else widths[column])
                if column in right
                else cell.ljust(widths[column] if column < last else 0)
                for column, cell in enumerate(shown)
            )
            lines.append(Line((_INDENT + text).rstrip(), "faint" if number == 0 else ""))
    return lines


def blocks(*parts: Iterable[Line]) -> list[Line]:
    """Parts with an empty line before each; empty parts leave none."""
    return [line for part in map(list, parts) if part for line in (Line(""), *part)]


def print_lines(lines: Iterable[Line]) -> None:
    """Print to stdout; plain where it is not a terminal or ``NO_COLOR`` is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        for line in lines:
            print(line.text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    for line in lines:
        if line.style == "verbatim":
            print(line.text)
        else:
            console.print(Text(line.text, style=_COLOURS[line.style]))


def print_verbatim(text: str) -> None:
    """Print text that must stay as it is, such as a command to paste."""
    print(text)
