"""`stowplan batch`: a file of requests into batches, with the bound and the rules that others use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Json, On, Quant, Set

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stowplan.cli.tables import Line
    from stowplan.planner.batching import Batching
    from stowplan.planner.batching_costs import Requests
    from stowplan.planner.batching_from_plan import Chosen

_TITLES = {
    "padded": "first come, padded",
    "first_come": "first come",
    "mixed": "compute-bound beside memory-bound (BlendServe)",
    "bin_packed": "first fit by tokens (Prepacking)",
    "sorted": "sorted by output",
}


def batch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a .gguf, a config.json or a folder.")],
    *,
    on: On,
    requests: Annotated[
        str,
        typer.Option(
            "--requests", metavar="FILE", help="CSV or JSONL with prompt_tokens and output_tokens, one request a line."
        ),
    ],
    quant: Quant = None,
    set_: Set = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, max=1024, help="Requests that may run at once.")
    ] = 256,
    kv: Annotated[
        str | None, typer.Option("--kv", metavar="TYPE", help="Cache type such as q8_0, or KEYS,VALUES.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE.jsonl", help="Write the batches.")
    ] = None,
    json: Json = False,
) -> None:
    """Form batches of requests whose lengths are known, for the least time in all."""
    from pathlib import Path

    from stowplan.cli import inputs, tables
    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.planner.batching_files import read_requests, write_batches
    from stowplan.planner.predict import make_setup
    from stowplan.systems.llama_cpp import LlamaCpp

    inputs.check_output("-o", output, [".jsonl"])
    settings = inputs.llama_cpp_settings(kv=kv, ubatch=None, threads=None, margin=None)
    asked = read_requests(Path(requests))
    setup = make_setup(load_machine(on, set_ or []), load_model(model, quant), LlamaCpp())
    from stowplan.planner.batching import batch_requests, compare  # loads the solver: only for good input
    from stowplan.planner.batching_from_plan import plan_for_requests
    from stowplan.planner.batching_run import run_batches
    from stowplan.planner.result import Request

    progress = inputs.Progress()
    request = Request(setup, (model, quant), inputs.workload(), "throughput", settings, progress=progress)
    try:
        chosen = plan_for_requests(request, asked, max_batch)
        progress(f"{len(asked)} requests into batches")
        cost, limits = chosen.fitted.cost, chosen.limits
        best, others = batch_requests(asked, cost, limits), compare(asked, cost, limits)
        runs = run_batches([each.requests for each in best.batches], asked, cost)
    finally:
        progress.done()
    if output is not None:
        write_batches(Path(output), best, runs)
    if json:
        from stowplan.cli.batching_document import batching_document
        from stowplan.cli.documents import as_json

        tables.print_verbatim(as_json(batching_document(chosen, asked, best, others)))
        return
    tables.print_lines(_answer(chosen, asked, best, others, output))


def _answer(
    chosen: Chosen, asked: Requests, best: Batching, others: Mapping[str, Batching], output: str | None
) -> list[Line]:
    from stowplan.cli.tables import blocks, labelled, paragraph, table
    from stowplan.units import format_seconds

    tokens = int(asked.output.sum())
    limits, fitted = chosen.limits, chosen.fitted
    rate = f", {tokens / best.makespan_s:,.1f} output tokens/s" if best.makespan_s else ""
    head = labelled(
        "batches",
        f"{len(asked):,} requests in {len(best.batches):,} batches: {format_seconds(best.makespan_s)}{rate}",
        "answer",
    )
    head += labelled(
        "proof",
        f"nothing without padding takes less than {format_seconds(best.bound_s)} (gap {100 * best.gap:.2f} %, "
        f"found by {best.method.replace('_', ' ')} in {format_seconds(best.seconds)})",
    )
    head += labelled("limits", f"{limits.cache_tokens:,} tokens of cache shared by {limits.max_batch:,} slots")
    head += labelled(
        "model",
        f"decode steps within {100 * fitted.decode_error:.1f} % and micro-batches within "
        f"{100 * fitted.prefill_error:.1f} % of the plan's step prices",
    )
    rows = [("these batches", best), *((_TITLES[name], other) for name, other in others.items())]
    rows[1:] = sorted(rows[1:], key=lambda row: row[1].makespan_s)
    shown = [
        (title, f"{len(each.batches):,}", format_seconds(each.makespan_s), f"{each.makespan_s / best.makespan_s:.2f} x")
        for title, each in rows
        if best.makespan_s
    ]
    written = paragraph(f"Batches are in {output}.", "faint") if output is not None else []
    return blocks(head, table(["method", "batches", "time", "of these"], shown, numbers=(1, 2, 3)), written)
