"""The commands and how they end: one sentence on stderr and exit code 2 for everything that is wrong with the input.

Typer's help and tracebacks are rendered without rich, and the root's ``--help`` is a plain flag of ours: importing rich
takes as long as Python and typer together, and for its own help option typer imports pydantic before every command.
Command bodies import what they run, so that asking for help reads no numbers, no models and no solver.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stowplan.cli import (
    batching,
    calibrating,
    comparing,
    exporting,
    importing,
    listing,
    planning,
    predicting,
    replaying,
    routing,
    schemas,
    showing,
    traces,
    validating,
    whatif,
)
from stowplan.errors import StowplanError

_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns deliberate errors and interruptions into exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except StowplanError as error:
            typer.echo(f"stowplan: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    name="stowplan",
    cls=_Commands,
    help="Where every byte of a language model should live, in what batches it should run, and how fast it will be.",
    add_completion=False,
    add_help_option=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from stowplan import __version__

        typer.echo(f"stowplan {__version__}")
        raise typer.Exit


def _show_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit


@app.callback()
def _root(
    help_: Annotated[
        bool, typer.Option("--help", "-h", help="Show this message.", callback=_show_help, is_eager=True)
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Where every byte of a language model should live, in what batches it should run, and how fast it will be."""


app.command("plan", help="The best plan, what limits it, and the command.")(planning.plan)
app.command("predict", help="What a plan file or a command will do, and why.")(predicting.predict)
app.command("compare", help="Published systems side by side, each with its best plan.")(comparing.compare)
app.command("whatif", help="What would help: upgrades, sweeps, break-even points.")(whatif.whatif)
app.command("export", help="A plan in an engine's own words: a command or a folder.")(exporting.export)
app.command("import", help="The plan that a command or a file of an engine states.")(importing.import_)
app.command("batch", help="A file of requests into batches, for the least time in all.")(batching.batch)
app.command("replay", help="A trace through a plan: latencies, throughput, goodput.")(replaying.replay)
app.command("capacity", help="The highest rate, or the fewest machines, that keep an objective.")(replaying.capacity)
app.command("validate", help="Published measurements against predictions: errors, intervals, winners.")(
    validating.validate
)
app.add_typer(calibrating.app, name="calibrate", help="This machine, measured: profiles that later plans rest on.")
app.add_typer(traces.app, name="traces", help="Request traces: list, statistics, synthetic ones, downloads.")
app.command("routing", help="How a mixture routes tokens, and what caches of experts hit.")(routing.routing)
app.command("list", help="Names of machines, parts, models, mixes, systems.")(listing.list_names)
app.command("show", help="Facts of one thing, each with where it was read.")(showing.show)
app.command("schema", help="The JSON schema of a document.")(schemas.schema)
