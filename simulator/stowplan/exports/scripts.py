"""Commands inside shell scripts: one of them, found without running anything."""

from __future__ import annotations

import re
import shlex

from stowplan.errors import InputError

_SUBSTITUTION = re.compile(r"`|\$[({A-Za-z_]")
_PASSED_OVER = frozenset({"cd", "set", "export", "source", "."})
_IN_FRONT = frozenset({"exec", "nohup", "time", "command", "env"})
_OPERATORS = frozenset({";", "|", "&&", "||", "&", ">", "<", ">>"})


def script_words(text: str) -> list[str]:
    """The words of the only command of a script; comments, ``cd`` and settings of the shell are passed over.

    Raises:
        InputError: no command, several, unbalanced quotes, or something that only a shell can work out.
    """
    found: list[list[str]] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            words = shlex.split(stripped, comments=True)
        except ValueError as error:
            raise InputError(f"the script has a line that a shell cannot split ({error}): '{stripped[:60]}'") from error
        if not words or words[0] in _PASSED_OVER:
            continue
        if _OPERATORS.intersection(words) or _substitutes(stripped):
            raise InputError(f"the script needs a shell to be understood: '{stripped[:60]}'; import the plain command")
        while words and words[0] in _IN_FRONT:
            words.pop(0)
        found.append([word for word in words if word != "$@"])
    if len(found) != 1:
        raise InputError(f"the script has {len(found)} commands; import one command, or the script of one")
    return found[0]


def _substitutes(line: str) -> bool:
    """Whether a shell would put something in place of a part of a line: outside of single quotes and not escaped."""
    quote, position = "", 0
    while position < len(line):
        sign = line[position]
        if quote == "'":
            quote = "" if sign == "'" else quote
        elif sign == "\\":
            position += 1
        elif sign in "\"'":
            quote = "" if sign == quote else quote or sign
        elif _SUBSTITUTION.match(line, position):
            return True
        position += 1
    return False
