"""Paths that a question may change: of the machine, the model, the request, the engine. One table names them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal

from stowplan.errors import BadQuantity, InputError, UnknownName
from stowplan.machines.overrides import OVERRIDES
from stowplan.machines.schema import bounded_quantity
from stowplan.plan import LONGEST
from stowplan.units import UNITS, Dimension
from stowplan.whatif.scenario import IK, Scenario, checked_objective

Kind = Dimension | Literal["tokens", "name", "switch"]
Change = Callable[[Scenario, str], Scenario]

_INDEXED = re.compile(r"(gpu|disk)\d{1,3}\.(.+)\Z")
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*([^\d\s]\S*)?\s*\Z")
_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Path:
    """One path.

    Attributes:
        kind: what its value is: a dimension, ``tokens`` (a whole number), a ``name``, or a ``switch``.
        meaning: for people.
        change: the scenario with the value.
    """

    kind: Kind
    meaning: str
    change: Change

    @property
    def numeric(self) -> bool:
        """Whether values can be counted up from one to another."""
        return self.kind not in ("name", "switch")


def find_path(name: str) -> Path:
    """The path of a name; ``gpu1.memory`` is the path ``gpu.memory`` at the second GPU.

    Raises:
        UnknownName: no such path; carries the nearest ones.
    """
    matched = _INDEXED.match(name)
    known = f"{matched[1]}.{matched[2]}" if matched else name
    if known in OVERRIDES:
        override = OVERRIDES[known]
        return Path(override.dimension, override.meaning, partial(_machine_change, path=name))
    if name not in PATHS:
        raise UnknownName("path", name[:60], [*PATHS, *OVERRIDES])
    return PATHS[name]


def set_path(scenario: Scenario, name: str, value: str) -> Scenario:
    """The scenario with one path changed.

    Raises:
        UnknownName: no such path, or a name that does not exist. InputError: a value of another kind.
    """
    return find_path(name).change(scenario, value.strip())


def number_of(path: Path, text: str, where: str) -> tuple[Fraction, str]:
    """Exact number and unit of a numeric value.

    Raises:
        BadQuantity: not a number, or a unit that does not measure what the path does.
    """
    matched = _NUMBER.match(text)
    if matched is None or len(text) > 40:
        raise BadQuantity(f"{where}: '{text[:40]}' is not a number with a unit")
    unit = matched[2] or ""
    if path.kind in UNITS:
        check_value(path, text, where)
    elif unit:
        raise BadQuantity(f"{where}: '{text}' has the unit '{unit}', but this is a plain count")
    return Fraction(matched[1].replace("_", "")), unit


def check_value(path: Path, text: str, where: str) -> None:
    """Refuse a value that the path cannot take.

    Raises:
        BadQuantity, InputError: names the path, the value and what it must be.
    """
    if path.kind in UNITS:
        bounded_quantity(text, path.kind, where)
    elif path.kind == "tokens":
        _whole(text, where)
    elif path.kind == "switch":
        _switch(text, where)


def si_value(path: Path, text: str) -> float | None:
    """Value in SI units, for axes; None where it is a name."""
    if path.kind == "name":
        return None
    if path.kind == "switch":
        return float(_switch(text, "value"))
    number, unit = number_of(path, text, "value")
    return float(number) * factors_of(path)[unit]


def factors_of(path: Path) -> dict[str, float]:
    """SI factor of every unit that a path's values may have; a plain count has none."""
    if path.kind in UNITS:
        return UNITS[path.kind]
    return {"": 1.0}


def _machine_change(scenario: Scenario, value: str, *, path: str) -> Scenario:
    bounded_quantity(value, find_path(path).kind, path)  # type: ignore[arg-type]
    return scenario.with_change(path, value)


def _workload_change(scenario: Scenario, value: str, *, name: str) -> Scenario:
    changed = scenario.with_workload(name, _whole(value, name))
    return replace(changed, any_batch=False) if name == "batch" else changed


