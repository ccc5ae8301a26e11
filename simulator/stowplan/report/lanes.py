"""A simulated step as lanes of time, merged to what can be seen: the whole step, and one typical layer of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stowplan.engine.run import Run
from stowplan.report import words
from stowplan.report.families import LABEL, Family, family_of_task, layer_of, short_name, unit_word
from stowplan.report.markup import Markup, join, picture, tag

_WIDTH, _LEFT, _RIGHT = 1080.0, 132.0, 66.0
_LANE, _GAP, _TOP = 34.0, 8.0, 6.0
_LETTER = 7.1
_HAIR = 0.5
"""Pixels below which a task cannot be told from its neighbours."""
_ALIKE = 0.02


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of a lane: one task, or several too short to tell apart.

    Attributes:
        start, end: seconds from the start of the step.
        family: what most of it is.
        title: what people read when they point at it.
        label: what is written on it where it fits.
    """

    start: float
    end: float
    family: Family
    title: str
    label: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One stream: its name in words, its bars in order, and the seconds that it is in use."""

    stream: str
    title: str
    bars: tuple[Bar, ...]
    busy: float


@dataclass(frozen=True, slots=True)
class Typical:
    """The layer that stands for most of the step.

    Attributes:
        layer: its index.
        start, end: seconds from the start of the step.
        alike: number of layers that take as long within 2 %, itself included.
    """

    layer: int
    start: float
    end: float
    alike: int


def typical_layer(run: Run) -> Typical | None:
    """The layer in the middle of the step's time when layers are sorted by length; None for a step without layers."""
    spans: dict[int, tuple[float, float]] = {}
    for index, task in enumerate(run.graph.tasks):
        layer = layer_of(task.name)
        if layer is not None and run.end[index] > run.start[index]:
            start, end = spans.get(layer, (math.inf, 0.0))
            spans[layer] = (min(start, run.start[index]), max(end, run.end[index]))
    if len(spans) < 2:
        return None
    by_length = sorted(spans, key=lambda layer: (spans[layer][1] - spans[layer][0], layer))
    total = sum(end - start for start, end in spans.values())
    passed = 0.0
    chosen = by_length[-1]
    for layer in by_length:
        passed += spans[layer][1] - spans[layer][0]
        if passed >= total / 2:
            chosen = layer
            break
    start, end = spans[chosen]
    length = end - start
    alike = [layer for layer, (s, e) in spans.items() if abs(e - s - length) <= _ALIKE * length]
    chosen = min(alike, key=lambda layer: (abs(layer - sum(alike) / len(alike)), layer))
    return Typical(chosen, *spans[chosen], len(alike))


def lanes_of(run: Run, gpus: int, window: tuple[float, float] | None = None, width: float = 880.0) -> list[Lane]:
    """Lanes of a run, or of a window of it, merged so that every bar can be seen at `width` pixels."""
    start, end = window or (0.0, run.makespan)
    per_second = width / (end - start) if end > start else 0.0
    tasks: dict[str, list[int]] = {}
    for index, task in enumerate(run.graph.tasks):
        if run.end[index] > max(run.start[index], start) and run.start[index] < end:
            tasks.setdefault(task.stream or "", []).append(index)
    found = []
    for stream in sorted(tasks, key=_lane_order):
        mine = sorted(tasks[stream], key=lambda index: (run.start[index], index))
        bars = tuple(_merged(run, mine, (start, end), per_second, close=window is not None))
        busy = sum(min(run.end[i], end) - max(run.start[i], start) for i in mine)
        found.append(Lane(stream, _lane_title(stream, gpus), bars, busy))
    return found


def _lane_order(stream: str) -> tuple[int, str]:
    head = stream.split(" ", maxsplit=1)[0]
    if head.startswith("gpu"):
        return 0, stream
    return ({"h2d": 1, "d2h": 1, "copy": 1, "host": 2, "disk": 3}.get(head, 4), stream)


def _lane_title(stream: str, gpus: int) -> str:
    head, _, rest = stream.partition(" ")
    if head.startswith("gpu"):
        name = words.place(head, gpus)
        return f"{name} copies" if rest == "copy" else name
    if head == "h2d":
        return f"{rest} to GPU"
    known = {"host": "CPU", "disk": "SSD", "d2h": "from GPU", "copy": "copies", "": "other"}
    return " ".join(part for part in (known.get(head, head), rest) if part)


