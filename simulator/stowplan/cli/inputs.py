"""What options mean: workloads, settings, setups; and the progress that is shown on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.plan import Workload

_LONGEST = 2**24
"""Most tokens that an option takes: ten times the longest context that any model claims, and still quick to price."""

On = Annotated[
    str, typer.Option("--on", metavar="MACHINE", help="Machine: a name, a TOML file, parts joined by +, or auto.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the machine, such as gpu.pcie.lanes=4. Repeatable."),
]
Quant = Annotated[
    str | None, typer.Option("--quant", metavar="MIX", help="Storage mix, such as q4_k_m; see `stowplan list mixes`.")
]
Context = Annotated[
    int | None,
    typer.Option("--context", min=1, max=_LONGEST, help="Tokens of cache per sequence; just enough if absent."),
]
Prompt = Annotated[int | None, typer.Option("--prompt", min=0, max=_LONGEST, help="Tokens of the prompt (512).")]
Generate = Annotated[int | None, typer.Option("--generate", min=0, max=_LONGEST, help="Tokens to generate (128).")]
Depth = Annotated[
    int | None, typer.Option("--depth", min=0, max=_LONGEST, help="Tokens in the cache before the prompt (0).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, max=256, help="Processes (as many as there are cores).")
]
Trace = Annotated[
    str | None, typer.Option("--trace", metavar="FILE.json.gz", help="Write a decode step for ui.perfetto.dev.")
]


def workload(**given: int | None) -> Workload:
    """Workload of the options that were given, defaults for the rest.

    Raises:
        InputError: the request does not fit the context.
    """
    from stowplan.plan import checked_workload

    asked = checked_workload(given)
    needed = asked.depth + asked.prompt + asked.generate
    if asked.context is not None and asked.context < needed:
        raise InputError(
            f"--context {asked.context}: the request has {needed} tokens (depth {asked.depth}, prompt {asked.prompt}, "
            f"generate {asked.generate}); give a context of at least {needed} or a shorter request"
        )
    return asked


def llama_cpp_settings(
    *, kv: str | None, ubatch: int | None, threads: int | None, margin: str | None
) -> dict[str, Any]:
    """llama.cpp's knobs that the options fix.

    Raises:
        InputError: an unknown cache type or a margin without unit.
    """
    settings: dict[str, Any] = {}
    if kv is not None:
        settings |= dict(zip(("cache_k", "cache_v"), _cache_types(kv), strict=True))
    if ubatch is not None:
        settings["ubatch"] = ubatch
    if threads is not None:
        settings["threads"] = threads
    if margin is not None:
        from stowplan.units import parse_quantity

        settings["margin"] = int(parse_quantity(margin, "bytes", where="--margin"))
    return settings


def _cache_types(text: str) -> list[str]:
    """Formats of keys and values: one for both, or two separated by a comma."""
    from stowplan.systems.llama_cpp_settings import CACHE_TYPES

    names = [name.strip().lower() for name in text.split(",")]
    if len(names) > 2:
        raise InputError(f"--kv {text[:60]}: give one cache type, or two as KEYS,VALUES")
    for name in names:
        if name not in CACHE_TYPES:
            raise InputError(f"--kv: no cache type is called '{name[:40]}'; it is one of {', '.join(CACHE_TYPES)}")
    return names if len(names) == 2 else names * 2


def check_output(option: str, path: str | None, endings: Sequence[str]) -> None:
    """Refuse an output file whose name says that it is something else.

    Raises:
        InputError: another ending, or its folder does not exist.
    """
    if path is None:
        return
    from pathlib import Path

    if not path.lower().endswith(tuple(endings)):
        raise InputError(f"{option} {path}: the name must end in {' or '.join(endings)}")
    if not Path(path).parent.is_dir():
        raise InputError(f"{option} {path}: the folder {Path(path).parent} does not exist; make it first")


class Progress:
    """What is being solved, on a line of stderr that is wiped at the end; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Show what is being done."""
        if self._shown:
            sys.stderr.write(f"\r\x1b[K  {text[:100]}")
            sys.stderr.flush()

    def done(self) -> None:
        """Wipe the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def processes(asked: int | None) -> int:
    """Processes to use: as many as asked for, else one for each core."""
    import os

    return asked if asked is not None else os.cpu_count() or 1
