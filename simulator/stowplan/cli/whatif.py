"""`stowplan whatif`: what would help, sweeps, and break-even points."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Context, Depth, Generate, Html, Json, Prompt, Quant
from stowplan.cli.planning import Aim
from stowplan.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stowplan.whatif.axes import Axis
    from stowplan.whatif.scenario import Combination, Scenario
    from stowplan.whatif.sweep import Workers

_MANY = 2000
"""Variants above which a person is asked first: some minutes of one core."""
_ABOUT_S = 0.12
"""Seconds of one core that a variant takes, for the question before a large sweep."""


def whatif(
    what: Annotated[str, typer.Argument(metavar="PLAN.json|MODEL", help="A plan file, or a model to plan.")],
    *,
    on: Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Machine; a plan file has its own.")] = None,
    quant: Quant = None,
    system: Annotated[str | None, typer.Option("--system", metavar="SYSTEM", help="Who runs it (llama.cpp).")] = None,
    objective: Annotated[Aim | None, typer.Option("--objective", help="What to make fast (request).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one thing first. Repeatable.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="PATH=A:B:STEP", help="Vary it, or PATH=A,B,C. Repeatable."),
    ] = None,
    paired: Annotated[bool, typer.Option("--paired", help="First values together, then the second ones ...")] = False,
    until: Annotated[
        str | None, typer.Option("--until", metavar="decode=10", help="Find the least of --vary that reaches this.")
    ] = None,
    vary: Annotated[
        str | None, typer.Option("--vary", metavar="PATH", help="What --until varies (PATH=FROM:TO).")
    ] = None,
    front: Annotated[
        str | None, typer.Option("--front", metavar="A,B", help="Front over latency, throughput, step, memory, cost.")
    ] = None,
    context: Context = None,
    prompt: Prompt = None,
    generate: Generate = None,
    depth: Depth = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, max=2**20, help="Requests at once (1).")] = None,
    kv: Annotated[
        str | None, typer.Option("--kv", metavar="TYPE", help="Cache type such as q8_0, or KEYS,VALUES.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=1024, help="Processes of this machine.")] = 1,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="URL", help="dask://host:port, ray://host:port, or ray.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="FILE.sqlite", help="Keep results here; go on where it stopped.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a large sweep.")] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Variants as .csv, .json or .parquet.")
    ] = None,
    html: Html = None,
    json: Json = False,
) -> None:
    """Say what would help, or plan every variant of a question."""
    from pathlib import Path

    from stowplan.cli import inputs
    from stowplan.whatif.axes import parse_axis
    from stowplan.whatif.records import ENDINGS
    from stowplan.whatif.sweep import Workers

    inputs.check_output("-o", output, ENDINGS)
    inputs.check_output("--html", html, [".html", ".htm"])
    inputs.check_output("--store", store, [".sqlite", ".db"])
    if sweep and until is not None:
        raise InputError("--sweep and --until are two questions; ask them one after the other")
    if (until is None) != (vary is None):
        raise InputError("--until and --vary go together, such as --until decode=10 --vary gpu.memory")
    if not sweep and (output is not None or front is not None or paired):
        raise InputError("-o, --front and --paired belong to a sweep; add --sweep PATH=A:B:STEP")
    asked = {"context": context, "prompt": prompt, "generate": generate, "depth": depth, "batch": batch}
    given = {name: value for name, value in asked.items() if value is not None}
    base = _scenario(what, on, quant, system, None if objective is None else objective.value, given)
    cache = [] if kv is None else [f"kv={kv.replace(',', '/')}"]  # as `plan` takes it: KEYS,VALUES
    base = _with(base, [*cache, *(set_ or [])])
    if sweep:
        axes = [parse_axis(text) for text in sweep]
        who = Workers(workers, cluster, None if store is None else Path(store))
        _ask_first(axes, "paired" if paired else "cartesian", yes=yes, workers=workers)
        _sweep(base, axes, "paired" if paired else "cartesian", who, front, output=output, html=html, json=json)
    elif until is not None and vary is not None:
        _until(base, until, vary, json=json)
    else:
        _answer(base, html=html, json=json)


def _scenario(
    what: str, on: str | None, quant: str | None, system: str | None, objective: str | None, asked: dict[str, int]
) -> Scenario:
    """The question's starting point: a plan file's, or a model on a machine."""
    from pathlib import Path

    from stowplan.plan import read_plan
    from stowplan.whatif.scenario import BATCHES, Scenario, checked_objective

    if what.endswith(".json") and Path(what).name != "config.json":
        if on is not None or quant is not None or system is not None:
            raise InputError(
                f"{what} says mix, machine and system; change them with --set machine=..., --set quant=..."
            )
        base = Scenario.of_plan(read_plan(Path(what)))
    else:
        if on is None:
            raise InputError("--on MACHINE is missing: name the machine to ask about")
        base = Scenario(model=what, machine=on, quant=quant, system=system or "llama.cpp")
        base = replace(base, objective="throughput" if base.system == "flexgen" else "request")
    if objective is not None:
        base = replace(base, objective=checked_objective(objective))
    for name, value in asked.items():
        base = base.with_workload(name, value)
    wants_any = base.objective == "throughput" and "batch" not in dict(base.workload) and bool(BATCHES)
    return replace(base, any_batch=wants_any and base.engine == "llama.cpp")


def _with(base: Scenario, changes: Sequence[str]) -> Scenario:
    from stowplan.whatif.axes import parse_set
    from stowplan.whatif.paths import set_path

    for text in changes:
        base = set_path(base, *parse_set(text))
    return base


def _ask_first(axes: Sequence[Axis], combination: Combination, *, yes: bool, workers: int) -> None:
    """Ask a person before a sweep that takes minutes; refuse where there is nobody to ask."""
    from stowplan.units import format_seconds
    from stowplan.whatif.axes import count_variants

    count = count_variants(axes, combination)
    if count <= _MANY or yes:
        return
    about = format_seconds(_ABOUT_S * count / workers)
    told = f"{count:,} variants, about {about} with {workers} worker{'s' if workers > 1 else ''}"
    if not sys.stdin.isatty():
        raise InputError(f"{told}; say --yes, or take larger steps")
    if not typer.confirm(f"{told}. Plan them all?", err=True):
        raise InputError("nothing was planned")


class _Bar:
    """Progress of a sweep on stderr, with the time that is left; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown, self._started, self._first = sys.stderr.isatty(), time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        if not self._shown:
            return
        if self._first < 0:
            self._first = done
        from stowplan.units import format_seconds

        now, fresh = time.monotonic() - self._started, done - self._first
        left = f", {format_seconds(now * (total - done) / fresh)} left" if fresh and done < total else ""
        filled = 30 * done // max(1, total)
        sys.stderr.write(f"\r\x1b[K  [{'#' * filled}{'.' * (30 - filled)}] {done:,} of {total:,} plans{left}")
        sys.stderr.flush()

    def done(self) -> None:
        """Wipe the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _sweep(
    base: Scenario,
    axes: Sequence[Axis],
    combination: Combination,
    workers: Workers,
    wanted: str | None,
    *,
    output: str | None,
    html: str | None,
    json: bool,
) -> None:
    from pathlib import Path

    from stowplan.cli import documents, outputs, tables
    from stowplan.cli.whatif_answers import sweep_lines
    from stowplan.cli.whatif_document import sweep_document
    from stowplan.whatif.front import DEFAULT, wishes
    from stowplan.whatif.front import front as front_of
    from stowplan.whatif.records import write_records
    from stowplan.whatif.sweep import run_sweep

    names = DEFAULT if wanted is None else tuple(name.strip() for name in wanted.split(",") if name.strip())
    wishes(names)
    bar = _Bar()
    try:
        found = run_sweep(base, axes, combination, workers, bar)
    finally:
        bar.done()
    page = None
    if html is not None:
        from stowplan.report.whatif_sweep import sweep_page

        page = sweep_page(found, names)
    if output is not None:
        write_records(Path(output), found, names)
    if html is not None and page is not None:
        outputs.write_text(html, page)
    if json:
        tables.print_verbatim(documents.as_json(sweep_document(found, names)))
        return
    best = front_of([row.outcome for row in found.rows], names)
    tables.print_lines(sweep_lines(found, best, names))


def _until(base: Scenario, until: str, vary: str, *, json: bool) -> None:
    from stowplan.cli import documents, inputs, tables
    from stowplan.cli.whatif_answers import break_even_lines
    from stowplan.cli.whatif_document import break_even_document
    from stowplan.whatif.sweep import Row
    from stowplan.whatif.until import break_even, parse_range, parse_target
    from stowplan.whatif.workshop import workshop

    target, span = parse_target(until), parse_range(vary)
    shop, progress = workshop(), inputs.Progress()
    shop.request(base)
    try:
        found = break_even(base, target, span, shop.outcome, progress)
        before = shop.outcome(base)
    finally:
        progress.done()
    if json:
        tables.print_verbatim(documents.as_json(break_even_document(found, until)))
        return
    tables.print_lines(break_even_lines(found, Row((), base, before)))


def _answer(base: Scenario, *, html: str | None, json: bool) -> None:
    from stowplan.cli import documents, inputs, outputs, tables
    from stowplan.cli.whatif_answers import answer_lines
    from stowplan.cli.whatif_document import whatif_document
    from stowplan.whatif.answer import what_if
    from stowplan.whatif.workshop import workshop

    progress = inputs.Progress()
    try:
        answer = what_if(workshop(), base, progress)
    finally:
        progress.done()
    if html is not None:
        from stowplan.report.whatif_page import whatif_page

        outputs.write_text(html, whatif_page(answer))
    if json:
        tables.print_verbatim(documents.as_json(whatif_document(answer)))
        return
    tables.print_lines(answer_lines(answer))
