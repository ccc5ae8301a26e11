"""`stowplan import`: the plan that a command or a configuration file of an engine states."""

from __future__ import annotations

from typing import Annotated

import typer

from stowplan.cli.inputs import Depth, Generate, On, Prompt, Quant, Set
from stowplan.errors import InputError


def import_(
    words: Annotated[
        list[str], typer.Argument(metavar="FILE | -- COMMAND...", help="A file of an engine, or -- and a command.")
    ],
    *,
    on: On,
    set_: Set = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="What it runs.")] = None,
    quant: Quant = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="ENGINE", help="Whose words they are, where the text leaves it open."),
    ] = None,
    prompt: Prompt = None,
    generate: Generate = None,
    depth: Depth = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write the plan.")] = None,
) -> None:
    """Print the plan that a file or a command of an engine states, as JSON."""
    from pathlib import Path

    from stowplan.cli import documents, inputs, outputs, tables
    from stowplan.exports import list_engines
    from stowplan.exports.reading import Told, read_command, read_file, split_command
    from stowplan.machines import load_machine
    from stowplan.plan import checked_workload

    inputs.check_output("-o", output, [".json"])
    if engine is not None and engine not in list_engines():
        raise InputError(f"--engine {engine[:40]}: it is one of {', '.join(list_engines())}")
    asked = checked_workload({"prompt": prompt, "generate": generate, "depth": depth})
    told = Told(load_machine(on, set_ or []), model, quant, asked, engine)
    if len(words) == 1 and " " not in words[0].strip():
        found = read_file(Path(words[0]), told)
    else:
        found = read_command(split_command(words[0]) if len(words) == 1 else words, told)
    for warning in found.warnings:
        typer.echo(f"stowplan: {warning}", err=True)
    text = documents.as_json(found.plan)
    if output is not None:
        outputs.write_text(output, text + "\n")
    else:
        tables.print_verbatim(text)
