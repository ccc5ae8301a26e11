"""Break-even: the least of a resource with which a plan reaches a target, found by bisection over re-solved plans.

More of a resource never makes the best plan worse, so the plans that reach the target are those above one point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stowplan.errors import BadQuantity, InputError
from stowplan.units import parse_quantity
from stowplan.whatif.axes import parse_set
from stowplan.whatif.outcome import Outcome
from stowplan.whatif.paths import Path, factors_of, find_path, set_path, si_value
from stowplan.whatif.scenario import Scenario

_CLOSE = 0.01
_MOST_STEPS = 40

_TARGETS: Mapping[str, tuple[str, bool]] = {
    "decode": ("decode_tokens_per_s", True),
    "throughput": ("request_tokens_per_s", True),
    "prefill": ("prefill_tokens_per_s", True),
    "ttft": ("ttft_s", False),
    "tpot": ("tpot_s", False),
}

_EXTENT: Mapping[str, tuple[str, str]] = {
    "gpu.memory": ("4GiB", "1024GiB"),
    "gpu.bandwidth": ("50GB/s", "20000GB/s"),
    "gpu.fp16": ("1TFLOP/s", "5000TFLOP/s"),
    "gpu.int8": ("1TFLOP/s", "10000TFLOP/s"),
    "gpu.h2d": ("1GB/s", "900GB/s"),
    "gpu.pcie.lanes": ("1", "16"),
    "gpu.pcie.generation": ("3", "6"),
    "memory.capacity": ("8GiB", "8192GiB"),
    "memory.bandwidth": ("10GB/s", "4000GB/s"),
    "memory.channels": ("1", "24"),
    "cpu.cores": ("1", "256"),
    "cpu.clock": ("1GHz", "10GHz"),
    "disk.read": ("0.1GB/s", "200GB/s"),
    "disk.page_fault_read": ("0.1GB/s", "200GB/s"),
    "context": ("512", "1048576"),
    "prompt": ("1", "1048576"),
    "depth": ("1", "1048576"),
}
"""Where a search starts and ends when nobody says: from less than any machine has to more."""

_LESS_IS_BETTER = ("context", "prompt", "depth")
"""What is asked for rather than had: the most of it that still reaches the target is looked for."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that must be reached: at least `value` of a rate, at most `value` seconds."""

    name: str
    figure: str
    value: float
    at_least: bool

    def reached(self, outcome: Outcome) -> bool:
        """Whether an outcome reaches it."""
        found = outcome.figure(self.figure)
        return found is not None and (found >= self.value if self.at_least else found <= self.value)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """What was found.

    Attributes:
        path: what was varied; target: what it must reach.
        value: the least (of a context: the most) that reaches it, as a text; None where nothing in the range does.
        outcome: of the plan there, or of the best end of the range.
        short: the next smaller value that was tried and what it gives; None where the whole range reaches the target.
        ends: both ends of the range.
        tried: how many plans were made.
    """

    path: str
    target: Target
    value: str | None
    outcome: Outcome
    short: tuple[str, Outcome] | None
    ends: tuple[str, str]
    tried: int


def parse_target(text: str) -> Target:
    """A target such as ``decode=10`` (tokens/s), ``ttft=2s`` or ``tpot=50ms``.

    Raises:
        InputError: not in that form, or an unknown figure. BadQuantity: a number without or with the wrong unit.
    """
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or name not in _TARGETS:
        raise InputError(f"--until {text[:60]}: give decode=10, throughput=10, prefill=500, ttft=2s or tpot=50ms")
    figure, at_least = _TARGETS[name]
    if not at_least:
        return Target(name, figure, parse_quantity(value, "seconds", where=f"--until {name}"), at_least)
    number = value.removesuffix("tok/s").strip()
    try:
        rate = float(number)
    except ValueError as error:
        raise BadQuantity(f"--until {name}: '{value[:40]}' is not a number of tokens/s") from error
    if not 0 < rate < math.inf:
        raise BadQuantity(f"--until {name}: '{value[:40]}' must be above zero")
    return Target(name, figure, rate, at_least)


def parse_range(text: str) -> tuple[str, str, str]:
    """Path and both ends of ``path`` or ``path=from:to``.

    Raises:
        InputError: a path that is no quantity, or that has no range of its own. UnknownName: no such path.
    """
    name = text.partition("=")[0].strip()
    path = find_path(name)
    if not path.numeric:
        raise InputError(f"--vary {name}: is a name, not a quantity; sweep it with --sweep {name}=a,b,c")
    if "=" in text:
        _, value = parse_set(text)
        ends = [end.strip() for end in value.split(":")]
        if len(ends) != 2:
            raise InputError(f"--vary {text[:60]}: give path=from:to, such as gpu.memory=8GiB:96GiB")
        low, high = (si_value(path, end) or 0.0 for end in ends)
        if not low < high:
            raise InputError(f"--vary {text[:60]}: the range must go upwards")
        return name, ends[0], ends[1]
    if name not in _EXTENT:
        raise InputError(f"--vary {name}: say from where to where, as {name}=from:to")
    return name, *_EXTENT[name]


def break_even(
    base: Scenario,
    target: Target,
    span: tuple[str, str, str],
    outcome_of: Callable[[Scenario], Outcome],
    progress: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> BreakEven:
    """The least of a resource that reaches a target, within 1 % or one whole unit.

    Args:
        base: the scenario; target: what must be reached.
        span: path and both ends, see `parse_range`.
        outcome_of: plans a scenario.
        progress: told what is being tried.

    Raises:
        InputError: a value that the path cannot take.
    """
    name, first, last = span
    path = find_path(name)
    if name == "context":
        asked = base.asked
        first = str(max(int(first), asked.depth + asked.prompt + asked.generate))
    whole = path.kind in ("tokens", "count")
    asked_for = name in _LESS_IS_BETTER
    tried: dict[str, Outcome] = {}

    def at(text: str) -> Outcome:
        if text not in tried:
            progress(f"{name}={text}")
            tried[text] = outcome_of(set_path(base, name, text))
        return tried[text]

    def number(text: str) -> float:
        return si_value(path, text) or 0.0

    good, bad = (first, last) if asked_for else (last, first)
    if not target.reached(at(good)):
        return BreakEven(name, target, None, at(good), None, (first, last), len(tried))
    if target.reached(at(bad)):
        return BreakEven(name, target, bad, at(bad), None, (first, last), len(tried))
    unit = _unit_of(last)
    for _ in range(_MOST_STEPS):
        low, high = sorted((number(good), number(bad)))
        if (whole and high - low <= 1) or high <= low * (1 + _CLOSE):
            break
        middle = math.sqrt(low * high) if high > 4 * low > 0 else (low + high) / 2
        text = _text(middle, path, unit, whole=whole, between=(low, high))
        good, bad = (text, bad) if target.reached(at(text)) else (good, text)
    return BreakEven(name, target, good, at(good), (bad, at(bad)), (first, last), len(tried))


def _unit_of(text: str) -> str:
    return text.lstrip("+-0123456789._ ")


def _text(value: float, path: Path, unit: str, *, whole: bool, between: tuple[float, float]) -> str:
    if whole:
        low, high = between
        return str(min(max(round(value), int(low) + 1), int(high) - 1))
    return f"{value / factors_of(path)[unit]:.5g}{unit}"
