"""The YAML that engines' configurations are made of: one level of keys with plain values, lists, or JSON.

A whole YAML parser would be a dependency for files of twenty lines; what goes beyond is refused with its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from stowplan.errors import InputError, NotExpressible

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]

_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*:(?:\s+(.*))?\Z")
_WHOLE = re.compile(r"[-+]?\d{1,18}\Z")
_FRACTION = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?\Z")
_WORDS: Mapping[str, bool | None] = {
    "true": True,
    "false": False,
    "null": None,
    "~": None,
}
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@+ -]*\Z")


def write_yaml(values: Mapping[str, Value]) -> str:
    """Values as YAML; anything but a plain word is written as JSON, which YAML includes."""
    lines = []
    for key, value in values.items():
        if not _KEY.match(f"{key}:"):
            raise NotExpressible(f"'{key[:60]}' is no key of a configuration")
        lines.append(f"{key}: {_written(value)}")
    return "\n".join(lines) + "\n"


def _written(value: Value) -> str:
    if isinstance(value, str) and _PLAIN.match(value) and value == value.strip() and isinstance(_scalar(value), str):
        return value
    return json.dumps(value, ensure_ascii=True)


def read_yaml(text: str, name: str) -> dict[str, Value]:
    """Values of a flat YAML file.

    Args:
        text: its content.
        name: what errors call it.

    Raises:
        InputError: a line that is not ``key: value``, a key that is given twice, or YAML beyond one level.
    """
    found: dict[str, Value] = {}
    current: str | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _without_comment(raw).rstrip()
        where = f"{name}: line {number}"
        if not line or line in ("---", "..."):
            continue
        if line[0] in " \t-":
            _continue(found, current, line.strip(), where)
            continue
        matched = _KEY.match(line)
        if matched is None:
            raise InputError(f"{where} is not 'key: value': '{line[:60]}'")
        key, rest = matched[1], (matched[2] or "").strip()
        if key in found:
            raise InputError(f"{where}: {key} is given twice")
        current = key if not rest else None
        found[key] = _value(rest, where) if rest else None
    return found


def _without_comment(line: str) -> str:
    """A line up to a comment outside of quotes."""
    quote = ""
    for position, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote and line[position - 1 : position] != "\\" else quote
        elif sign in "\"'":
            quote = sign
        elif sign == "#" and (position == 0 or line[position - 1] in " \t"):
            return line[:position]
    return line


def _continue(found: dict[str, Value], key: str | None, line: str, where: str) -> None:
    """A list's element or a nested key below a key without a value."""
    if key is None:
        raise InputError(f"{where} is indented below a key that has a value already: '{line[:60]}'")
    held = found[key]
    if line.startswith("- "):
        if held is None:
            held = found[key] = []
        if not isinstance(held, list):
            raise InputError(f"{where}: {key} holds both a list and keys")
        held.append(_value(line[2:].strip(), where))
        return
    matched = _KEY.match(line)
    if matched is None or not (matched[2] or "").strip():
        raise InputError(f"{where} goes deeper than this reader does: '{line[:60]}'; write the value as JSON")
    if held is None:
        held = found[key] = {}
    if not isinstance(held, dict) or matched[1] in held:
        raise InputError(f"{where}: {matched[1]} is given twice, or beside a list")
    held[matched[1]] = _value(matched[2].strip(), where)


def _value(text: str, where: str) -> Value:
    if text[0] in '{["':
        try:
            loaded: Value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: the value is not JSON ({error}): '{text[:60]}'") from error
        return loaded
    if text[0] == "'":
        if len(text) < 2 or text[-1] != "'":
            raise InputError(f"{where}: a quote is not closed: '{text[:60]}'")
        return text[1:-1].replace("''", "'")
    if text[0] in "&*!|>%@`":
        raise InputError(f"{where}: YAML's '{text[0]}' is not read here: '{text[:60]}'; write the value plainly")
    return _scalar(text)


def _scalar(text: str) -> Value:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.match(text):
        return int(text)
    return float(text) if _FRACTION.match(text) else text
