"""HTML and SVG as text that is escaped unless it was made here: names come from users' files."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_SHAPES = frozenset({"circle", "line", "path", "rect"})
_VOID = frozenset({"meta"})


class Markup(str):
    """Text that is markup already and must not be escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element; children that are no `Markup` are escaped, and so is every attribute's value.

    Attribute names take hyphens for underscores, and a trailing underscore keeps ``class_`` from being a keyword.
    Attributes that are None are left out.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    if name in _SHAPES and not children:
        return Markup(f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Parts one after another, escaped where they are no markup."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in parts))


def picture(width: float, height: float, label: str, *children: str) -> Markup:
    """An SVG that scales with the page; `label` is read to those who do not see it."""
    drawing = tag("svg", *children, viewBox=f"0 0 {_text(width)} {_text(height)}", role="img", aria_label=label)
    return tag("div", drawing, class_="picture")


def table(header: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: Iterable[int] = ()) -> Markup:
    """A table; the columns in `numbers` are aligned to the right."""
    right = set(numbers)

    def cells(kind: str, row: Iterable[str]) -> Markup:
        return tag("tr", *(tag(kind, cell, class_="number" if n in right else None) for n, cell in enumerate(row)))

    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", header)), body), class_="scroll")


def _text(value: object) -> str:
    """Numbers with at most two decimals: a hundredth of a pixel is finer than anybody sees."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
