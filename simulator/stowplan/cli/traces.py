"""`stowplan traces`: what traces there are, what they are like, synthetic ones, and downloads on request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli import tables
from stowplan.cli.inputs import Html, Json
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.traces.rows import ReadOptions
    from stowplan.traces.stats import Spread, Statistics
    from stowplan.traces.trace import Trace

app = typer.Typer(
    help="Request traces: list, statistics, synthetic ones, verified downloads.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Source = Annotated[str, typer.Argument(metavar="TRACE", help="A name of `stowplan traces list`, or a file.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")]
Replace = Annotated[bool, typer.Option("--replace", help="Write over a file that is there.")]


@app.command("list", help="Named traces: shipped, synthetic, downloadable.")
def list_traces(json: Json = False) -> None:
    """List named traces."""
    from stowplan.cli.documents import as_json
    from stowplan.cli.trace_document import trace_list_document
    from stowplan.traces.catalogue import catalogue

    entries = catalogue().values()
    if json:
        tables.print_verbatim(as_json(trace_list_document(entries)))
        return
    rows_shown = [
        [each.name, "fetch it" if not each.path.is_file() else each.kind, each.licence, each.title] for each in entries
    ]
    tables.print_lines(tables.table(["trace", "kind", "licence", "what it is"], rows_shown))


@app.command("stats", help="Rates, burstiness, lengths, prefix reuse, sessions.")
def stats(
    trace: Source,
    head: Annotated[int | None, typer.Option("--head", min=1, help="Only the first requests.")] = None,
    start: Annotated[float | None, typer.Option("--from", help="Only arrivals from this second on.")] = None,
    end: Annotated[float | None, typer.Option("--to", help="Only arrivals before this second.")] = None,
    keep_failures: Annotated[bool, typer.Option("--keep-failures", help="Keep requests without a response.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count rows that are wrong.")] = False,
    jitter: Annotated[int | None, typer.Option("--jitter", min=0, help="Part ties, with this seed.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Requests/s for files without arrivals.")] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Seconds to sample from clients.")] = None,
    block_tokens: Annotated[int | None, typer.Option("--block-tokens", min=1, help="Tokens per hashed block.")] = None,
    seed: Seed = 0,
    json: Json = False,
    html: Html = None,
) -> None:
    """Print statistics."""
    from stowplan.cli.documents import as_json
    from stowplan.cli.trace_document import trace_statistics_document
    from stowplan.traces.rows import ReadOptions
    from stowplan.traces.stats import statistics

    options = ReadOptions(keep_failures, skip_bad, jitter, seed, rate, duration, block_tokens)
    chosen = _chosen(trace, options, head, start, end)
    found = statistics(chosen)
    if html is not None:
        from stowplan.cli.outputs import write_text
        from stowplan.traces.page import page

        write_text(html, page(chosen, found))
    if json:
        tables.print_verbatim(as_json(trace_statistics_document(found)))
    else:
        tables.print_lines(_report(found))


@app.command("synth", help="Write a synthetic log in the shape of BurstGPT.")
def synth(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="File that ends in .csv, .csv.gz, .jsonl or .jsonl.gz.")
    ],
    requests: Annotated[int | None, typer.Option("--requests", min=1, help="Requests (1,429,737).")] = None,
    days: Annotated[int | None, typer.Option("--days", min=1, help="Only the first days (61).")] = None,
    conversations: Annotated[
        bool, typer.Option("--conversations", help="Add sessions and prefix hashes; the plain format then.")
    ] = False,
    parameters: Annotated[
        Path | None, typer.Option("--parameters", metavar="FILE.toml", help="Another generator's parameters.")
    ] = None,
    seed: Seed = 0,
    replace: Replace = False,
) -> None:
    """Write a synthetic log: BurstGPT's columns as CSV, or the plain format."""
    from stowplan.traces.catalogue import find
    from stowplan.traces.conversations import with_conversations
    from stowplan.traces.synthesis import load_parameters, synthesise
    from stowplan.traces.writing import check_target, write_log, write_trace

    check_target(output, replace=replace)
    log = synthesise(load_parameters(parameters or find("burstgpt-like").path), seed=seed, requests=requests, days=days)
    plain = conversations or ".jsonl" in output.suffixes
    if plain:
        trace = with_conversations(log.trace, seed=seed) if conversations else log.trace
        write_trace(trace, output, replace=replace)
    else:
        write_log(log, output, replace=replace)
    left_out = sum(log.trace.dropped.values())
    failures = f"; its {left_out:,} failures are {'left out' if plain else 'in it'}" if left_out else ""
    typer.echo(f"{output}: {log.trace.origin}{failures}", err=True)


