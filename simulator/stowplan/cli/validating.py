"""`stowplan validate`: published measurements against predictions, and what the fits are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Html, Jobs, Json
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.validate.validation import Filters


def validate(
    *,
    system: Annotated[
        str | None, typer.Option("--system", metavar="NAME", help="Only this engine, such as llama.cpp or flexgen.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", metavar="TEXT", help="Only machines with this part, such as rtx-3090.")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only this family, such as 'llama.cpp partial'.")
    ] = None,
    jobs: Jobs = None,
    fitted: Annotated[bool, typer.Option("--fitted", help="Also the hardware that constants were set on.")] = False,
    cases: Annotated[bool, typer.Option("--cases", help="Also every measured figure beside its prediction.")] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Errors with datasheets only, with kernel fits, with everything.")
    ] = False,
    unexpressed: Annotated[
        bool, typer.Option("--unexpressed", help="Published measurements that are no case yet, and why.")
    ] = False,
    json: Json = False,
    html: Html = None,
) -> None:
    """Predict published runs and print the errors."""
    from stowplan.cli import inputs
    from stowplan.validate.validation import Filters

    inputs.check_output("--html", html, [".html", ".htm"])
    filters = Filters(system, hardware, family)
    if ablation and unexpressed:
        raise InputError("--ablation and --unexpressed are two questions; ask one at a time")
    if unexpressed:
        if html is not None or filters != Filters():
            raise InputError("--unexpressed takes no --html and no filter; its list is short")
        _unexpressed(json)
    elif ablation:
        if html is not None:
            raise InputError("--ablation writes no page; use --json")
        _ablation(filters, inputs.processes(jobs), json)
    else:
        _validation(filters, inputs.processes(jobs), fitted=fitted, cases=cases, json=json, html=html)


def _validation(filters: Filters, workers: int, *, fitted: bool, cases: bool, json: bool, html: str | None) -> None:
    from stowplan.cli import inputs, tables, validation_tables
    from stowplan.validate.targets import load_targets
    from stowplan.validate.validation import Filters
    from stowplan.validate.validation import validate as run

    shown = inputs.Progress()
    try:
        found = run(filters, workers, lambda done, count: shown(f"{done} of {count} runs predicted"))
    finally:
        shown.done()
    if html is not None:
        from stowplan.cli.outputs import write_text
        from stowplan.report.validation import validation_page

        write_text(html, validation_page(found, load_targets()))
    if json:
        from stowplan.cli.documents import as_json
        from stowplan.cli.validation_document import validation_document

        tables.print_verbatim(as_json(validation_document(found, load_targets().winners)))
        return
    whole = filters == Filters()
    lines = validation_tables.answer(found, load_targets(), whole=whole, fitted=fitted, cases=cases)
    tables.print_lines(lines)
    if html is not None:
        tables.print_lines([tables.Line(""), tables.Line(f"  page: {html}", "faint")])


def _ablation(filters: Filters, workers: int, json: bool) -> None:
    from stowplan.cli import inputs, tables, validation_tables
    from stowplan.validate.ablation import ablate

    shown = inputs.Progress()
    try:
        found = ablate(filters, workers, lambda done, count: shown(f"{done} of {count} predictions"))
    finally:
        shown.done()
    if json:
        from stowplan.cli.documents import as_json
        from stowplan.cli.validation_document import ablation_document

        tables.print_verbatim(as_json(ablation_document(found)))
    else:
        tables.print_lines(validation_tables.ablation(found))


def _unexpressed(json: bool) -> None:
    from stowplan.cli import tables, validation_tables
    from stowplan.validate.unexpressed import load_unexpressed

    groups = load_unexpressed()
    if json:
        from stowplan.cli.documents import as_json
        from stowplan.cli.unexpressed_document import unexpressed_document

        tables.print_verbatim(as_json(unexpressed_document(groups)))
    else:
        tables.print_lines(validation_tables.unexpressed(groups))
