"""The table 'where it lives': parts of the model against places, with counts of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stowplan.cli import words
from stowplan.cli.tables import Line, table
from stowplan.report.words import place

if TYPE_CHECKING:
    from stowplan.plan import Place, Plan
    from stowplan.systems.base import Setup

_FAMILIES = (
    ("feed-forward", ("ffn_gate", "ffn_up", "ffn_down")),
    ("experts", ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")),
)
_MATRIX = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
_MOST_GPU_COLUMNS = 4


def placement_table(setup: Setup, plan: Plan) -> list[Line]:
    """Rows of parts, columns of places; a cell counts layers, or says the share where a part is divided."""
    from stowplan.plan import expand

    layers = expand(plan.layers, len(setup.model.layers), where="plan")
    places = _places(setup, layers, plan)
    rows = [[label, *_cells(layers, part, places)] for label, part in _parts(setup, plan, layers)]
    rows += _outside_layers(plan, places)
    shown = [place(name, len(setup.gpus)) for name in places]
    if len(setup.gpus) > _MOST_GPU_COLUMNS:
        shown, rows = _gpus_together(places, rows)
    return table(["where it lives", *shown], [[cell or "-" for cell in row] for row in rows])


def held_in_ram(setup: Setup, plan: Plan) -> str:
    """What a decode step reads from host memory, in words."""
    from stowplan.plan import expand

    found = {"weights": False, "experts": False, "the cache": False}
    for parts in expand(plan.layers, len(setup.model.layers), where="plan"):
        for part, where in parts.items():
            if _share(where, "ram"):
                name = "the cache" if part == "kv" else "experts" if part.endswith("_exps") else "weights"
                found[name] = True
    if found["weights"]:
        found["experts"] = False
    return " and ".join(name for name, here in found.items() if here) or "weights"


def _places(setup: Setup, layers: Sequence[dict[str, Place]], plan: Plan) -> list[str]:
    used = {plan.embedding, plan.output}
    for parts in layers:
        for where in parts.values():
            used |= {where} if isinstance(where, str) else set(where)
    known = [f"gpu{i}" for i in setup.gpus]
    return [*known, "ram", *sorted(used - {*known, "ram"})]


def _parts(setup: Setup, plan: Plan, layers: Sequence[dict[str, Place]]) -> list[tuple[str, str]]:
    """Labels and parts in order of the model; matrices of one block that live alike share a row."""
    present = list(dict.fromkeys(part for parts in layers for part in parts))
    routed = any(layer.experts for layer in setup.model.layers)
    found: list[tuple[str, str]] = []
    found += [(_label(part, plan, routed=routed), part) for part in ("attention", "kv") if part in present]
    for name, members in _FAMILIES:
        mine = [part for part in members if part in present]
        alike: dict[tuple[str, ...], list[str]] = {}
        for part in mine:
            alike.setdefault(tuple(str(parts.get(part)) for parts in layers), []).append(part)
        for group in alike.values():
            matrices = ", ".join(_MATRIX[part.removesuffix("_exps")] for part in group)
            found.append((name if len(group) == len(mine) else f"{name}: {matrices}", group[0]))
    rest = [part for part in present if part not in {p for _, ms in _FAMILIES for p in ms} | {"attention", "kv"}]
    return found + [(_label(part, plan, routed=routed), part) for part in rest]


def _label(part: str, plan: Plan, *, routed: bool) -> str:
    if part == "attention":
        return "attention, norms, router" if routed else "attention, norms"
    if part == "kv":
        kinds = list(
            dict.fromkeys(str(plan.settings[name]) for name in ("cache_k", "cache_v") if name in plan.settings)
        )
        capacity = words.tokens(plan.workload.capacity * plan.workload.batch)
        return f"KV cache ({', '.join([*kinds, capacity])})"
    return part.replace("_", " ")


def _cells(layers: Sequence[dict[str, Place]], part: str, places: Sequence[str]) -> list[str]:
    mine = [parts[part] for parts in layers if part in parts]
    whole = all(isinstance(where, str) for where in mine)
    cells = []
    for name in places:
        share = sum(_share(where, name) for where in mine)
        text = f"{share:.0f}/{len(mine)}" if whole else f"{100 * share / len(mine):.0f} %"
        cells.append(text if share else "")
    return cells


def _share(where: Place, name: str) -> float:
    return float(where == name) if isinstance(where, str) else where.get(name, 0.0)


def _outside_layers(plan: Plan, places: Sequence[str]) -> list[list[str]]:
    cells = []
    for name in places:
        held = [text for text, where in (("embedding", plan.embedding), ("output", plan.output)) if where == name]
        cells.append(", ".join(held))
    return [["embedding, output", *cells]]


def _gpus_together(places: Sequence[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """All GPUs as one column; counts over them are added."""
    gpus = [index for index, name in enumerate(places, start=1) if name.startswith("gpu")]
    others = [index for index in range(1, len(places) + 1) if index not in gpus]
    joined = []
    for row in rows:
        cells = [row[index] for index in gpus if row[index]]
        joined.append([row[0], _added(cells), *(row[index] for index in others)])
    return [f"{len(gpus)} GPUs", *(place(places[index - 1]) for index in others)], joined


def _added(cells: Sequence[str]) -> str:
    if not cells:
        return ""
    if all("/" in cell for cell in cells):
        return f"{sum(int(cell.split('/')[0]) for cell in cells)}/{cells[0].split('/')[1]}"
    if all(cell.endswith(" %") for cell in cells):
        return f"{sum(int(cell[:-2]) for cell in cells)} %"
    return cells[0]
