"""Published measurements as validation cases: what somebody ran, on which machine, and what was measured.

A file in ``cases/`` holds ``[[case]]`` tables. A case whose source reports a sweep has ``points``: each point is a case
of its own, with the fields that it repeats taken from the table and its id appended (``cb021/d6656``). A command may
name ``{prompt}``, ``{generate}``, ``{depth}``, ``{batch}`` and the keys of a point's ``values``; a point fills them in.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile, BadQuantity
from stowplan.systems import list_systems
from stowplan.units import parse_quantity

LLAMA_CPP = ("llama.cpp", "ik_llama.cpp", "ollama")
"""Engines that read llama.cpp's flags; every other family is the key of a system."""
KINDS = ("partial", "full-gpu", "cpu-only", "disk")
SPLITS = ("fit", "test", "fresh")
ENGINE_VERSIONS = ("pre-2025-12", "current", "ik")

_FOLDER = Path(__file__).resolve().parent / "cases"
_NO_CASES = "unexpressed.toml"
_TEXTS = ("id", "family", "kind", "machine", "model", "quant", "command", "split", "source", "confidence")
_OPTIONAL_TEXTS = ("engine_version", "date", "note", "state")
_LISTS = ("set", "assumed", "records")
_COUNTS: Mapping[str, int] = {"prompt": 0, "generate": 0, "batch": 1, "depth": 0}
_DEFAULTS: Mapping[str, int] = {"batch": 1, "depth": 0}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "kind": KINDS,
    "split": SPLITS,
    "engine_version": ENGINE_VERSIONS,
}
_POINT = ("id", "prompt", "generate", "batch", "depth", "measured", "values", "note", "kind")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_FIT_SHARE = 0.6
_LARGEST = 1e12


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run reported: at least one speed or the memory that it held, or that it ran out of memory.

    Attributes:
        decode_tokens_per_s: generated tokens per second over all sequences, prompt excluded.
        prefill_tokens_per_s: prompt tokens per second over all sequences.
        throughput_tokens_per_s: generated tokens over the time of prefill and decode together.
        prefill_seconds, decode_seconds: duration of either phase for the whole batch.
        gpu_memory_bytes: peak memory that the run held on its GPU.
        out_of_memory: whether the run ended for want of memory; then it reports nothing else.
    """

    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    throughput_tokens_per_s: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    gpu_memory_bytes: float | None = None
    out_of_memory: bool = False


_SPEEDS = tuple(each.name for each in fields(Measured) if each.name not in ("gpu_memory_bytes", "out_of_memory"))


@dataclass(frozen=True, slots=True)
class Case:
    """One measured run that a prediction can be compared with.

    Attributes:
        id: id of the record, for a point of a sweep followed by ``/`` and the point.
        family: engine: llama.cpp, ik_llama.cpp, ollama, or the key of any other system.
        kind: partial (weights on GPU and host), full-gpu, cpu-only or disk.
        machine: composition text or key of a machine.
        overrides: what the record states beyond its parts, as path=value: ``memory.bandwidth=225GB/s``.
        state: a setting of the machine that its parts do not tell, such as how its firmware divides memory.
        model, quant: key of an architecture, and storage mix (``q4_k_m``) or format and file size (``q2_k@211GiB``).
        command: what was run, completed to a well-formed command of the engine.
        measured: what was reported.
        prompt, depth, generate: prompt tokens, tokens in the cache before them, generated tokens, of each sequence.
        batch: sequences that ran together.
        split: fit (may be used to set constants) or test; no hardware is in both. Fresh, on any hardware: collected
            after everything was set and predicted once, never used by a fit.
        engine_version: which meaning of ``-ngl`` held: the output layer counts since December 2025 (current), not
            before (pre-2025-12) and not in ik_llama.cpp (ik). None for engines without the flag.
        date: when the run was published, as far as the record says.
        source: where the measurement was published.
        confidence: how surely the record was read.
        note: oddities of the run.
        assumed: every fact about hardware, files or flags that the record does not state.
        records: further records of the same run, whose figures are in `measured`.
    """

    id: str
    family: str
    kind: str
    machine: str
    overrides: tuple[str, ...]
    model: str
    quant: str
    command: str
    measured: Measured
    prompt: int
    depth: int
    generate: int
    batch: int
    split: str
    engine_version: str | None
    date: str | None
    source: str
    confidence: str
    note: str
    assumed: tuple[str, ...]
    records: tuple[str, ...] = ()
    state: str = ""

    @property
    def record(self) -> str:
        """Id of the record that this case is a point of: points of one sweep are not independent."""
        return self.id.partition("/")[0]

    @property
    def out_of_memory(self) -> bool:
        """Whether the run ended for want of memory."""
        return self.measured.out_of_memory


def load_cases(family: str | None = None, split: str | None = None) -> list[Case]:
    """Shipped cases of a family and a split, of all where None, in the order of the files.

    Raises:
        BadFile: a file that is not what a case file must be.
    """
    return [each for each in _shipped() if family in (None, each.family) and split in (None, each.split)]


def split_of(hardware: str) -> str:
    """The split that some hardware (names of GPUs and processor) belongs to: a hash, so nobody chooses."""
    digest = hashlib.sha256(hardware.encode()).digest()
    return "fit" if int.from_bytes(digest[:4], "big") / 2**32 < _FIT_SHARE else "test"


@cache
def _shipped() -> tuple[Case, ...]:
    cases: list[Case] = []
    seen: dict[str, Path] = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        if path.name == _NO_CASES:
            continue
        for case in read_cases(path):
            if case.id in seen:
                raise BadFile(f"{path}: case '{case.id}' is in {seen[case.id].name} as well")
            seen[case.id] = path
            cases.append(case)
    return tuple(cases)


def read_cases(path: Path) -> Iterator[Case]:
    """Cases of one file, sweeps expanded.

    Raises:
        BadFile: an unknown or missing field, a wrong type, a bad value, or a command with a hole; the sentence names
            file, case and field.
    """
    data = read_toml(path)
    if set(data) != {"case"} or not isinstance(data["case"], list):
        raise BadFile(f"{path}: a case file holds [[case]] tables and nothing else")
    for number, raw in enumerate(data["case"], 1):
        if not isinstance(raw, dict):
            raise BadFile(f"{path}: case {number} is not a table")
        where = f"{path}: case '{raw.get('id', number)}'"
        shared = {name: value for name, value in raw.items() if name != "points"}
        points = raw.get("points", [{}])
        if not isinstance(points, list) or not points:
            raise BadFile(f"{where}: points must be a list of tables")
        for point in points:
            yield _build(*_merged(shared, point, where))


def _merged(shared: Mapping[str, Any], point: object, where: str) -> tuple[dict[str, Any], str]:
    """Fields of one point over those of its case, and where they are."""
    if not isinstance(point, dict):
        raise BadFile(f"{where}: a point must be a table")
    if not point:
        return dict(shared), where
    at = f"{where}, point '{point.get('id', '?')}'"
    for name in point:
        if name not in _POINT:
            raise BadFile(f"{at}: '{name}' is not a field of a point; it has {', '.join(_POINT)}")
    if not isinstance(point.get("id"), str) or not point["id"]:
        raise BadFile(f"{at}: a point needs an id")
    return {**shared, **point, "id": f"{shared.get('id')}/{point['id']}"}, at


def _build(raw: dict[str, Any], where: str) -> Case:
    values = raw.pop("values", {})
    known = (*_TEXTS, *_OPTIONAL_TEXTS, *_LISTS, *_COUNTS, "measured")
    for name in raw:
        if name not in known:
            raise BadFile(f"{where}: '{name}' is not a field of a case; it has {', '.join(known)}")
    texts = {name: _text(raw, name, where) for name in (*_TEXTS, *_OPTIONAL_TEXTS)}
    lists = {name: texts_of(raw, name, where) for name in _LISTS}
    counts = {name: _count(raw, name, least, where) for name, least in _COUNTS.items()}
    families = (*LLAMA_CPP, *(key for key in list_systems() if key not in LLAMA_CPP))
    if texts["family"] not in families:
        raise BadFile(f"{where}: family '{texts['family']}' is not one of {', '.join(families)}")
    if (texts["engine_version"] is None) != (texts["family"] not in LLAMA_CPP):
        raise BadFile(f"{where}: engine_version belongs to cases of {', '.join(LLAMA_CPP)}, and to no other")
    measured = _measured(raw.get("measured"), where)
    if measured.prefill_tokens_per_s is not None and not counts["prompt"]:
        raise BadFile(f"{where}: a prefill speed without a prompt")
    if measured.decode_tokens_per_s is not None and not counts["generate"]:
        raise BadFile(f"{where}: a decode speed without generated tokens")
    return Case(
        id=texts["id"] or "",
        family=texts["family"] or "",
        kind=texts["kind"] or "",
        machine=texts["machine"] or "",
        overrides=_overrides(lists["set"], where),
        model=texts["model"] or "",
        quant=texts["quant"] or "",
        command=_filled(texts["command"] or "", counts, values, where),
        measured=measured,
        prompt=counts["prompt"],
        depth=counts["depth"],
        generate=counts["generate"],
        batch=counts["batch"],
        split=texts["split"] or "",
        engine_version=texts["engine_version"],
        date=texts["date"],
        source=texts["source"] or "",
        confidence=texts["confidence"] or "",
        note=texts["note"] or "",
        assumed=lists["assumed"],
        records=lists["records"],
        state=texts["state"] or "",
    )


def _text(raw: Mapping[str, Any], name: str, where: str) -> str | None:
    if name not in raw:
        if name in _OPTIONAL_TEXTS:
            return None
        raise BadFile(f"{where}: '{name}' is missing")
    value = raw[name]
    if not isinstance(value, str) or not value.strip() or len(value) > 2000:
        raise BadFile(f"{where}: {name} must be a text of 1 to 2000 characters")
    allowed = _CHOICES.get(name)
    if allowed and value not in allowed:
        raise BadFile(f"{where}: {name} '{value}' is not one of {', '.join(allowed)}")
    return value


def texts_of(raw: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A list of texts in a case's table; empty where it is absent.

    Raises:
        BadFile: it is something else.
    """
    value = raw.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise BadFile(f"{where}: {name} must be a list of texts")
    return tuple(value)


