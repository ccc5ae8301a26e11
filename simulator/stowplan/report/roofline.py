"""The roofline: what each group of operators reaches, under what its device could reach at most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stowplan.report import words
from stowplan.report.families import COLOUR, Family
from stowplan.report.markup import Markup, join, table, tag
from stowplan.report.operators import Group, Roof
from stowplan.report.plots import axis, chart, line
from stowplan.units import format_bytes, format_rate

_CANVAS = (1000.0, 420.0)
"""Pixels of the chart on a laptop, for which labels are kept apart."""
_LETTER = 6.9
_SMALL_SHARE = 0.002
"""Groups that take less of their phase are in the table only."""
_ALONG = (0.06, 0.2, 0.35, 0.5, 0.65, 0.8)

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _View:
    """Ranges of both axes as powers of ten."""

    x: tuple[float, float]
    y: tuple[float, float]

    @staticmethod
    def of(groups: Sequence[Group], roofs: Sequence[Roof]) -> _View:
        xs = [group.intensity for group in groups] + [roof.peak / roof.bandwidth for roof in roofs]
        ys = [group.rate for group in groups]
        top = max([roof.peak for roof in roofs] + ys)
        x = (math.log10(min(xs)) - 0.35, math.log10(max(xs)) + 0.5)
        return _View(x, (math.log10(min(ys)) - 0.5, math.log10(top) + 0.5))

    def pixels(self, x: float, y: float) -> tuple[float, float]:
        """Place on the canvas of a point given by powers of ten."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        return _CANVAS[0] * across, _CANVAS[1] * (self.y[1] - y) / (self.y[1] - self.y[0])

    @property
    def slope(self) -> float:
        """Pixels up per pixel to the right of a line of constant bytes/s."""
        return (_CANVAS[1] / (self.y[1] - self.y[0])) / (_CANVAS[0] / (self.x[1] - self.x[0]))


def roofline(groups: Sequence[Group], roofs: Sequence[Roof], link: tuple[str, float] | None, gpus: int) -> Markup:
    """The chart and its numbers.

    Args:
        groups: operators of the decode step and of the first chunk of the prompt.
        roofs: the devices that they ran on.
        link: words and bytes/s of the link that weights are copied over, None where none are.
        gpus: number of GPUs of the machine.
    """
    totals = {phase: sum(g.seconds for g in groups if g.phase == phase) for phase in ("decode", "prefill")}
    shown = [group for group in groups if group.seconds >= _SMALL_SHARE * totals[group.phase]]
    view = _View.of(shown, roofs)
    boxes = [_dot_box(group, totals, view) for group in shown]
    taken = list(boxes)
    traces, notes = [_roof_line(roof, view) for roof in roofs], list[dict[str, Any]]()
    for roof in roofs:
        notes.append(_peak_note(roof, view, gpus, taken))
    slanted = [(roof.bandwidth, f"{_memory(roof.device, gpus)} {format_rate(roof.bandwidth)}") for roof in roofs]
    if link is not None:
        ends = [10.0**end for end in view.x]
        style = {"color": COLOUR[Family.COPY], "dash": "dot", "width": 1.5}
        traces.append(line(ends, [link[1] * x for x in ends], line=style))
        slanted.append((link[1], f"{link[0]} {format_rate(link[1])}"))
    for group, box in zip(shown, boxes, strict=True):
        traces.append(_dot(group, _label(group, shown, gpus), totals, box, taken, gpus))
    notes += [_slanted_note(bandwidth, text, view, taken) for bandwidth, text in slanted]  # they have room to give way
    layout = {
        "xaxis": axis("FLOPs per byte moved", type="log", range=list(view.x), **_powers(view.x, "")),
        "yaxis": axis("FLOP/s reached", type="log", range=list(view.y), **_powers(view.y, "FLOP/s")),
        "annotations": notes,
        "hovermode": "closest",
    }
    drawn = tag("div", chart("roofline", traces, layout, "Roofline of the operators"), class_="scroll")
    return join([drawn, _numbers(groups, totals, gpus)])


def _powers(ends: tuple[float, float], unit: str) -> dict[str, Any]:
    """Ticks at powers of ten, written out."""
    powers = range(math.ceil(ends[0]), math.floor(ends[1]) + 1)
    texts = [
        format_rate(10.0**n, unit).replace(".00", "").replace(".0", "") if unit else f"{10.0**n:,g}" for n in powers
    ]
    return {"tickvals": [10.0**n for n in powers], "ticktext": texts}


def _device(device: str, gpus: int) -> str:
    return "CPU" if device == "host" else words.place(device, gpus)


def _memory(device: str, gpus: int) -> str:
    return "RAM" if device == "host" else f"{words.place(device, gpus)} memory"


def _roof_line(roof: Roof, view: _View) -> dict[str, Any]:
    knee = roof.peak / roof.bandwidth
    left, right = (10.0**end for end in view.x)
    xs = [left, knee, right] if left < knee < right else [left, right]
    return line(xs, [min(roof.peak, roof.bandwidth * x) for x in xs])


def _peak_note(roof: Roof, view: _View, gpus: int, taken: list[_Box]) -> dict[str, Any]:
    """What the flat part of a roof is, at its right end."""
    text = f"{_device(roof.device, gpus)}: {roof.peak_title} {format_rate(roof.peak, 'FLOP/s')}"
    right, y = view.pixels(view.x[1], math.log10(roof.peak))
    taken.append((right - len(text) * _LETTER, y - 19, right, y - 1))
    place = {"x": view.x[1], "y": math.log10(roof.peak), "xanchor": "right", "yanchor": "bottom"}
    return place | {"text": escape(text), "showarrow": False}