@app.command("fetch", help="Download a public trace and verify its SHA-256.")
def fetch(
    name: Annotated[str, typer.Argument(metavar="TRACE", help="A downloadable name of `stowplan traces list`.")],
    folder: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where it goes (the folder STOWPLAN_TRACES names).")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Load the same file from another address.")] = None,
    replace: Replace = False,
) -> None:
    """Download, resume and verify."""
    import dataclasses

    from stowplan.traces import fetching
    from stowplan.traces.catalogue import catalogue, find

    entry = find(name)
    if entry.download is None:
        offered = ", ".join(each.name for each in catalogue().values() if each.download)
        raise InputError(f"{name} is shipped and needs no download; what can be downloaded is {offered}")
    source = entry.download if url is None else dataclasses.replace(entry.download, url=url)
    target = entry.path if folder is None else folder / entry.path.name
    got = fetching.fetch(source, target, replace=replace, progress=_progress if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        typer.echo("", err=True)
    how = f"{got.loaded:,} bytes loaded" if got.loaded else "was here already"
    resumed = f", {got.kept:,} kept from before" if got.kept and got.loaded else ""
    typer.echo(f"{got.path}: {how}{resumed}; SHA-256 verified; {entry.licence}, {entry.attribution}")


def _progress(here: int, size: int) -> None:
    typer.echo(f"\r{here / 1e6:,.1f} of {size / 1e6:,.1f} MB", nl=False, err=True)


def _chosen(name: str, options: ReadOptions, head: int | None, start: float | None, end: float | None) -> Trace:
    """The trace, or the part of it that was asked for."""
    import math

    from stowplan.traces.reading import load_trace

    found = load_trace(name, options)
    if start is not None or end is not None:
        found = found.slice(start or 0.0, math.inf if end is None else end)
    return found if head is None else found.head(head)


def _report(found: Statistics) -> list[tables.Line]:
    """Statistics on one screen."""
    rate = f"{found.rate:.4g} requests/s" if found.rate is not None else "all at once"
    lines = tables.labelled("trace", f"{found.name}: {found.requests:,} requests, {rate}", "answer")
    lines += tables.labelled("from", found.origin)
    for reason, count in found.dropped.items():
        lines += tables.labelled("left out", f"{count:,} {reason}", "warning")
    lines += tables.labelled("duration", f"{found.duration_s:,.1f} s ({found.duration_s / 86400:.2f} days)")
    lines += tables.labelled("bursts", _bursts(found))
    lines += tables.labelled("tokens", f"{found.prompt_total:,} in prompts, {found.output_total:,} in outputs")
    rows = [_spread_row("prompt", found.prompt), _spread_row("output", found.output)]
    if found.sessions is not None and found.sessions.sessions:
        rows.append(_spread_row("turns", found.sessions.turns))
        if found.sessions.gap_s is not None:
            rows.append(_spread_row("turn gap, s", found.sessions.gap_s))
    header = ["", "mean", "least", *(f"p{100 * float(level):g}" for level in found.prompt.quantiles), "most"]
    shown = [*lines, *tables.blocks(tables.table(header, rows, numbers=range(1, len(header))))]
    if found.reuse is not None:
        reuse = found.reuse
        text = (
            f"{100 * reuse.seen_share:.1f} % of {reuse.blocks:,} blocks of {reuse.block_tokens} tokens were seen "
            f"before; a cache without end holds {100 * reuse.hit_tokens_share:.1f} % of the prompts' tokens"
        )
        shown += tables.blocks(tables.labelled("prefixes", text))
    return shown


def _bursts(found: Statistics) -> str:
    parts = [] if found.gap_cv is None else [f"gaps vary by {found.gap_cv:.2f} (1 is Poisson)"]
    if found.fano:
        parts.append(
            "variance over mean of counts per "
            + ", ".join(f"{float(window):g} s: {value:.3g}" for window, value in found.fano.items())
        )
    return "; ".join(parts) or "too few arrivals to tell"


def _spread_row(name: str, spread: Spread) -> list[str]:
    values = (spread.mean, spread.least, *spread.quantiles.values(), spread.most)
    return [name, *(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)]
