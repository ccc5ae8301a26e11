"""Published measurements that were read and are no case, with the reason (``cases/unexpressed.toml``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile

FILE = Path(__file__).resolve().parent / "cases" / "unexpressed.toml"
_FIELDS = {"reason", "system", "sources", "ids"}


@dataclass(frozen=True, slots=True)
class Unexpressed:
    """Measurements of one system that are left out for one reason.

    Attributes:
        reason: why they are no case.
        system: what was measured.
        sources: where they were published.
        ids: of the records, in the collection that the cases are of as well.
    """

    reason: str
    system: str
    sources: tuple[str, ...]
    ids: tuple[str, ...]


def load_unexpressed(path: Path = FILE) -> list[Unexpressed]:
    """Every group, the commonest reasons first.

    Raises:
        BadFile: a group lacks a field or has another, or a record is named twice.
    """
    groups: list[Unexpressed] = []
    seen: set[str] = set()
    for raw in read_toml(path).get("unexpressed", []):
        if not isinstance(raw, dict) or set(raw) != _FIELDS:
            raise BadFile(f"{path}: every [[unexpressed]] table has exactly {', '.join(sorted(_FIELDS))}")
        group = _group(raw, path)
        for each in group.ids:
            if each in seen:
                raise BadFile(f"{path}: '{each}' is left out twice")
            seen.add(each)
        groups.append(group)
    return groups


def _group(raw: Mapping[str, object], path: Path) -> Unexpressed:
    for name in ("reason", "system"):
        value = raw[name]
        if not isinstance(value, str) or not value.strip():
            raise BadFile(f"{path}: {name} must be a text, not {value!r:.60}")
    for name in ("sources", "ids"):
        value = raw[name]
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise BadFile(f"{path}: {name} of '{raw['system']}' must be a list of texts")
    return Unexpressed(str(raw["reason"]), str(raw["system"]), _texts(raw["sources"]), _texts(raw["ids"]))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
