"""What a published system declares: where it was published, its mechanisms as a policy, and what a plan may choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from typing import Any

from stowplan.errors import InputError
from stowplan.systems.mechanisms.policy import Policy

Alternatives = tuple[Mapping[str, object], ...]
"""Settings of which a plan takes one."""


def one_of(path: str, *values: object) -> Alternatives:
    """Alternatives of one dotted field."""
    return tuple({path: value} for value in values)


CACHE_ON_GPU_OR_HOST: Alternatives = ({"cache.gpu": 1.0, "cache.ram": 0.0}, {"cache.gpu": 0.0, "cache.ram": 1.0})


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of the system's own.

    Attributes:
        name: what it is.
        value: as it is used, SI.
        kind: datasheet (the paper states it), fitted or assumed.
        where: table, section or reasoning.
    """

    name: str
    value: float
    kind: str
    where: str


@dataclass(frozen=True, slots=True)
class Published:
    """A published system on the shared mechanisms.

    Attributes:
        key: name on the command line.
        title: name for people.
        paper: where it was published.
        idea: what it does, in one sentence.
        kernels: engine whose kernel constants it uses; ``pytorch`` for most research code.
        policy: its mechanisms.
        choices: what a plan tries, all combinations of one alternative of each: dotted fields of the policy
            (``weights.cpu``) and their values.
        fills: subjects that take what is left of GPU memory, in order: ``weights``, ``experts``.
        disk: whether what fits nowhere else may be on disk.
        quality: None for exact; else what the paper reports of the answers.
        constants: its own numbers, with their sources; every number of the policy that is not a choice is among them.
        figures: figures that it replaces, by name: a kernel of its own. ``name@process`` holds on chips of that
            manufacturing process only, for kernels that lack what newer or older ones have.
        needs: ``experts`` for mixtures only, ``16-bit weights`` where a stored form is of no other.
        hardware: a device that machines do not have by themselves; runs only where that is assumed.
        existing: key of the engine of stowplan that runs it in full detail, if one does; the policy is then unused.
        settings: settings of that engine.
    """

    key: str
    title: str
    paper: str
    idea: str
    kernels: str = "pytorch"
    policy: Policy = field(default_factory=Policy)
    choices: tuple[Alternatives, ...] = ()
    fills: tuple[str, ...] = ("weights", "experts")
    disk: bool = False
    quality: str | None = None
    constants: tuple[Constant, ...] = ()
    figures: Mapping[str, Constant] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    hardware: str | None = None
    existing: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    def variants(self) -> Iterator[Policy]:
        """Every policy that a plan may try."""
        for chosen in product(*self.choices):
            yield changed(self.policy, {path: value for each in chosen for path, value in each.items()})

    def mechanisms(self) -> list[str]:
        """Fields in which the policy, or a choice of it, differs from the neutral one."""
        return sorted({path for policy in self.variants() for path in differences(Policy(), policy)})


def changed(policy: Policy, values: Mapping[str, object]) -> Policy:
    """The policy with some dotted fields replaced.

    Raises:
        InputError: no such field, or a value out of range.
    """
    changes: dict[str, dict[str, object]] = {}
    for path, value in values.items():
        subject, _, name = path.rpartition(".")
        owner: Any = getattr(policy, subject, None) if subject else policy
        if not is_dataclass(owner) or name not in {each.name for each in fields(owner)}:
            raise InputError(f"a policy has no field '{path[:60]}'")
        changes.setdefault(subject, {})[name] = value
    made: Any = replace(policy, **changes.pop("", {}))  # type: ignore[arg-type]
    for subject, each in changes.items():
        made = replace(made, **{subject: replace(getattr(made, subject), **each)})
    result: Policy = made
    return result


def differences(one: Policy, other: Policy) -> dict[str, object]:
    """Dotted fields in which two policies differ, with the other's values."""
    found: dict[str, object] = {}
    for each in fields(one):
        first, second = getattr(one, each.name), getattr(other, each.name)
        if is_dataclass(first) and not isinstance(first, type):
            for inner in fields(first):
                if getattr(first, inner.name) != getattr(second, inner.name):
                    found[f"{each.name}.{inner.name}"] = getattr(second, inner.name)
        elif first != second:
            found[each.name] = second
    return found