class _Stretch:
    """Tasks that are being merged."""

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end
        self.seconds: dict[Family, float] = {}
        self.names: dict[str, None] = {}
        self.count = 0

    def add(self, family: Family, name: str, start: float, end: float) -> None:
        self.end = max(self.end, end)
        self.seconds[family] = self.seconds.get(family, 0.0) + end - start
        self.names[name] = None
        self.count += 1

    @property
    def family(self) -> Family:
        """What most of the stretch is."""
        return max(self.seconds, key=lambda family: (self.seconds[family], family.value))

    def bar(self, layers: set[int]) -> Bar:
        length = words.seconds(self.end - self.start)
        if self.count == 1:
            name = next(iter(self.names))
            where = f", layer {min(layers)}" if layers else ""
            return Bar(self.start, self.end, self.family, f"{name}{where}\n{length}", name)
        where = f", layers {words.ranges(layers)}" if len(layers) > 1 else ""
        parts = sorted(self.seconds.items(), key=lambda item: (-item[1], item[0].value))
        shown = "\n".join(f"{LABEL[family]}: {words.seconds(amount)}" for family, amount in parts)
        label = LABEL[self.family] if len(self.names) > 1 else next(iter(self.names))
        return Bar(self.start, self.end, self.family, f"{self.count} tasks{where}, {length}\n{shown}", label)


def _merged(
    run: Run, tasks: Iterable[int], window: tuple[float, float], per_second: float, *, close: bool
) -> Iterator[Bar]:
    """Bars of a lane; a task joins the stretch before it when neither their border nor one of them can be seen.

    From afar, neighbours of one family are one bar too; `close` up they stay apart.
    """
    current: _Stretch | None = None
    layers: set[int] = set()
    for index in tasks:
        task = run.graph.tasks[index]
        start, end = max(run.start[index], window[0]), min(run.end[index], window[1])
        family = family_of_task(task.name, task.kind)
        if current is not None:
            near = (start - current.end) * per_second < _HAIR
            thin = min(end - start, current.end - current.start) * per_second < _HAIR
            if not near or (not thin and (family is not current.family or close)):
                yield current.bar(layers)
                current = None
        if current is None:
            current, layers = _Stretch(start, end), set()
        current.add(family, short_name(task.name), start, end)
        layer = layer_of(task.name)
        if layer is not None:
            layers.add(layer)
    if current is not None:
        yield current.bar(layers)


def step_lanes(run: Run, gpus: int, *, of: str) -> Markup:
    """The whole step, and below it a typical layer; `of` names the step for those who do not see it."""
    if not run.makespan:
        return Markup("")
    typical = typical_layer(run)
    drawn = [_drawn(lanes_of(run, gpus), (0.0, run.makespan), of, typical)]
    if typical is not None:
        length, whole = words.seconds(typical.end - typical.start), words.seconds(run.makespan)
        unit = unit_word(task.name for task in run.graph.tasks)
        like = f"; {words.count(typical.alike, unit)} of {_layers(run)} take as long" if typical.alike > 1 else ""
        drawn.append(tag("h3", f"{unit.capitalize()} {typical.layer} close up: {length} of the {whole}{like}"))
        window = (typical.start, typical.end)
        drawn.append(_drawn(lanes_of(run, gpus, window), window, f"{unit} {typical.layer} of {of}", None))
    return join(drawn)


def _layers(run: Run) -> int:
    return len({layer for layer in (layer_of(task.name) for task in run.graph.tasks) if layer is not None})


