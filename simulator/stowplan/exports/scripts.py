"""Commands inside shell scripts: one of them, found without running anything."""

from __future__ import annotations

import re
import shlex

from stowplan.errors import InputError

_QUOTED = re.compile(r"'[^']*'")
_SUBSTITUTION = re.compile(r"\$\(|`|\$\{?[A-Za-z_]")


def script_words(text: str) -> list[str]:
    """The words of the only command of a script; comments, ``cd`` and settings of the shell are passed over.

    Raises:
        InputError: no command, several, unbalanced quotes, or something that only a shell can work out.
    """
    joined = re.sub(r"\\\r?\n", " ", text)
    found: list[list[str]] = []
    for line in joined.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            words = shlex.split(stripped, comments=True)
        except ValueError as error:
            raise InputError(f"the script has a line that a shell cannot split ({error}): '{stripped[:60]}'") from error
        if not words or words[0] in ("cd", "set", "export", "source", "."):
            continue
        if any(word in (";", "|", "&&", "||", "&", ">", "<") for word in words) or _SUBSTITUTION.search(
            _QUOTED.sub("", stripped)
        ):
            raise InputError(f"the script needs a shell to be understood: '{stripped[:60]}'; import the plain command")
        while words and words[0] in ("exec", "nohup", "time", "command", "env"):
            words.pop(0)
        words = [word for word in words if word != "$@"]
        found.append(words)
    if len(found) != 1:
        raise InputError(f"the script has {len(found)} commands; import one command, or the script of one")
    return found[0]
