"""Where every byte lies: each tier is a hold, drawn to scale, and what it holds are boxes in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stowplan.models.model import Layer, Role
from stowplan.ops import part_of
from stowplan.plan import MemoryUse, Place, Plan, Prediction, expand
from stowplan.report import words
from stowplan.report.families import LABEL, Family, family_of_part
from stowplan.report.markup import Markup, join, picture, tag
from stowplan.systems.base import Setup
from stowplan.units import format_bytes

_WIDTH, _HEIGHT, _EDGE = 1080.0, 78.0, 8.0
_LETTER = 7.1
_LINE = 17.0
_NOTCH = 11.0
_NEARLY_EMPTY = 0.22
"""RAM or a disk of which less is used is drawn torn off, so that its boxes can be seen."""
_SHOWN_WHEN_TORN = 0.5
_ORDER = tuple(Family)
_PART_FAMILY = {
    "system": (Family.SYSTEM, "system"),
    "runtime": (Family.SYSTEM, "runtime"),
    "buffers": (Family.BUFFERS, "buffers"),
    "hidden states": (Family.BUFFERS, "hidden states"),
    "cache": (Family.CACHE, "KV cache"),
    "gpu": (Family.OTHER, "held for the GPU"),
}
_PART_WORDS = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
_TABLES = frozenset({Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING})


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of layers within a box: what people read when they point at it, and its bytes."""

    title: str
    bytes: float