def _model_name(scenario: Scenario, value: str) -> Scenario:
    return replace(scenario, model=value)


def _mix(scenario: Scenario, value: str) -> Scenario:
    return replace(scenario, quant=value)


def _machine_name(scenario: Scenario, value: str) -> Scenario:
    return replace(scenario, machine=value)


def _objective(scenario: Scenario, value: str) -> Scenario:
    return replace(scenario, objective=checked_objective(value))


def _system(scenario: Scenario, value: str) -> Scenario:
    if scenario.objective != "throughput" and value == "flexgen":
        return replace(scenario, system=value, objective="throughput")
    return replace(scenario, system=value)


def _cache(scenario: Scenario, value: str) -> Scenario:
    from stowplan.systems.llama_cpp_settings import CACHE_TYPES

    names = [name.strip().lower() for name in value.split("/")]
    for name in names:
        if name not in CACHE_TYPES or len(names) > 2:
            raise InputError(
                f"kv: '{value[:40]}' must be a cache type, or two as KEYS/VALUES; types are {', '.join(CACHE_TYPES)}"
            )
    return scenario.with_settings(cache_k=names[0], cache_v=names[-1])


def _engine_change(scenario: Scenario, value: str, *, name: str, kind: Kind) -> Scenario:
    if scenario.system not in ("llama.cpp", IK):
        raise InputError(f"engine.{name}: is a knob of llama.cpp; {scenario.system} has none of that name")
    given: str | int | bool = value
    if kind == "tokens":
        given = _whole(value, f"engine.{name}")
    elif kind == "switch":
        given = _switch(value, f"engine.{name}")
    elif kind == "bytes":
        given = int(bounded_quantity(value, "bytes", f"engine.{name}"))
    return scenario.with_settings(**{name: given})


def _whole(text: str, where: str) -> int:
    plain = text.replace("_", "").strip()
    if not plain.isdecimal() or int(plain) > LONGEST:
        raise InputError(f"{where}: '{text[:40]}' must be a whole number of at most {LONGEST:,}")
    return int(plain)


def _switch(text: str, where: str) -> bool:
    if text.strip().lower() not in _SWITCH:
        raise InputError(f"{where}: '{text[:40]}' must be on or off")
    return _SWITCH[text.strip().lower()]


def _workload(name: str, meaning: str) -> tuple[str, Path]:
    return name, Path("tokens", meaning, partial(_workload_change, name=name))


def _engine(name: str, kind: Kind, meaning: str) -> tuple[str, Path]:
    return f"engine.{name}", Path(kind, meaning, partial(_engine_change, name=name, kind=kind))


PATHS: Mapping[str, Path] = dict(
    [
        ("machine", Path("name", "the whole machine, by name or parts", _machine_name)),
        ("model", Path("name", "the model", _model_name)),
        ("quant", Path("name", "the storage mix of the weights", _mix)),
        ("kv", Path("name", "the cache's format, or KEYS/VALUES", _cache)),
        ("system", Path("name", "who runs it", _system)),
        ("objective", Path("name", "what is made fast", _objective)),
        _workload("context", "tokens of cache per sequence"),
        _workload("batch", "requests at a time"),
        _workload("prompt", "tokens of the prompt"),
        _workload("generate", "tokens to generate"),
        _workload("depth", "tokens in the cache before the prompt"),
        _engine("ubatch", "tokens", "physical batch of the prompt"),
        _engine("threads", "tokens", "threads of the CPU"),
        _engine("margin", "bytes", "GPU memory that a plan leaves free"),
        _engine("load_mode", "name", "how weights reach RAM: none, mmap or mlock"),
        _engine("kv_offload", "switch", "whether the cache lives with its layers"),
        _engine("op_offload", "switch", "whether prompts stream weights to the GPU"),
        _engine("flash_attention", "switch", "fused attention"),
    ]
)
"""Every path beside the machine's own (`stowplan.machines.overrides.OVERRIDES`)."""
