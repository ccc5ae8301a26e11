"""Recorded routing: one JSON object per line, ``{"layer": 3, "experts": [5, 17]}``, tokens of a layer in order.

``"scores"`` may hold the router's score of every expert. Bounded: at most two million lines of 64 KiB each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stowplan.errors import BadFile, InputError
from stowplan.routing.trace import RoutingTrace

_MOST_LINES = 2_000_000
_LONGEST_LINE = 64 * 2**10


def read_routing(path: Path, experts: int) -> dict[int, RoutingTrace]:
    """Traces by layer of a recorded file.

    Args:
        path: file of JSON lines.
        experts: routed experts of each layer.

    Raises:
        BadFile: cannot be read, is too long, or a line is not a routing record; the sentence names the line.
    """
    chosen: dict[int, list[tuple[int, ...]]] = {}
    scores: dict[int, list[tuple[float, ...]]] = {}
    for number, layer, names, row in _records(path):
        if (row is None) == bool(scores.get(layer)) and chosen.get(layer):
            raise BadFile(f"{path}: line {number}: either every record of layer {layer} has scores or none")
        chosen.setdefault(layer, []).append(names)
        if row is not None:
            scores.setdefault(layer, []).append(row)
    if not chosen:
        raise BadFile(f"{path}: holds no routing record")
    try:
        return {
            layer: RoutingTrace(experts, tuple(tokens), tuple(scores[layer]) if layer in scores else None)
            for layer, tokens in sorted(chosen.items())
        }
    except InputError as error:
        raise BadFile(f"{path}: {error}") from error


def _records(path: Path) -> Iterator[tuple[int, int, tuple[int, ...], tuple[float, ...] | None]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if number > _MOST_LINES:
                    raise BadFile(f"{path}: more than {_MOST_LINES:,} lines; record fewer tokens")
                if len(line) > _LONGEST_LINE:
                    raise BadFile(f"{path}: line {number}: longer than 64 KiB")
                if line.strip():
                    yield (number, *_record(line, f"{path}: line {number}"))
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error


def _record(line: bytes, where: str) -> tuple[int, tuple[int, ...], tuple[float, ...] | None]:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}: is not JSON ({error})") from error
    if not isinstance(found, dict) or not set(found) <= {"layer", "experts", "scores"}:
        raise BadFile(f"{where}: must be an object of layer, experts and perhaps scores")
    layer: Any = found.get("layer")
    experts, scores = found.get("experts"), found.get("scores")
    if not _whole(layer) or not isinstance(experts, list) or not all(_whole(each) for each in experts):
        raise BadFile(f"{where}: layer must be a whole number and experts a list of whole numbers")
    if scores is None:
        return layer, tuple(sorted(experts)), None
    if not isinstance(scores, list) or not all(isinstance(each, int | float) for each in scores):
        raise BadFile(f"{where}: scores must be a list of numbers")
    return layer, tuple(sorted(experts)), tuple(map(float, scores))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
