"""What the answer rests on: figures with their provenance, other placements, and how the plan was found."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stowplan.plan import Rest, Solver
from stowplan.planner.result import Alternative
from stowplan.report import words
from stowplan.report.markup import Markup, join, table, tag
from stowplan.units import format_rate, format_seconds

_KINDS = {
    "measured": "on such parts",
    "fitted": "to published measurements",
    "datasheet": "by the maker",
    "assumed": "until somebody measures",
}
_RATES = (".hbm", ".dram", ".pinned", ".pageable", ".read", ".write", ".faults", "_rate")
_TIMES = ("latency", "_gap", ".step", ".sync", ".tensor_copy", ".boundary")
_MOST_ALTERNATIVES = 8
_MOST_FIGURES = 10


def quantity(name: str, value: float) -> str:
    """A figure with its unit, by what its name says it is."""
    last = name.rsplit(".", 1)[-1]
    if name.endswith(_RATES) or name == "peer":
        return format_rate(value)
    if name.endswith(_TIMES):
        return format_seconds(value).replace("us", "µs")
    if ".peak." in name:
        return format_rate(value, "FLOP/s")
    if last == "clock":
        return format_rate(value, "Hz")
    if last == "unit_clock":
        return f"{format_rate(value, ' cycles/s')} over all units"
    if last == "power":
        return f"{value:.0f} W"
    if last.endswith("_energy"):
        return f"{value * 1e12:.3g} pJ/FLOP"
    if last.endswith("_share"):
        return f"{100 * value:.3g} %"
    if last.endswith("per_unit_clock"):
        return f"{value:.4g} {'FLOP' if _counts_flops(last) else 'B'} per unit and cycle"
    if ".cpu." in name and (".gemv." in name or ".gemm." in name or last in {"stream", "attention"}):
        unit = "B" if last == "stream" else "weights" if ".gemv." in name else "FLOP"
        return f"{value:.3g} {unit} per core and cycle"
    return f"{value:.4g}"


def _counts_flops(name: str) -> bool:
    return name.startswith("gemm") or name == "attention_per_unit_clock"


def figures_table(figures: Sequence[Rest]) -> Markup:
    """Figures, those that matter most first; the kind of source by word and by tint."""
    counts = {kind: sum(1 for figure in figures if figure.kind == kind) for kind in _KINDS}
    said = [
        join([tag("span", f"{count} {kind}", class_=f"kind {kind}"), f" {_KINDS[kind]}"])
        for kind, count in counts.items()
        if count
    ]
    rows = [
        [
            join([tag("code", figure.name), tag("div", figure.source, class_="note")]),
            quantity(figure.name, figure.value),
            tag("span", figure.kind, class_=f"kind {figure.kind if figure.kind in _KINDS else 'assumed'}"),
            f"± {100 * figure.sd:.0f} %",
            f"{figure.elasticity:.2f} %" if figure.elasticity >= 0.005 else "–",
        ]
        for figure in figures
    ]
    header = ["figure", "value", "source", "spread", "1 % worse costs decode"]
    summary = tag("p", *_separated(said))
    shown = [summary, table(header, rows[:_MOST_FIGURES], numbers=(1, 3, 4))]
    if len(rows) > _MOST_FIGURES:
        more = words.count(len(rows) - _MOST_FIGURES, "figure")
        rest = table(header, rows[_MOST_FIGURES:], numbers=(1, 3, 4))
        shown.append(tag("details", tag("summary", f"{more} that matter less"), rest))
    return join(shown)


def _separated(parts: Sequence[Markup]) -> list[str]:
    return [piece for n, part in enumerate(parts) for piece in ((part,) if n == 0 else (", ", part))]


def alternatives_table(alternatives: Sequence[Alternative], cost: float) -> Markup:
    """Other placements against the winner's cost; the engine's own default is marked."""
    best = list(alternatives[:_MOST_ALTERNATIVES])
    best += [each for each in alternatives[_MOST_ALTERNATIVES:] if each.default]
    rows = [
        [
            join([each.title, tag("b", "  (without a plan)")]) if each.default else each.title,
            f"{words.three(each.decode_tokens_per_s)} tok/s",
            words.seconds(each.ttft_s) if each.ttft_s else "–",
            f"{each.cost / cost:.2f} x" if cost else "–",
        ]
        for each in best
    ]
    return table(["placement", "decode", "first token", "cost against this plan"], rows, numbers=(1, 2, 3))


def proof(solver: Solver, system: str, cost: float) -> str:
    """How the placement was found and how far from the best possible it can be; `cost` is the plan's own."""
    name = {"highs": "HiGHS", "cbc": "CBC"}.get(solver.name, solver.name)
    many = words.count(solver.programmes, "integer programme")
    gap = max(solver.gap, 1.0 - solver.bound / cost if cost else 0.0)
    within = max(0.1, math.ceil(1000 * gap - 1e-6) / 10)
    found = f"{many} for what {system} can place, solved by {name}"
    return f"{found}: the plan is within {within:.1f} % of the best, and that is proven."