def _slanted_note(bandwidth: float, text: str, view: _View, taken: list[_Box]) -> dict[str, Any]:
    """What a slanted roof is, along it, where it meets neither a dot nor another note."""
    base = math.log10(bandwidth)
    low, high = max(view.x[0], view.y[0] - base), min(view.x[1], view.y[1] - base)
    angle = math.atan(view.slope)
    width = len(text) * _LETTER

    def pieces(at: float) -> list[_Box]:
        x = low + at * (high - low)
        left, bottom = view.pixels(x, x + base)
        starts = [width * n / 8 for n in range(8)]
        return [
            (
                left + s * math.cos(angle),
                bottom - s * math.sin(angle) - 24,
                left + (s + width / 8) * math.cos(angle),
                bottom - s * math.sin(angle) - 1,
            )
            for s in starts
        ]

    def clear(at: float) -> bool:
        return pieces(at)[-1][2] <= _CANVAS[0] and not any(_overlap(p, t) for p in pieces(at) for t in taken)

    at = next((at for at in _ALONG if clear(at)), _ALONG[0])
    taken += pieces(at)
    middle = low + at * (high - low) + math.cos(angle) * width / 2 * (view.x[1] - view.x[0]) / _CANVAS[0]
    return {
        "x": middle,
        "y": middle + base,
        "text": escape(text),
        "textangle": -math.degrees(angle),
        "xanchor": "center",
        "yanchor": "middle",
        "xshift": -11 * math.sin(angle),
        "yshift": 11 * math.cos(angle),
        "showarrow": False,
    }


def _size(group: Group, totals: Mapping[str, float]) -> float:
    return 8.0 + 26.0 * math.sqrt(group.seconds / totals[group.phase])


def _dot_box(group: Group, totals: Mapping[str, float], view: _View) -> _Box:
    x, y = view.pixels(math.log10(group.intensity), math.log10(group.rate))
    radius = _size(group, totals) / 2
    return x - radius, y - radius, x + radius, y + radius


def _label(group: Group, shown: Sequence[Group], gpus: int) -> str:
    """Title of a group; with its device where another device has the same, and its phase where that is the prompt."""
    alike = [other for other in shown if (other.title, other.phase) == (group.title, group.phase)]
    title = f"{group.title}, {_device(group.device, gpus)}" if len(alike) > 1 else group.title
    return title if group.phase == "decode" else f"{title} (prompt)"


def _dot(
    group: Group, label: str, totals: Mapping[str, float], box: _Box, taken: list[_Box], gpus: int
) -> dict[str, Any]:
    share = group.seconds / totals[group.phase]
    phase = "decode" if group.phase == "decode" else "prompt"
    place = _label_place(box, len(label) * _LETTER, taken)
    hover = (
        f"<b>{escape(group.title)}</b>, {phase}, {_device(group.device, gpus)}<br>"
        f"{escape(', '.join(group.members))}<br>{words.three(group.intensity)} FLOP/byte, "
        f"{format_rate(group.rate, 'FLOP/s')}<br>{words.seconds(group.seconds)}, {100 * share:.0f} % of the step"
    )
    return {
        "type": "scatter",
        "mode": "markers+text" if place else "markers",
        "x": [group.intensity],
        "y": [group.rate],
        "text": [label],
        "textposition": place or "top center",
        "hovertemplate": hover + "<extra></extra>",
        "cliponaxis": False,
        "marker": {
            "size": _size(group, totals),
            "color": COLOUR[group.family],
            "symbol": "circle" if phase == "decode" else "diamond",
            "line": {"width": 1, "color": "#555"},
        },
    }


def _label_place(dot: _Box, width: float, taken: list[_Box]) -> str | None:
    """Where a dot's label meets no other label, note or dot on a laptop; None where it always does."""
    for name, box in _label_boxes(dot, width):
        inside = box[0] >= -20 and box[2] <= _CANVAS[0] + 10
        if inside and not any(_overlap(box, other) for other in taken if other != dot):
            taken.append(box)
            return name
    return None


def _label_boxes(dot: _Box, width: float) -> Iterator[tuple[str, _Box]]:
    left, top, right, bottom = dot
    middle = ((left + right) / 2, (top + bottom) / 2)
    yield "top center", (middle[0] - width / 2, top - 18, middle[0] + width / 2, top - 1)
    yield "bottom center", (middle[0] - width / 2, bottom + 1, middle[0] + width / 2, bottom + 18)
    yield "middle right", (right + 1, middle[1] - 8, right + 4 + width, middle[1] + 8)
    yield "middle left", (left - 4 - width, middle[1] - 8, left - 1, middle[1] + 8)


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _numbers(groups: Iterable[Group], totals: Mapping[str, float], gpus: int) -> Markup:
    rows = [
        [
            group.title,
            _device(group.device, gpus),
            "decode" if group.phase == "decode" else "prompt",
            words.three(group.intensity),
            format_rate(group.rate, "FLOP/s"),
            format_bytes(group.bytes),
            words.seconds(group.seconds),
            f"{100 * group.seconds / totals[group.phase]:.1f} %",
        ]
        for group in groups
    ]
    header = ["operators", "on", "in", "FLOP/byte", "reached", "moved", "time", "of the step"]
    return tag("details", tag("summary", "The numbers"), table(header, rows, numbers=(3, 4, 5, 6, 7)))
