"""Flags of engines that take ``--long-names``: values by name from a command or a file, unknown ones refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.flat_yaml import Value

_SWITCH, _ONE, _MANY = 0, 1, 2
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The flags of one engine.

    Attributes:
        engine: for error sentences.
        meant: flag (without dashes) to the name of a setting.
        many: flags that take several values; switches: flags that take none.
        quiet: flags that move no bytes; those that take a value are in `quiet`, the others in `quiet_switches`.
        removed: flags of older versions, with what replaced them.
        short: short spellings.
    """

    engine: str
    meant: Mapping[str, str]
    switches: frozenset[str] = frozenset()
    many: frozenset[str] = frozenset()
    quiet: frozenset[str] = frozenset()
    quiet_switches: frozenset[str] = frozenset()
    removed: Mapping[str, str] | None = None
    short: Mapping[str, str] | None = None

    def arity(self, flag: str) -> int:
        """Values that a flag takes.

        Raises:
            NotExpressible: an unknown or a removed flag.
        """
        if self.removed and flag in self.removed:
            raise NotExpressible(f"{self.engine} has no --{flag} any more: {self.removed[flag]}")
        if flag in self.switches or flag in self.quiet_switches:
            return _SWITCH
        if flag in self.many:
            return _MANY
        if flag in self.meant or flag in self.quiet:
            return _ONE
        raise NotExpressible(
            f"stowplan does not know the flag --{flag[:60]} of {self.engine}; leave it out if it moves no bytes"
        )


def read_words(words: Sequence[str], known: Vocabulary) -> tuple[dict[str, Value], list[str]]:
    """Settings by name, and the words that are no flags.

    Raises:
        NotExpressible: an unknown flag.
        InputError: a value is missing, or a flag is given twice with different values.
    """
    found: dict[str, Value] = {}
    loose: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not re.match(r"--?[A-Za-z]", word):
            loose.append(word)
            continue
        name, equals, attached = word.lstrip("-").partition("=")
        flag = (known.short or {}).get(name, name).replace("_", "-")
        arity = known.arity(flag)
        values: list[str] = [attached] if equals else []
        while not equals and arity and position < len(words) and not re.match(r"--?[A-Za-z]", words[position]):
            values.append(words[position])
            position += 1
            if arity == _ONE:
                break
        if arity and not values:
            raise InputError(f"--{flag} needs a value")
        if flag in known.meant:
            _keep(found, flag, known.meant[flag], True if not arity else list(values) if arity == _MANY else values[0])
    return found, loose


def _keep(found: dict[str, Value], flag: str, name: str, value: Value) -> None:
    if name in found and found[name] != value:
        raise InputError(f"--{flag} is given as {found[name]} and as {value}; keep one of them")
    found[name] = value


def read_keys(keys: Mapping[str, Value], known: Vocabulary) -> dict[str, Value]:
    """Settings by name from the keys of a configuration file.

    Raises:
        NotExpressible: an unknown key.
        InputError: a key is given twice in two spellings.
    """
    found: dict[str, Value] = {}
    for key, value in keys.items():
        flag = key.replace("_", "-")
        arity = known.arity(flag)
        if flag not in known.meant:
            continue
        if arity == _SWITCH and value is not True and value is not False:
            raise InputError(f"{known.engine}: {key}: {str(value)[:40]}: must be true or false")
        if value is False and arity == _SWITCH:
            continue
        if arity == _MANY:
            value = list(value) if isinstance(value, list) else [value]
        _keep(found, flag, known.meant[flag], value)
    return found


Settings = TypeVar("Settings", bound=BaseModel)


def settings_from(kind: type[Settings], values: Mapping[str, Any], known: Vocabulary) -> Settings:
    """Checked settings.

    Raises:
        InputError: a value of the wrong kind or out of range; names the flag.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        flag = next((f"--{flag}" for flag, meant in known.meant.items() if meant == name), name or "the flags")
        raise InputError(f"{known.engine}: {flag} {str(first['input'])[:40]}: {first['msg'].lower()}") from error


def whole_with_suffix(text: str, flag: str) -> int:
    """A count such as ``8192``, ``8k`` (thousands) or ``8K`` (1024s), as vLLM reads them.

    Raises:
        InputError: neither.
    """
    matched = re.fullmatch(r"(\d{1,12})(\.\d{1,6})?([kKmMgGtT]?)", text)
    if matched is None:
        raise InputError(
            f"--{flag} {text[:40]}: must be a whole number, or one with k, m, g (decimal) or K, M, G (binary)"
        )
    factor = 1
    if matched[3]:
        factor = _BINARY[matched[3].lower()] if matched[3].isupper() else _DECIMAL[matched[3]]
    return int(float(matched[1] + (matched[2] or "")) * factor)
