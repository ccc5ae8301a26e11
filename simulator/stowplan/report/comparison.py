"""The page of a comparison: who is how fast, where bytes lie, what everyone waits for, who cannot and why."""

from __future__ import annotations

from collections.abc import Sequence

from stowplan.machines.machine import Machine
from stowplan.models.model import Model
from stowplan.planner.comparison import Compared, Comparison
from stowplan.report import words
from stowplan.report.markup import Markup, picture, table, tag
from stowplan.report.shell import section, whole_page

_WIDTH, _LEFT, _RIGHT, _ROW = 1000.0, 210.0, 150.0, 30.0
_GIB = 2.0**30
_FILL = {True: "#0072b2", False: "#e69f00"}
_IDEAL = "#009e73"
_BY = {
    "request": "By the time of a request,",
    "decode": "By the time of a decode step,",
    "ttft": "By the time to the first token,",
    "throughput": "By throughput,",
}


def comparison_page(found: Comparison, machine: Machine, model: Model) -> str:
    """One self-contained page."""
    title = f"{model.name} on {machine.name}"
    asked = found.workload
    requests = f"{asked.batch} request{'s' if asked.batch > 1 else ''} of {asked.depth + asked.prompt:,} tokens"
    sentence = (
        f"{model.quant.upper()}, {requests}, {asked.generate:,} generated. Each system has the best plan that it can "
        f"express."
    )
    heading = tag("section", tag("h1", title), tag("p", sentence), tag("p", _said(found), class_="said"))
    note = "Tokens per second in decode. Blue answers are the model's own, orange ones are approximate."
    sections = [
        heading,
        section("How fast", note, _bars(found)),
        section("Side by side", f"{_BY[found.objective]} best first.", _rows(found, len(machine.gpus))),
    ]
    approximate = [each for each in found.runs if not each.exact]
    if approximate:
        rows = [[each.title, each.quality] for each in approximate]
        sections.append(
            section("What approximation costs", "As their papers report it.", table(["system", "quality"], rows))
        )
    if found.refused:
        rows = [[each.title, each.reason] for each in found.refused]
        sections.append(section("Who cannot run this", "And why.", table(["system", "reason"], rows)))
    return whole_page(title, *sections)


def _said(found: Comparison) -> str:
    best = found.best_exact
    if best is None:
        return "No exact system runs this."
    text = (
        f"{_BY[found.objective]} {best.title} is the best exact system: {words.seconds(best.cost_s)}, "
        f"{words.three(best.decode_tokens_per_s)} tokens/s."
    )
    if found.ideal is not None:
        factor = found.ideal.decode_tokens_per_s / best.decode_tokens_per_s
        text += (
            f" An ideal engine that composes the exact mechanisms would reach "
            f"{words.three(found.ideal.decode_tokens_per_s)} tokens/s, {factor:.2g} times as many."
        )
    return text


def _bars(found: Comparison) -> Markup:
    """One bar per system, the ideal engine first and its reach as a line through all."""
    fastest = sorted(found.runs, key=lambda each: -each.decode_tokens_per_s)
    rows: list[tuple[Compared, str]] = [(each, _FILL[each.exact]) for each in fastest]
    if found.ideal is not None:
        rows.insert(0, (found.ideal, _IDEAL))
    most = max((each.decode_tokens_per_s for each, _ in rows), default=1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    shapes: list[str] = []
    for number, (each, fill) in enumerate(rows):
        y = 8.0 + number * _ROW
        length = each.decode_tokens_per_s * scale
        tip = (
            f"{each.title}: {words.three(each.decode_tokens_per_s)} tokens/s, first token {words.seconds(each.ttft_s)}"
        )
        label = tag("text", each.title, x=_LEFT - 10, y=y + 15, class_="end")
        value = tag("text", words.three(each.decode_tokens_per_s), x=_LEFT + length + 8, y=y + 15)
        bar = tag("rect", x=_LEFT, y=y, width=max(1.0, length), height=_ROW - 9, style=f"fill:{fill}", data_tip=tip)
        shapes += [label, bar, value]
    if found.ideal is not None:
        x = _LEFT + found.ideal.decode_tokens_per_s * scale
        style = f"stroke:{_IDEAL};stroke-dasharray:4 4"
        shapes.append(tag("line", x1=x, x2=x, y1=4.0, y2=8.0 + len(rows) * _ROW, style=style))
    return picture(_WIDTH, 16.0 + len(rows) * _ROW, "Decode speed of every system", *shapes)


def _rows(found: Comparison, gpus: int) -> Markup:
    header = ["system", "tokens/s", "first token", "request", "GPU GiB", "RAM GiB", "SSD GiB", "waits for", "its plan"]
    rows = [_row(each, gpus) for each in ([found.ideal] if found.ideal is not None else [])]
    rows += [_row(each, gpus) for each in found.runs]
    return table(header, rows, numbers=range(1, 7))


def _row(each: Compared, gpus: int) -> list[str]:
    waits = f"{words.resource(each.bottleneck, gpus)} {100 * each.shares.get(each.bottleneck, 0.0):.0f} %"
    return [
        each.title,
        words.three(each.decode_tokens_per_s),
        words.seconds(each.ttft_s),
        words.seconds(each.cost_s),
        *(_held(each, tier) for tier in ("gpu", "ram", "disk")),
        waits,
        said_settings(each),
    ]


def _held(each: Compared, tier: str) -> str:
    used = sum(use.used for name, use in each.memory.items() if name.startswith(tier))
    return words.three(used / _GIB) if used else "–"


def said_settings(each: Compared, most: int = 6) -> str:
    """What a plan chose, as ``weights.gpu 0.58``; what follows from another choice is left out."""
    shown: list[str] = []
    for path, value in each.settings.items():
        if path in _FOLLOWS and path.replace(".ram", ".gpu") in each.settings:
            continue
        shown.append(f"{path} {value:.2g}" if isinstance(value, float) else f"{path} {value}")
    return ", ".join(_first(shown, most))


_FOLLOWS = ("weights.ram", "cache.ram", "experts.ram")


def _first(items: Sequence[str], most: int) -> Sequence[str]:
    return items if len(items) <= most else [*items[:most], "..."]