@dataclass(frozen=True, slots=True)
class Box:
    """What belongs together on one tier.

    Attributes:
        family: decides the colour and the order.
        title: on the box.
        detail: which layers, empty for what has none.
        pieces: runs of layers, in order; their bytes add up to the box's.
    """

    family: Family
    title: str
    detail: str
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> float:
        """Size of the box."""
        return sum(piece.bytes for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Hold:
    """One tier with its boxes; they add up to what the tier's use says."""

    tier: str
    title: str
    use: MemoryUse
    boxes: tuple[Box, ...]


def holds(setup: Setup, plan: Plan, prediction: Prediction) -> list[Hold]:
    """Every tier that is in use, GPUs first."""
    layers = expand(plan.layers, len(setup.model.layers), where="plan")
    found = []
    for tier, use in prediction.memory_bytes.items():
        if use.used > 0:
            boxes = [*_fixed(use, plan, layers, tier), *_weights(setup, plan, tier, use)]
            boxes.sort(key=lambda box: _ORDER.index(box.family))
            found.append(Hold(tier, _title(setup, tier), use, tuple(boxes)))
    return found


def _title(setup: Setup, tier: str) -> str:
    machine = setup.machine
    name = words.place(tier, len(machine.gpus))
    if tier.startswith("gpu"):
        gpu = machine.gpus[int(tier[3:])]
        return f"{name}’s share of RAM: {gpu.name}" if gpu.unified else f"{name}: {gpu.name}"
    if tier == "ram":
        return f"{name}: {machine.memory.name}, {words.count(machine.memory.channels, 'channel')}"
    return f"{name}: {machine.disks[0].name}" if machine.disks else name


def _fixed(use: MemoryUse, plan: Plan, layers: Sequence[Mapping[str, Place]], tier: str) -> Iterator[Box]:
    """Boxes of everything but the weights, as the tier's use states them."""
    for name, size in use.parts.items():
        if name == "weights":
            continue
        family, title = _PART_FAMILY.get(name, (Family.OTHER, name))
        detail = ""
        if name == "cache":
            kinds = dict.fromkeys(str(plan.settings[key]) for key in ("cache_k", "cache_v") if key in plan.settings)
            detail = ", ".join([*kinds, f"{plan.workload.capacity:,} tokens"])
            if plan.workload.batch > 1:
                detail += f" x {plan.workload.batch}"
            held = [index for index, parts in enumerate(layers) if _share(parts.get("kv"), tier)]
            where = f"{title} of layers {words.ranges(held)}" if held else title
        else:
            where = title
        yield Box(family, title, detail, (Piece(where, size),))


def _weights(setup: Setup, plan: Plan, tier: str, use: MemoryUse) -> Iterator[Box]:
    """Boxes of the weights on a tier, a piece per run of layers.

    Sizes are the model's own; where the engine stores them otherwise (compressed), all shrink alike to what it says.
    """
    stated = use.parts.get("weights", 0.0)
    pieces: dict[Family, list[Piece]] = {}
    held: dict[Family, list[int]] = {}
    for run in plan.layers:
        sizes: dict[Family, dict[str, float]] = {}
        for layer in setup.model.layers[run.first : run.last + 1]:
            for part, size in _part_bytes(layer).items():
                share = _share(run.places.get(part, run.places.get("attention")), tier)
                if share:
                    by_part = sizes.setdefault(family_of_part(part), {})
                    by_part[part] = by_part.get(part, 0.0) + share * size
        for family, by_part in sizes.items():
            span = words.ranges(range(run.first, run.last + 1))
            noun = "layer" if run.first == run.last else "layers"
            pieces.setdefault(family, []).append(
                Piece(f"{LABEL[family]}{_matrices(by_part)}, {noun} {span}", sum(by_part.values()))
            )
            held.setdefault(family, []).extend(range(run.first, run.last + 1))
    outside = _outside(setup, plan, tier)
    if outside:
        pieces[Family.OUTPUT] = [Piece(title, size) for title, size in outside]
    total = sum(piece.bytes for mine in pieces.values() for piece in mine)
    if stated and not total:
        yield Box(Family.OTHER, "weights", "", (Piece("weights", stated),))
        return
    scale = stated / total if total else 0.0
    for family, mine in pieces.items():
        title = " and ".join(title for title, _ in outside) if family is Family.OUTPUT else LABEL[family]
        numbers = held.get(family, [])
        detail = f"{words.count(len(numbers), 'layer')}: {words.ranges(numbers)}" if numbers else ""
        yield Box(family, title, detail, tuple(Piece(piece.title, piece.bytes * scale) for piece in mine))


def _part_bytes(layer: Layer) -> dict[str, float]:
    sizes: dict[str, float] = {}
    for tensor in layer.tensors:
        part = part_of(tensor).value
        sizes[part] = sizes.get(part, 0.0) + tensor.bytes
    return sizes


def _outside(setup: Setup, plan: Plan, tier: str) -> list[tuple[str, float]]:
    """Tables and matrices outside the layers that live on a tier."""
    model = setup.model
    tables = float(sum(tensor.bytes for tensor in model.globals if tensor.role in _TABLES))
    output = float(sum(tensor.bytes for tensor in model.globals if tensor.role not in _TABLES))
    if model.tied and plan.output != plan.embedding:
        output += sum(tensor.bytes for tensor in model.globals if tensor.role is Role.TOKEN_EMBEDDING)
    pairs = (("embedding", plan.embedding, tables), ("output", plan.output, output))
    return [(title, size) for title, where, size in pairs if where == tier and size]


def _matrices(by_part: Iterable[str]) -> str:
    """Which of the three matrices of a block, where a plan tells them apart."""
    found = [word for stem, word in _PART_WORDS.items() if any(part.startswith(stem) for part in by_part)]
    return f" ({', '.join(found)})" if found and len(found) < len(_PART_WORDS) else ""


def _share(where: Place | None, tier: str) -> float:
    if where is None or isinstance(where, str):
        return float(where == tier)
    return where.get(tier, 0.0)


def stowage_plan(found: Iterable[Hold]) -> Markup:
    """The drawing of all holds."""
    return join(_drawn(hold) for hold in found)


def _drawn(hold: Hold) -> Markup:
    use = hold.use
    spilled = max(0.0, use.used - use.capacity)
    torn = not hold.tier.startswith("gpu") and use.used < _NEARLY_EMPTY * use.capacity
    whole = use.used / _SHOWN_WHEN_TORN if torn else max(use.used, use.capacity)
    per_byte = (_WIDTH - 2 * _EDGE) / whole
    top = 4.0
    shapes = [_outline(top, torn=torn)]
    labels: list[_Label] = []
    x = _EDGE
    for box in hold.boxes:
        width = box.bytes * per_byte
        shapes += _box(box, x, top, per_byte)
        label = _Label(x + width / 2, box.title, format_bytes(box.bytes))
        inside = _inside(box, x, width, top)
        if inside:
            shapes += inside
        else:
            labels.append(label)
        x += width
    if spilled:
        shapes += _spill(_EDGE + use.capacity * per_byte, x, top, spilled, labels)
    elif use.capacity - use.used > 0:
        shapes += _free(x, _WIDTH - _EDGE, top, use, labels, torn=torn)
    if not torn:
        at = _EDGE + use.capacity * per_byte
        shapes.append(tag("line", x1=at, x2=at, y1=top - 4, y2=top + _HEIGHT + 4, class_="capacity"))
    drawn, depth = _leaders(labels, top + _HEIGHT)
    height = top + _HEIGHT + 6 + depth
    free = f"{format_bytes(spilled)} more than fits" if spilled else f"{format_bytes(use.capacity - use.used)} free"
    says = f"{format_bytes(use.used)} of {format_bytes(use.capacity)}, {free}"
    head = tag("div", tag("b", hold.title), tag("span", says, class_="soft"), class_="holdhead")
    contents = ", ".join(f"{box.title} {format_bytes(box.bytes)}" for box in hold.boxes)
    return join([head, picture(_WIDTH, height, f"{hold.title}: {says}. {contents}", *shapes, *drawn)])


def _outline(top: float, *, torn: bool) -> Markup:
    """The empty hold; torn off where its end is far to the right."""
    left, right, bottom = _EDGE, _WIDTH - _EDGE, top + _HEIGHT
    if not torn:
        return tag("rect", x=left, y=top, width=right - left, height=_HEIGHT, class_="hold")
    teeth = " ".join(f"L{right - 8 * (n % 2):g} {bottom - n * _HEIGHT / 12:g}" for n in range(13))
    return tag("path", d=f"M{left:g} {top:g} L{left:g} {bottom:g} {teeth} Z", class_="hold")


def _box(box: Box, x: float, top: float, per_byte: float) -> Iterator[Markup]:
    """A box, with a notch between two runs of layers."""
    for piece in box.pieces:
        width = piece.bytes * per_byte
        yield tag(
            "rect",
            x=x,
            y=top,
            width=max(width, 0.4),
            height=_HEIGHT,
            class_=f"box {box.family}",
            data_tip=f"{piece.title}\n{format_bytes(piece.bytes)}",
        )
        first = piece is box.pieces[0]
        if width > 2 or first:
            above = 0.0 if first else _HEIGHT - _NOTCH
            yield tag("line", x1=x, x2=x, y1=top + above, y2=top + _HEIGHT, class_="seam")
        x += width


def _inside(box: Box, x: float, width: float, top: float) -> list[Markup]:
    """Lines of text in a box, empty where not even its title and size fit."""
    room = int((width - 12) / _LETTER)
    size = format_bytes(box.bytes)
    if len(box.title) <= room:
        lines = [box.title, size] if len(size) <= room else []
    elif " and " in box.title and max(map(len, box.title.split(" and "))) + 1 <= room and len(size) <= room:
        first, second = box.title.split(" and ", 1)
        lines = [f"{first},", second, size]
    else:
        return []
    if lines and box.detail and len(lines) == 2:
        lines.append(_fitting(box.detail, room))
    middle = top + _HEIGHT / 2 - (len([line for line in lines if line]) - 1) * _LINE / 2 + 4.5
    weight = "strong "
    found = []
    for n, line in enumerate(line for line in lines if line):
        style = f"{weight if line == box.title else ''}on-{box.family}"
        found.append(tag("text", line, x=x + 7, y=middle + n * _LINE, class_=style, pointer_events="none"))
    return found


def _fitting(detail: str, room: int) -> str:
    """As much of a detail as fits: all, the count before the colon, or nothing."""
    for text in (detail, detail.partition(":")[0], detail.partition(", ")[0]):
        if len(text) <= room:
            return text
    return ""


def _free(x: float, right: float, top: float, use: MemoryUse, labels: list[_Label], *, torn: bool) -> Iterator[Markup]:
    free = format_bytes(use.capacity - use.used)
    tip = f"free\n{free}"
    yield tag("rect", x=x, y=top, width=max(0.0, right - x), height=_HEIGHT, fill="transparent", data_tip=tip)
    text = f"{free} free{', drawn short' if torn else ''}"
    if len(text) * _LETTER + 14 <= right - x:
        yield tag("text", text, x=x + 7, y=top + _HEIGHT / 2 + 4.5, class_="faint", pointer_events="none")
    else:
        labels.append(_Label((x + right) / 2, "free", free))


def _spill(left: float, right: float, top: float, spilled: float, labels: list[_Label]) -> Iterator[Markup]:
    """What lies beyond the capacity: pages that are read from disk whenever they are needed."""
    tip = f"does not fit: read from SSD on demand\n{format_bytes(spilled)}"
    yield tag("rect", x=left, y=top, width=right - left, height=_HEIGHT, fill="url(#beyond)", data_tip=tip)
    labels.append(_Label((left + right) / 2, "read from SSD on demand", format_bytes(spilled)))


@dataclass(frozen=True, slots=True)
class _Label:
    """A label below the hold for a box that is too narrow for one."""

    x: float
    title: str
    size: str

    @property
    def width(self) -> float:
        return _LETTER * (len(self.title) + len(self.size) + 2) + 8


def _leaders(labels: Iterable[_Label], bottom: float) -> tuple[list[Markup], float]:
    """Labels in rows below the hold, and how deep they reach; later ones are higher, so no line crosses a text."""
    rows: list[float] = []
    shapes: list[Markup] = []
    for label in sorted(labels, key=lambda each: -each.x):
        turned = label.x + label.width > _WIDTH
        start = label.x - label.width if turned else label.x
        row = next((n for n, taken in enumerate(rows) if start + label.width + 10 <= taken), len(rows))
        if row == len(rows):
            rows.append(_WIDTH)
        rows[row:] = [min(start, label.x - 2)] * len(rows[row:])
        for n in range(row):
            rows[n] = min(rows[n], label.x - 6)
        y = bottom + 20 + row * _LINE
        reach = -5.0 if turned else 5.0
        shapes.append(tag("path", d=f"M{label.x:.1f} {bottom + 1:.1f} V{y - 4:.1f} h{reach:g}", class_="lead"))
        text = [tag("tspan", label.title, class_="strong"), f"  {label.size}"]
        x = label.x + (-8 if turned else 8)
        shapes.append(tag("text", *text, x=x, y=y, class_="end" if turned else None))
    return shapes, (len(rows) * _LINE + 12) if rows else 0.0


def hatching() -> Markup:
    """The pattern for what lies beyond a tier's capacity, once per page."""
    lines = tag("path", d="M-2 2L2 -2M0 8L8 0M6 10L10 6", stroke="#fff", stroke_width=2.5)
    pattern = tag("pattern", lines, id="beyond", width=8, height=8, patternUnits="userSpaceOnUse")
    return tag("svg", tag("defs", pattern), width=0, height=0, style="position:absolute", aria_hidden="true")
