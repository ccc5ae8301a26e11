"""Every error that stowplan raises on purpose, drawn as a tree.

::

    StowplanError
    ├── InputError            what the user gave is wrong: file, field, value, mend
    │   ├── UnknownName       no such machine, model, format, system (carries the nearest names)
    │   ├── BadQuantity       a number without its unit, with a wrong unit, or out of range
    │   └── BadFile           a file that cannot be read as what it claims to be
    ├── DoesNotFit            no placement satisfies the memory limits (carries what is missing)
    ├── NotExpressible        a placement or flag that the chosen system cannot say
    └── SimulationError       a task graph that can never finish (carries the stuck tasks)

The command line prints ``str(error)`` as one sentence and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StowplanError(Exception):
    """Base of all deliberate errors."""


class InputError(StowplanError):
    """What the user gave is wrong; the message names the file, the field, the value and the mend."""


class UnknownName(InputError):
    """No such name; `nearest` holds the closest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name = kind, name
        candidates = sorted(set(known))
        self.nearest = difflib.get_close_matches(name.lower(), candidates, n=3, cutoff=0.4)
        shown = ", ".join(self.nearest or candidates[:8])
        hint = f"nearest: {shown}" if self.nearest else f"known: {shown}" + (" ..." if len(candidates) > 8 else "")
        super().__init__(f"no {kind} is called '{name}'; {hint}")


class BadQuantity(InputError):
    """A number without its unit, with a unit of another dimension, or outside its range."""


class BadFile(InputError):
    """A file that cannot be read as what it claims to be."""


class DoesNotFit(StowplanError):
    """No placement satisfies the memory limits."""

    def __init__(self, message: str, missing_bytes: float = 0.0) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


class NotExpressible(StowplanError):
    """The chosen system has no way to say this placement or setting."""


class SimulationError(StowplanError):
    """A task graph that can never finish."""
