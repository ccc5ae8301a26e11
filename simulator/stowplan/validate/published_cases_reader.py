"""Published figures of offloading systems as cases: the setting of the paper, the figure, and what had to be assumed.

A file of ``published_cases/`` holds ``[[case]]`` tables. ``figure`` says what was reported; a ``baseline`` makes it a
ratio of speeds. ``role`` is ``test``, ``fit`` (it set one of the system's own constants) or ``upto``: the source gives
only the largest value, so direction and magnitude are compared where the maximum arises, which ``assumed`` then states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile
from stowplan.validate.cases import texts_of

FIGURES = ("decode", "throughput", "prefill", "tpot_s", "ttft_s", "memory", "context", "batch")
ROLES = ("test", "fit", "upto")
_FOLDER = Path(__file__).resolve().parent / "published_cases"
_TEXTS = ("id", "system", "machine", "model", "quant", "figure", "role", "source", "where")
_LISTS = ("set", "assumed")
_COUNTS = {"prompt": 0, "generate": 0, "batch": 0, "depth": 0}
_BASELINE = ("system", "settings", "command", "batch", "quant")


@dataclass(frozen=True, slots=True)
class Against:
    """What a ratio is taken to: another system, other settings, another batch or storage format."""

    system: str
    settings: Mapping[str, object]
    command: str | None
    batch: int
    quant: str


@dataclass(frozen=True, slots=True)
class PublishedCase:
    """One published figure.

    Attributes:
        id, system: name of the case, key of the system.
        machine, overrides: composition text, and ``path=value`` changes.
        model, quant: key and storage format.
        prompt, generate, batch, depth: tokens and sequences; a batch of 0 is the largest that fits.
        settings: dotted fields of the policy that the source states; the rest is planned.
        command: what was run, for systems that stowplan runs in full detail.
        figure: ``decode`` (tokens/s), ``throughput`` (generated tokens/s over prefill and decode), ``prefill``
            (tokens/s), ``tpot_s``, ``ttft_s``, ``memory`` (bytes on the GPU), ``context`` (longest that fits, tokens),
            ``batch`` (largest that fits).
        published: the figure, or the ratio of speeds to the baseline.
        baseline: what the ratio is taken to; None for an absolute figure.
        role: ``test``, ``fit`` or ``upto``.
        source, where: citation, and table or section.
        assumed: what the source does not state.
        note: oddities.
    """

    id: str
    system: str
    machine: str
    overrides: tuple[str, ...]
    model: str
    quant: str
    prompt: int
    generate: int
    batch: int
    depth: int
    settings: Mapping[str, object]
    command: str | None
    figure: str
    published: float
    baseline: Against | None
    role: str
    source: str
    where: str
    assumed: tuple[str, ...]
    note: str


@cache
def load_published_cases() -> tuple[PublishedCase, ...]:
    """Shipped cases in the order of the files.

    Raises:
        BadFile: a file that is not what a case file must be, or an id that is there twice.
    """
    found: list[PublishedCase] = []
    for path in sorted(_FOLDER.glob("*.toml")):
        for case in read_published_cases(path):
            if any(case.id == each.id for each in found):
                raise BadFile(f"{path}: case '{case.id}' is there twice")
            found.append(case)
    return tuple(found)


def read_published_cases(path: Path) -> Iterator[PublishedCase]:
    """Cases of one file.

    Raises:
        BadFile: names file, case and field.
    """
    data = read_toml(path)
    if set(data) != {"case"} or not isinstance(data["case"], list):
        raise BadFile(f"{path}: a case file holds [[case]] tables and nothing else")
    for number, raw in enumerate(data["case"], 1):
        if not isinstance(raw, dict):
            raise BadFile(f"{path}: case {number} is not a table")
        yield _build(raw, f"{path}: case '{raw.get('id', number)}'")


def _build(raw: dict[str, Any], where: str) -> PublishedCase:
    known = {*_TEXTS, *_LISTS, *_COUNTS, "settings", "command", "published", "baseline", "note"}
    for name in raw:
        if name not in known:
            raise BadFile(f"{where}: '{name}' is not a field of a case; it has {', '.join(sorted(known))}")
    texts = {name: _text(raw, name, where) for name in _TEXTS}
    for name, allowed in (("figure", FIGURES), ("role", ROLES)):
        if texts[name] not in allowed:
            raise BadFile(f"{where}: {name} '{texts[name]}' is not one of {', '.join(allowed)}")
    counts = {name: _count(raw, name, least, where) for name, least in _COUNTS.items()}
    published = raw.get("published")
    if isinstance(published, bool) or not isinstance(published, int | float) or not published > 0:
        raise BadFile(f"{where}: published must be a number above zero")
    settings, command, note = raw.get("settings", {}), raw.get("command"), raw.get("note", "")
    if not isinstance(settings, dict) or not isinstance(command, str | None) or not isinstance(note, str):
        raise BadFile(f"{where}: settings is a table, command and note are texts")
    if texts["role"] == "upto" and not raw.get("assumed"):
        raise BadFile(f"{where}: a largest value needs the condition under which it arises, in assumed")
    return PublishedCase(
        id=texts["id"],
        system=texts["system"],
        machine=texts["machine"],
        overrides=texts_of(raw, "set", where),
        model=texts["model"],
        quant=texts["quant"],
        **counts,
        settings=_settings(settings),
        command=command,
        figure=texts["figure"],
        published=float(published),
        baseline=_baseline(raw, texts, counts["batch"], where),
        role=texts["role"],
        source=texts["source"],
        where=texts["where"],
        assumed=texts_of(raw, "assumed", where),
        note=note,
    )


def _baseline(raw: Mapping[str, Any], texts: Mapping[str, str], batch: int, where: str) -> Against | None:
    given = raw.get("baseline")
    if given is None:
        return None
    if not isinstance(given, dict) or not set(given) <= set(_BASELINE):
        raise BadFile(f"{where}: baseline is a table of {', '.join(_BASELINE)}")
    return Against(
        str(given.get("system", texts["system"])),
        _settings(given.get("settings", {})),
        given.get("command"),
        int(given.get("batch", batch)),
        str(given.get("quant", texts["quant"])),
    )


def _settings(given: Mapping[str, Any]) -> dict[str, object]:
    """Fields of a policy; the text ``none`` stands for the absence of a mechanism."""
    return {path: None if value == "none" else value for path, value in given.items()}


def _text(raw: Mapping[str, Any], name: str, where: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > 2000:
        raise BadFile(f"{where}: {name} must be a text of 1 to 2000 characters")
    return value


def _count(raw: Mapping[str, Any], name: str, least: int, where: str) -> int:
    value = raw.get(name, least)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10_000_000:
        raise BadFile(f"{where}: {name} must be a whole number from {least}")
    return value
