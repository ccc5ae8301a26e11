"""What is varied: paths and their values, combined into variants of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

from stowplan.errors import BadQuantity, InputError
from stowplan.whatif.paths import Path, check_value, factors_of, find_path, number_of, set_path
from stowplan.whatif.scenario import Combination, Scenario

MOST_VARIANTS = 1_000_000
"""More variants than anybody can look at; a sweep of that size is a mistake in a step."""

_MOST_AXES = 12


@dataclass(frozen=True, slots=True)
class Axis:
    """A path and the values that it takes, as texts."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination of values: the values as texts in the order of the axes, and the scenario with them."""

    values: tuple[str, ...]
    scenario: Scenario


def parse_set(text: str) -> tuple[str, str]:
    """Path and value of ``path=value``.

    Raises:
        InputError: not in that form. UnknownName: no such path.
    """
    path, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not path or not value:
        raise InputError(f"'{text[:80]}' must be path=value, such as gpu.memory=48GiB or context=32768")
    find_path(path)
    return path, value


def parse_axis(text: str) -> Axis:
    """Values of ``path=a:b:step`` (both ends included) or ``path=a,b,c``.

    Raises:
        InputError: not in that form, no values, or a step that leads nowhere.
        UnknownName: no such path. BadQuantity: units that do not go together.
    """
    name, value = parse_set(text)
    path = find_path(name)
    pieces = [piece.strip() for piece in value.split(":")]
    if path.numeric and len(pieces) == 3:
        return Axis(name, _range(name, path, pieces))
    if path.numeric and len(pieces) > 1:
        raise InputError(f"{name}={value[:60]}: a range is from:to:step, such as {name}={_example(path)}")
    values = tuple(piece for piece in (each.strip() for each in value.split(",")) if piece)
    if not values:
        raise InputError(f"{name}={value[:60]}: names no value; a sweep needs at least one")
    for each in values:
        check_value(path, each, name)
    return Axis(name, tuple(dict.fromkeys(values)))


def _example(path: Path) -> str:
    unit = next((unit for unit in reversed(factors_of(path)) if unit), "")
    return f"1{unit}:4{unit}:1{unit}"


def _range(name: str, path: Path, pieces: Sequence[str]) -> tuple[str, ...]:
    """Values from the first to the second by the third; a unit may be left to the last that has one."""
    unit = next((u for u in (_unit(piece) for piece in reversed(pieces)) if u), "")
    complete = [piece if _unit(piece) else f"{piece}{unit}" for piece in pieces]
    (low, unit), *rest = [number_of(path, piece, name) for piece in complete]
    factors = factors_of(path)
    high, step = (number * Fraction(factors[u]) / Fraction(factors[unit]) for number, u in rest)
    if step <= 0 or high < low:
        raise InputError(
            f"{name}={':'.join(pieces)}: goes nowhere; give from:to:step with from <= to and a step above 0"
        )
    count = int((high - low) / step) + 1
    if count > MOST_VARIANTS:
        raise InputError(f"{name}={':'.join(pieces)}: takes {count:,} values; at most {MOST_VARIANTS:,} are planned")
    values = [low + k * step for k in range(count)]
    if path.kind in ("tokens", "count") and any(each.denominator != 1 for each in values):
        raise BadQuantity(f"{name}={':'.join(pieces)}: only whole numbers")
    return tuple(f"{_shown(each)}{unit}" for each in values)


def _unit(piece: str) -> str:
    return piece.lstrip("+-0123456789._ ").removeprefix("e").lstrip("+-0123456789") if piece else ""


def _shown(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def count_variants(axes: Sequence[Axis], combination: Combination) -> int:
    """How many variants there are.

    Raises:
        InputError: paired axes of different lengths, one path twice, too many axes or variants.
    """
    names = [axis.path for axis in axes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice} is swept twice; give all of its values at once, such as {twice}=a,b,c")
    if len(axes) > _MOST_AXES:
        raise InputError(f"{len(axes)} paths are swept; at most {_MOST_AXES} can be")
    if combination == "paired" and len({len(axis.values) for axis in axes}) > 1:
        lengths = ", ".join(f"{axis.path} {len(axis.values)}" for axis in axes)
        raise InputError(f"--paired needs as many values of each path, but there are: {lengths}")
    count = len(axes[0].values) if combination == "paired" and axes else prod(len(axis.values) for axis in axes)
    if count > MOST_VARIANTS:
        raise InputError(f"{count:,} variants; at most {MOST_VARIANTS:,} are planned: take larger steps")
    return count


def variants(base: Scenario, axes: Sequence[Axis], combination: Combination = "cartesian") -> list[Variant]:
    """Every variant in order: the last path changes fastest. Raises as `count_variants` and `set_path`."""
    count_variants(axes, combination)
    columns = [axis.values for axis in axes]
    rows = zip(*columns, strict=True) if combination == "paired" else product(*columns)
    found = []
    for values in rows:
        scenario = base
        for axis, value in zip(axes, values, strict=True):
            scenario = set_path(scenario, axis.path, value)
        found.append(Variant(tuple(values), scenario))
    return found
