"""`stowplan export`: a plan in the words of an engine, printed or as a folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from stowplan.exports.base import Files
    from stowplan.exports.projection import Projection


def export(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN.json", help="A plan that `stowplan plan -o` wrote.")],
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="ENGINE", help="Whose words: llama.cpp, vllm, sglang, ollama ...")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="DIR", help="Write a folder: command, files, README, check.")
    ] = None,
) -> None:
    """Print what carries a plan out in an engine, or write it as a folder."""
    from pathlib import Path

    from stowplan.cli import tables
    from stowplan.exports import directory, load_exporter
    from stowplan.exports.projection import project
    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.plan import read_plan
    from stowplan.planner.predict import make_setup
    from stowplan.systems import load_system

    stored = read_plan(Path(plan_file))
    exporter = load_exporter(engine or _engine_of(stored.system, stored.settings.get("engine")))
    machine, model = load_machine(stored.machine, stored.set), load_model(stored.model, stored.quant)
    fork = stored.settings.get("engine") if stored.system == "llama.cpp" else None
    setup = make_setup(machine, model, load_system(stored.system), fork)
    projection = project(exporter, setup, stored)
    if output is not None:
        contents = directory.contents_of(exporter, setup, projection)
        directory.write_directory(Path(output), contents)
        _say(projection, to=sys.stdout)
        tables.print_verbatim(f"{output}: {', '.join(contents)}")
        return
    _say(projection, to=sys.stderr)
    tables.print_verbatim(_shown(exporter.files(setup, projection.plan)))


def _engine_of(system: str, fork: object) -> str:
    return "ik_llama.cpp" if fork == "ik_llama.cpp" else system


def _shown(files: Files) -> str:
    """The text that states the placement: the file that does, or the command."""
    from stowplan.systems.llama_cpp_commands import wrapped

    return files.contents[files.main].rstrip("\n") if files.main in files.contents else wrapped(files.command)


def _say(projection: Projection, *, to: TextIO) -> None:
    """What the engine does otherwise than the plan."""
    for text in (*projection.differences, *([projection.cost] if projection.cost else [])):
        print(text, file=to)