def _count(raw: Mapping[str, Any], name: str, least: int, where: str) -> int:
    value = raw.get(name, _DEFAULTS.get(name))
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10_000_000:
        raise BadFile(f"{where}: {name} must be a whole number from {least}")
    return value


def _overrides(texts: tuple[str, ...], where: str) -> tuple[str, ...]:
    for text in texts:
        path, _, value = text.partition("=")
        if not path.strip() or not value.strip():
            raise BadFile(f"{where}: set '{text}' is not of the form path=value")
    return texts


def _measured(raw: object, where: str) -> Measured:
    if not isinstance(raw, dict):
        raise BadFile(f"{where}: measured must be a table of {', '.join(_SPEEDS)}, gpu_memory, or out_of_memory")
    if "out_of_memory" in raw:
        if raw != {"out_of_memory": True}:
            raise BadFile(f"{where}: measured.out_of_memory stands alone and is true")
        return Measured(out_of_memory=True)
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "gpu_memory":
            try:
                found["gpu_memory_bytes"] = parse_quantity(value, "bytes", where=f"{where}: measured.gpu_memory")
            except BadQuantity as error:
                raise BadFile(str(error)) from error
        elif name not in _SPEEDS:
            raise BadFile(f"{where}: measured.{name} is not one of {', '.join(_SPEEDS)}, gpu_memory")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
            raise BadFile(f"{where}: measured.{name} must be a number above zero and below {_LARGEST:g}")
        else:
            found[name] = float(value)
    if not found:
        raise BadFile(f"{where}: measured holds nothing; it needs one of {', '.join(_SPEEDS)}, gpu_memory")
    return Measured(**found)


def _filled(command: str, counts: Mapping[str, int], values: object, where: str) -> str:
    """The command with its holes filled in."""
    if not isinstance(values, dict):
        raise BadFile(f"{where}: values must be a table")
    table = {**counts, **values}

    def fill(hole: re.Match[str]) -> str:
        if hole[1] not in table:
            raise BadFile(f"{where}: the command names {{{hole[1]}}}, which the case does not give")
        return str(table[hole[1]])

    filled = _PLACEHOLDER.sub(fill, command)
    try:
        shlex.split(filled)
    except ValueError as error:
        raise BadFile(f"{where}: the command cannot be split into words ({error})") from error
    return filled
