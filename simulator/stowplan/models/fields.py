"""Typed access to the tables of a file, with one sentence for every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stowplan.errors import BadFile

LARGEST = 2**40


class Fields:
    """A table of a file whose entries are taken one by one; what is left over can be refused."""

    def __init__(self, table: Any, where: str) -> None:
        """Wrap `table`.

        Args:
            table: what the file holds there.
            where: file and table, for the error sentences.

        Raises:
            BadFile: it is not a table.
        """
        if not isinstance(table, Mapping):
            raise BadFile(f"{where}: expected a table of fields, found {_kind(table)}")
        self._table: Mapping[str, Any] = table
        self._taken: set[str] = set()
        self.where = where

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._table.get(name) is not None

    def value(self, name: str) -> Any:
        """The raw value, None where absent."""
        self._taken.add(name)
        return self._table.get(name)

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number within bounds; required when there is no default.

        Raises:
            BadFile: absent, of another type, or out of bounds.
        """
        value = self.value(name)
        if value is None:
            if default is None:
                raise BadFile(f"{self.where}: field '{name}' is missing; a whole number is needed")
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadFile(
                f"{self.where}: field '{name}' is {_show(value)}; it must be a whole number from {least} to {most}"
            )
        return value

    def optional(self, name: str, *, least: int = 1, most: int = LARGEST) -> int | None:
        """A whole number within bounds, None where absent."""
        return self.integer(name, least=least, most=most) if name in self else None

    def number(self, name: str) -> float | None:
        """A positive finite number, None where absent."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e16:
            raise BadFile(f"{self.where}: field '{name}' is {_show(value)}; it must be a positive number")
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadFile(f"{self.where}: field '{name}' is {_show(value)}; it must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A short string; required when there is no default."""
        value = self.value(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not 0 < len(value) <= 400:
            raise BadFile(f"{self.where}: field '{name}' is {_show(value)}; it must be a short text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of short strings, empty where absent."""
        value = self.value(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > 200 or not all(isinstance(v, str) for v in value):
            raise BadFile(f"{self.where}: field '{name}' must be a list of texts")
        return tuple(value)

    def table(self, name: str) -> Fields | None:
        """A table below this one, None where absent."""
        value = self.value(name)
        return None if value is None else Fields(value, f"{self.where}, [{name}]")

    def refuse_leftovers(self) -> None:
        """Refuse fields that nobody asked for: most likely a slip of the pen.

        Raises:
            BadFile: naming the first of them.
        """
        for name in self._table:
            if name not in self._taken:
                raise BadFile(f"{self.where}: field '{_show(name)}' is not known here")


def _show(value: Any) -> str:
    """The value as it may stand in a sentence."""
    if value is None:
        return "missing"
    if isinstance(value, str | int | float):
        text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
        return text if len(text) <= 60 else text[:57] + "..."
    return _kind(value)


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"'{str(value)[:40]}'"