def _drawn(lanes: list[Lane], window: tuple[float, float], of: str, typical: Typical | None) -> Markup:
    start, end = window
    inner = _WIDTH - _LEFT - _RIGHT
    per_second = inner / (end - start)
    bottom = _TOP + len(lanes) * (_LANE + _GAP)
    shapes = list(_ticks(end - start, per_second, bottom))
    for row, lane in enumerate(lanes):
        y = _TOP + row * (_LANE + _GAP)
        shapes.append(tag("rect", x=_LEFT, y=y, width=inner, height=_LANE, class_="row"))
        shapes.append(tag("text", lane.title, x=_LEFT - 10, y=y + _LANE / 2 + 4.5, class_="end strong"))
        share = f"{100 * lane.busy / (end - start):.0f} %"
        busy = tag("text", share, x=_WIDTH - 2, y=y + _LANE / 2 + 4.5, class_="end faint")
        shapes.append(busy)
        close = typical is None
        for bar in lane.bars:
            shapes += _bar(bar, y, start, per_second, seams=close)
        if close:
            shapes += _labels_beside(lane, y, start, per_second)
    shapes.append(tag("text", "in use", x=_WIDTH - 2, y=bottom + 16, class_="end faint small"))
    if typical is not None:
        left, right = (_LEFT + (t - start) * per_second for t in (typical.start, typical.end))
        shapes.append(tag("path", d=f"M{left:.1f} {bottom - 4:.1f} v6 H{right:.1f} v-6", class_="lead"))
    label = "; ".join(f"{lane.title} in use {100 * lane.busy / (end - start):.0f} %" for lane in lanes)
    return picture(_WIDTH, bottom + 24, f"Time in {of}: {label}", *shapes)


def _bar(bar: Bar, y: float, start: float, per_second: float, *, seams: bool) -> Iterator[Markup]:
    x, width = _LEFT + (bar.start - start) * per_second, (bar.end - bar.start) * per_second
    yield tag(
        "rect",
        x=x,
        y=y,
        width=max(width, 0.5),
        height=_LANE,
        class_=f"{bar.family} seam" if seams and width > 3 else str(bar.family),
        data_tip=bar.title,
    )
    text = _written(bar, width)
    if text:
        yield tag("text", text, x=x + 5, y=y + _LANE / 2 + 4.5, class_=f"on-{bar.family}", pointer_events="none")


def _written(bar: Bar, width: float) -> str:
    """What fits on a bar: its label, its family, or nothing."""
    return next((text for text in (bar.label, _name(bar)) if len(text) * _LETTER + 10 <= width), "")


@dataclass(slots=True)
class _Cluster:
    """Neighbours in a lane: from where to where in pixels, and the names that are still to be written beside them."""

    left: float
    right: float
    names: dict[str, None]


def _labels_beside(lane: Lane, y: float, start: float, per_second: float) -> Iterator[Markup]:
    """Names of neighbours too short to be written on, once for all of them, in the gap behind or before them."""
    clusters = _clusters(lane, start, per_second)
    ends = [cluster.left for cluster in clusters[1:]] + [_WIDTH - _RIGHT]
    taken = _LEFT
    for cluster, end in zip(clusters, ends, strict=True):
        text = ", ".join(cluster.names)
        width = len(text) * _LETTER + 8
        behind = width <= end - cluster.right
        if text and (behind or width <= cluster.left - taken):
            x = cluster.right + 5 if behind else cluster.left - 5
            style = None if behind else "end"
            yield tag("text", text, x=x, y=y + _LANE / 2 + 4.5, class_=style, pointer_events="none")
        taken = cluster.right + width if text and behind else cluster.right


def _name(bar: Bar) -> str:
    return bar.label if bar.family is Family.OTHER else LABEL[bar.family]


def _clusters(lane: Lane, start: float, per_second: float) -> list[_Cluster]:
    found: list[_Cluster] = []
    for bar in lane.bars:
        left, right = (_LEFT + (moment - start) * per_second for moment in (bar.start, bar.end))
        names = {} if _written(bar, right - left) else {_name(bar): None}
        if names and found and found[-1].names and left - found[-1].right < 2 * _LETTER:
            found[-1].right = right
            found[-1].names |= names
        else:
            found.append(_Cluster(left, right, names))
    return found


def _ticks(length: float, per_second: float, bottom: float) -> Iterator[Markup]:
    """Lines at round times."""
    rough = length / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    scale, unit = words.seconds_unit(length)
    for n in range(int(length / step) + 1):
        x = _LEFT + n * step * per_second
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="rule")
        text = f"{n * step * scale:g}" if n else f"0 {unit}"
        yield tag("text", text, x=x, y=bottom + 16, class_="middle faint small")
