"""What people read after `whatif`: what limits, what a resource is worth, what would help; or a table of variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stowplan.cli import words
from stowplan.cli.answers import heading, speed
from stowplan.cli.tables import Line, blocks, labelled, paragraph, table
from stowplan.report.whatif_words import summary
from stowplan.report.words import resource

if TYPE_CHECKING:
    from stowplan.whatif.answer import Change, WhatIf
    from stowplan.whatif.outcome import Outcome
    from stowplan.whatif.prices import ShadowPrice
    from stowplan.whatif.sweep import Row, Sweep
    from stowplan.whatif.until import BreakEven

_MOST_ROWS = 24
_OBJECTIVES = {"request": "request", "decode": "token", "ttft": "first token", "throughput": "token"}


def answer_lines(answer: WhatIf) -> list[Line]:
    """The whole answer of a question without sweeps."""
    prediction = answer.planned.prediction
    aim = _OBJECTIVES[answer.scenario.objective]
    priced = any(change.usd_per_token_per_s is not None for change in answer.changes)
    notes = ["in brackets 80 % of what may be: errors that both plans share cancel; ~ within its error bar"]
    if priced:
        notes.append("USD: street prices of the parts' profiles, per token/s of decode gained")
    return blocks(
        heading(answer.setup, prediction),
        speed(prediction),
        paragraph(" ".join(summary(answer)), "limit"),
        _changes(answer.changes, prediction.decode_tokens_per_s, aim),
        _prices(answer.prices, answer.speed, answer.scenario.objective),
        paragraph("; ".join(notes), "faint"),
    )


def _changes(changes: Sequence[Change], now: float, aim: str) -> list[Line]:
    rows = [
        [
            change.title + (" *" if change.quality else ""),
            words.rate(change.decode.ratio * now),
            words.seconds(change.outcome.figure("ttft_s") or 0.0),
            _gain(change),
            "-" if change.price_usd is None else f"{change.price_usd:,.0f}",
            "-" if change.usd_per_token_per_s is None else f"{change.usd_per_token_per_s:,.0f}",
        ]
        for change in changes
    ]
    header = ["what would help", "tok/s", "first token", f"a {aim} is faster by", "USD", "per tok/s"]
    bought = any(change.price_usd is not None for change in changes)
    if not bought:
        header, rows = header[:-2], [row[:-2] for row in rows]
    lines = table(header, rows, numbers=range(1, len(header)))
    if any(change.quality for change in changes):
        lines += paragraph("* the model's answers change with it", "faint")
    return lines


def _gain(change: Change) -> str:
    """How many times faster, with its range; marked where the range does not exclude that nothing is gained."""
    gain = change.gain
    return f"{'' if gain.certain else '~ '}{gain.ratio:.2f}x ({gain.low:.2f} - {gain.high:.2f})"


def _prices(prices: Sequence[ShadowPrice], speed: float, objective: str) -> list[Line]:
    unit = "prompt tok/s" if objective == "ttft" else "tok/s"
    rows = [
        [
            price.resource.title,
            f"{words.rate(price.resource.amount)} {price.resource.unit}",
            _worth(price.relaxed, speed * 1e-5),
            _worth(price.resolved, price.noise),
            f"+{words.rate(price.step)} {price.resource.unit}",
            "layers move whole" if price.whole_layers else "",
        ]
        for price in prices
    ]
    header = ["one more unit of", "there is", f"{unit} per unit", "solved again", "with", ""]
    return table(header, rows, numbers=(1, 2, 3, 4))


def _worth(value: float | None, noise: float) -> str:
    if value is None:
        return "-"
    return "nothing" if abs(value) <= noise * 0.5 else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


def sweep_lines(sweep: Sweep, best: Sequence[int], wishes: Sequence[str]) -> list[Line]:
    """The variants, or those of the front where there are too many for a screen."""
    shown = list(range(len(sweep.rows)))
    title = f"{len(sweep.rows):,} variants of {sweep.base.scenario.model} on {sweep.base.scenario.machine}"
    failed = sum(1 for row in sweep.rows if row.outcome.error is not None)
    notes = []
    if failed:
        notes.append(f"{failed:,} have no plan")
    if len(shown) > _MOST_ROWS:
        shown = [*best]
        notes.append(f"shown: the front over {', '.join(wishes)}; -o FILE.csv or --html FILE writes all")
        if len(shown) > _MOST_ROWS:
            shown = [shown[k * (len(shown) - 1) // (_MOST_ROWS - 1)] for k in range(_MOST_ROWS)]
            notes.append(f"{len(shown)} of the {len(best)} that lie on it")
    reasons = sorted({row.outcome.error for row in sweep.rows if row.outcome.error is not None})
    return blocks(
        [Line(f"  {title}", "answer")],
        _variants(sweep, shown, set(best)),
        paragraph("* on the front; ~ a change within its error bar" + "".join(f"; {note}" for note in notes), "faint"),
        paragraph(f"no plan, for example: {reasons[0]}", "warning") if reasons else [],
    )


def _variants(sweep: Sweep, shown: Sequence[int], best: set[int]) -> list[Line]:
    from stowplan.whatif.differences import difference

    priced = any(sweep.rows[k].outcome.price_usd is not None for k in shown)
    base = sweep.base.outcome

    def row(values: Sequence[str], outcome: Outcome, mark: str) -> list[str]:
        if outcome.figures is None or outcome.interval is None:
            return [*values, "-", "-", "-", "-", "-", *(["-"] if priced else []), "does not fit"]
        low, high = outcome.interval["decode_tokens_per_s"]
        found = difference(base, outcome, "decode_tokens_per_s")
        against = "-" if found is None else f"{'' if found.certain else '~ '}{found.ratio:.2f}x"
        price = [] if not priced else ["-" if outcome.price_usd is None else f"{outcome.price_usd:,.0f}"]
        return [
            *values,
            words.rate(outcome.figures["decode_tokens_per_s"]) + mark,
            f"{words.rate(low)} - {words.rate(high)}",
            against,
            words.seconds(outcome.figures["ttft_s"]),
            words.gib(outcome.gpu_bytes),
            *price,
            resource(outcome.bottleneck, 2),
        ]

    names = [axis.path for axis in sweep.axes]
    rows = [row(_base_values(sweep), base, "")]
    rows += [row(sweep.rows[k].values, sweep.rows[k].outcome, " *" if k in best else "") for k in shown]
    header = [*names, "tok/s", "80 %", "change", "first token", "GPU GiB", *(["USD"] if priced else []), "limit"]
    return table(header, rows, numbers=range(len(names), len(header) - 1))


def _base_values(sweep: Sweep) -> list[str]:
    return ["as it is", *[""] * (len(sweep.axes) - 1)]


def break_even_lines(found: BreakEven, row: Row) -> list[Line]:
    """The least of a resource that reaches a target."""
    target = found.target
    wanted = f"{target.name} of {_figure(target.value, target.at_least)}"
    outcome = found.outcome
    reached = outcome.figure(target.figure)
    gives = "no plan" if reached is None else _figure(reached, target.at_least)
    before = row.outcome.figure(target.figure)
    now = "no plan" if before is None else _figure(before, target.at_least)
    if found.value is None:
        text = f"No {found.path} from {found.ends[0]} to {found.ends[1]} reaches a {wanted}: at best {gives}."
        reason = [] if outcome.error is None else paragraph(outcome.error, "warning")
        limit = paragraph(f"{resource(outcome.bottleneck, 2)} limits there", "faint") if outcome.bottleneck else []
        return blocks(paragraph(text, "answer"), reason, limit, labelled("now", now))
    word = "most" if found.path in ("context", "prompt", "depth") else "least"
    text = f"A {wanted} takes {found.path}={found.value} at {word}: {gives}."
    lines = paragraph(text, "answer")
    if found.short is not None:
        value, other = found.short
        missed = other.figure(target.figure)
        lines += labelled("short", f"{value}: {'no plan' if missed is None else _figure(missed, target.at_least)}")
    else:
        lines += labelled("", "the whole range reaches it")
    lines += labelled("now", now)
    if outcome.bottleneck:
        lines += labelled("limit", f"{resource(outcome.bottleneck, 2)}, from there on")
    return blocks(lines, paragraph(f"{found.tried} plans solved; within 1 % or one whole unit", "faint"))


def _figure(value: float, rate: bool) -> str:
    return f"{words.rate(value)} tok/s" if rate else words.seconds(value)
