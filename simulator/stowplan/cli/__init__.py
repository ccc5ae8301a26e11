"""The command line. `main` is the entry point; everything else is imported when it is needed."""

from __future__ import annotations

import io
import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process.

    Exit codes: 0 done, 1 the reader of a pipe went away, 2 bad input, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name with an accent is no reason to stop on an ASCII terminal
    try:
        from stowplan.cli.app import app

        app(prog_name="stowplan")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        _flush()


def _flush() -> None:
    """Write out what is left; a reader that went away (``| head``) is not an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
