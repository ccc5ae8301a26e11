"""`stowplan compare`: published systems on one work, side by side."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Context, Depth, Generate, Html, Json, On, Prompt, Quant, Set

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stowplan.cli.tables import Line
    from stowplan.machines.machine import Machine
    from stowplan.models.model import Model
    from stowplan.planner.comparison import Compared, Comparison


class CompareBy(StrEnum):
    """What every system's plan makes fast."""

    REQUEST = "request"
    DECODE = "decode"
    TTFT = "ttft"


def compare(
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A name, a .gguf, a config.json or a folder.")],
    on: On,
    quant: Quant = None,
    systems: Annotated[
        str, typer.Option("--systems", metavar="A,B,C", help="Which, separated by commas; see `stowplan list systems`.")
    ] = "all",
    set_: Set = None,
    context: Context = None,
    prompt: Prompt = None,
    generate: Generate = None,
    depth: Depth = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, max=2**20, help="Requests at once (1).")] = None,
    objective: Annotated[CompareBy, typer.Option("--objective", help="What each plan makes fast.")] = CompareBy.REQUEST,
    html: Html = None,
    json: Json = False,
) -> None:
    """Plan every system for one work and set them side by side."""
    from stowplan.cli import inputs, outputs, tables
    from stowplan.machines import load_machine
    from stowplan.models import load_model

    inputs.check_output("--html", html, [".html", ".htm"])
    asked = inputs.workload(context=context, prompt=prompt, generate=generate, depth=depth, batch=batch)
    machine, loaded = load_machine(on, set_ or []), load_model(model, quant)
    from stowplan.planner import comparison

    progress = inputs.Progress()
    try:
        found = comparison.compare(
            machine,
            loaded,
            (model, quant),
            asked,
            systems=wanted(systems),
            objective=objective.value,
            progress=progress,
        )
    finally:
        progress.done()
    if html is not None:
        from stowplan.report.comparison import comparison_page

        outputs.write_text(html, comparison_page(found, machine, loaded))
    if json:
        from stowplan.cli.comparison_document import comparison_document
        from stowplan.cli.documents import as_json

        tables.print_verbatim(as_json(comparison_document(found, machine.name, loaded.name, loaded.quant)))
    else:
        tables.print_lines(comparison_answer(found, machine, loaded))


def wanted(text: str) -> list[str]:
    """Keys of ``--systems``; empty for all."""
    keys = [part.strip().lower() for part in text.split(",") if part.strip()]
    return [] if keys in ([], ["all"]) else list(dict.fromkeys(keys))


def comparison_answer(found: Comparison, machine: Machine, model: Model) -> list[Line]:
    """Lines for people."""
    from stowplan.cli import words
    from stowplan.cli.tables import Line, labelled, paragraph, table
    from stowplan.units import format_bytes

    asked = found.workload
    lines = [
        Line(""),
        Line(f"  {model.name}  {model.quant.upper()}  {format_bytes(model.weight_bytes)}", "answer"),
        *labelled("on", machine.name, "answer"),
        *labelled(
            "work",
            f"{asked.batch} x {asked.depth + asked.prompt:,} tokens of prompt, {asked.generate:,} generated; every "
            f"system with its best plan for {_AIMS[found.objective]}",
        ),
        Line(""),
    ]
    rows = [_row(each, len(machine.gpus)) for each in found.runs]
    if found.ideal is not None:
        rows.insert(0, ["(ideal engine)", *_row(found.ideal, len(machine.gpus))[1:]])
    takes = {"request": "a request", "decode": "a step", "ttft": "the wait"}.get(found.objective, "takes")
    header = ["system", "tok/s", "first token", takes, "GPU", "RAM", "SSD GiB", "waits for"]
    lines += table(header, rows, numbers=range(1, 7))
    lines += _left_on_the_table(found)
    approximate = [each for each in found.runs if not each.exact]
    if approximate:
        lines += [
            Line(""),
            *table(["~ approximate", "as the paper reports it"], [[e.key, e.quality] for e in approximate]),
        ]
    if found.refused:
        lines += [Line(""), *table(["cannot run this", "why"], [[e.key, e.reason] for e in found.refused])]
    if found.floor_tokens_per_s is not None:
        text = (
            f"no exact engine decodes faster than {words.rate(found.floor_tokens_per_s)} tok/s on this machine: every "
            f"byte read once, all memories at full rate"
        )
        if any(layer.experts for layer in model.layers):
            text += ", the active experts on the GPU as far as they have room there"
        lines += [Line(""), *paragraph(text, "faint")]
    return lines


_AIMS = {
    "request": "the request",
    "decode": "decode",
    "ttft": "the first token",
    "throughput": "throughput",
}


def _row(each: Compared, gpus: int) -> list[str]:
    from stowplan.cli import words

    name = "launches" if each.bottleneck == "overhead" else words.resource(each.bottleneck, gpus)
    waits = f"{name} {100 * each.shares.get(each.bottleneck, 0.0):.0f} %"
    return [
        each.key if each.exact else f"{each.key} ~",
        words.rate(each.decode_tokens_per_s),
        words.seconds(each.ttft_s),
        words.seconds(each.cost_s),
        *(_held(each, tier) for tier in ("gpu", "ram", "disk")),
        waits,
    ]


def _held(each: Compared, tier: str) -> str:
    from stowplan.cli import words

    used = sum(use.used for name, use in each.memory.items() if name.startswith(tier))
    return words.gib(used) if used else "-"


def _left_on_the_table(found: Comparison) -> Sequence[Line]:
    from stowplan.cli import words
    from stowplan.cli.tables import Line, paragraph

    best = found.best_exact
    if best is None or found.ideal is None or found.ideal.decode_tokens_per_s <= best.decode_tokens_per_s:
        return []
    ratio = words.times(found.ideal.decode_tokens_per_s / best.decode_tokens_per_s)
    faster = f"{ratio} as fast" if ratio.endswith("x") else f"{ratio} faster"
    text = (
        f"{best.key} is the best exact system for {_AIMS[found.objective]}; an engine that composed all exact "
        f"mechanisms here with kernels at the machine's rates would decode {faster}"
    )
    return [Line(""), *paragraph(text, "limit")]
