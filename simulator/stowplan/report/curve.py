"""Throughput and time per token against the batch, for the placement as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.plan import Plan
from stowplan.report import words
from stowplan.report.markup import Markup, join, table, tag
from stowplan.report.plots import axis, chart
from stowplan.systems.base import Setup, System

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_BETTER = 1.002
_BLUE, _ORANGE = "#0072b2", "#e69f00"


@dataclass(frozen=True, slots=True)
class Point:
    """One batch size: tokens per second of the whole batch, and seconds per token of each request."""

    batch: int
    tokens_per_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Batch sizes that fit, and the smallest one tried that does not (None where all do)."""

    points: tuple[Point, ...]
    too_large: int | None

    def beaten_by(self, others: Iterable[tuple[int, float, float, float]]) -> bool:
        """Whether another placement is faster somewhere, or fits where this one does not."""
        mine = {point.batch: point.tokens_per_s for point in self.points}
        return any(rate > _BETTER * mine.get(batch, 0.0) for batch, rate, _, _ in others)


def curve_of(system: System, setup: Setup, plan: Plan) -> Curve:
    """Decode of a placement at every batch size up to 64, and at the plan's own."""
    points: list[Point] = []
    for batch in sorted({*_BATCHES, plan.workload.batch}):
        workload = plan.workload.model_copy(update={"batch": batch})
        try:
            evaluation = system.evaluate(setup, plan.model_copy(update={"workload": workload}))
        except DoesNotFit:
            return Curve(tuple(points), batch)
        except NotExpressible:  # a block schedule has its batch in its settings
            continue
        points.append(Point(batch, batch / evaluation.decode_s, evaluation.decode_s))
    return Curve(tuple(points), None)


def batch_charts(curve: Curve, chosen: int, planned: Iterable[tuple[int, float, float, float]]) -> Markup:
    """Two charts over the batch, and the numbers.

    Args:
        curve: this placement.
        chosen: the plan's batch.
        planned: (batch, tokens/s, s per token, s to the first token) of the best placement for each batch.
    """
    best = [Point(batch, rate, step) for batch, rate, step, _ in planned]
    best = best if len(best) > 1 else []
    rates = _panel("throughput", "tok/s, all requests", curve, best, chosen, scale=1.0, rate=True)
    waits = _panel("latency", "ms per token, each request", curve, best, chosen, scale=1e3, rate=False)
    return join([tag("div", rates, waits, class_="pair"), _numbers(curve, best, chosen)])


def _panel(
    name: str, title: str, curve: Curve, best: Sequence[Point], chosen: int, *, scale: float, rate: bool
) -> Markup:
    def value(point: Point) -> float:
        return scale * (point.tokens_per_s if rate else point.tpot_s)

    unit = "tok/s" if rate else "ms per token"
    traces = []
    if best:
        traces.append(_line(best, [value(p) for p in best], unit, "best placement for each batch", dashed=True))
    traces.append(_line(curve.points, [value(p) for p in curve.points], unit, "this placement", dashed=False))
    notes = []
    for point in curve.points:
        if point.batch == chosen:
            y = value(point)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [chosen],
                    "y": [y],
                    "hoverinfo": "skip",
                    "marker": {"size": 15, "color": _ORANGE, "line": {"width": 1, "color": "#555"}},
                }
            )
            left = chosen > curve.points[-1].batch / 2 and len(curve.points) > 1
            notes.append(
                {
                    "x": math.log10(chosen),
                    "y": y,
                    "text": f"<b>chosen: {words.three(y)} {unit}</b>",
                    "xanchor": "right" if left else "left",
                    "xshift": -14 if left else 14,
                    "yanchor": "middle" if left else "top",
                    "showarrow": False,
                }
            )
    every = sorted({point.batch for point in (*curve.points, *best)})
    layout: dict[str, Any] = {
        "xaxis": axis("requests at a time", type="log", tickvals=every, ticktext=[str(batch) for batch in every]),
        "yaxis": axis(title, rangemode="tozero"),
        "annotations": notes,
        "hovermode": "closest",
    }
    return tag("div", chart(name, traces, layout, f"{title} against the batch"))


def _line(points: Sequence[Point], values: Sequence[float], unit: str, what: str, *, dashed: bool) -> dict[str, Any]:
    hover = [f"batch {p.batch}: {words.three(v)} {unit}<br>{what}" for p, v in zip(points, values, strict=True)]
    style: dict[str, Any] = (
        {"color": "#7d8791", "width": 1.5, "dash": "dash"} if dashed else {"color": _BLUE, "width": 2}
    )
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point.batch for point in points],
        "y": list(values),
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "line": style,
        "marker": {"size": 6},
    }


def _numbers(curve: Curve, best: Sequence[Point], chosen: int) -> Markup:
    by_batch = {point.batch: point for point in best}
    rows = []
    for point in curve.points:
        other = by_batch.get(point.batch)
        rows.append(
            [
                f"{point.batch}{' (chosen)' if point.batch == chosen else ''}",
                words.three(point.tokens_per_s),
                words.seconds(point.tpot_s),
                *([words.three(other.tokens_per_s) if other else "–"] if best else []),
            ]
        )
    header = ["requests", "tok/s", "per token", *(["tok/s, best placement for this batch"] if best else [])]
    return tag("details", tag("summary", "The numbers"), table(header, rows, numbers=range(len(header))))
