"""A scenario: everything that decides a plan, as plain text and numbers that can be stored, sent and changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from stowplan.errors import InputError
from stowplan.plan import Plan, Workload
from stowplan.planner.serial_search import Objective

BATCHES = tuple(2**k for k in range(9))
"""Batch sizes that are tried where throughput is wanted and no batch is given."""

IK = "ik_llama.cpp"
_IK_SETTINGS: Mapping[str, object] = {"engine": IK, "release": "pre-2025-12"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to plan for.

    Attributes:
        model, quant: model and storage mix as the user names them.
        machine: text after ``--on``; changes: its ``path=value`` overrides in order.
        system: who runs it (``ik_llama.cpp`` is a variant of ``llama.cpp``).
        objective: what is made fast.
        workload: what is asked, as the fields of `stowplan.plan.Workload`.
        settings: the system's knobs that are fixed.
        any_batch: whether the batch is chosen too.
    """

    model: str
    machine: str
    quant: str | None = None
    changes: tuple[str, ...] = ()
    system: str = "llama.cpp"
    objective: Objective = "request"
    workload: tuple[tuple[str, int], ...] = ()
    settings: tuple[tuple[str, str | int | bool], ...] = ()
    any_batch: bool = False

    @property
    def asked(self) -> Workload:
        """The workload.

        Raises:
            InputError: a number out of range, or a request that is longer than its context.
        """
        from stowplan.plan import checked_workload

        asked = checked_workload(dict(self.workload))
        needed = asked.depth + asked.prompt + asked.generate
        if asked.context is not None and asked.context < needed:
            raise InputError(
                f"context {asked.context}: the request has {needed} tokens (depth {asked.depth}, prompt "
                f"{asked.prompt}, generate {asked.generate}); give a context of at least {needed}"
            )
        return asked

    @property
    def engine(self) -> str:
        """The system's own key: forks are run by the system that they vary."""
        return "llama.cpp" if self.system == IK else self.system

    @property
    def knobs(self) -> dict[str, str | int | bool]:
        """All fixed settings, those of a fork included."""
        fork: dict[str, Any] = dict(_IK_SETTINGS) if self.system == IK else {}
        return fork | dict(self.settings)

    def with_workload(self, name: str, value: int) -> Scenario:
        """With one number of the workload changed."""
        return replace(self, workload=_merged(self.workload, {name: value}))

    def with_settings(self, **settings: str | int | bool) -> Scenario:
        """With settings fixed."""
        return replace(self, settings=_merged(self.settings, settings))

    def with_change(self, path: str, value: str) -> Scenario:
        """With one more override of the machine; it replaces an earlier one of the same path."""
        kept = tuple(change for change in self.changes if change.partition("=")[0].strip() != path)
        return replace(self, changes=(*kept, f"{path}={value}"))

    @property
    def text(self) -> str:
        """The scenario as one line of JSON, the same for the same scenario."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def parse(text: str) -> Scenario:
        """Inverse of `text`."""
        data = json.loads(text)
        for name in ("workload", "settings"):
            data[name] = tuple((key, value) for key, value in data[name])
        return Scenario(**{**data, "changes": tuple(data["changes"])})

    @staticmethod
    def of_plan(plan: Plan) -> Scenario:
        """The scenario of a plan: the same model, machine, request, cache types and engine, planned anew."""
        settings = {name: plan.settings[name] for name in _KEPT if name in plan.settings}
        system = plan.system
        if settings.get("engine") == IK:
            system = IK
        fixed = {name: value for name, value in settings.items() if name not in _IK_SETTINGS}
        asked = plan.workload.model_dump(exclude_none=True, exclude_defaults=True)
        return Scenario(
            model=plan.model,
            machine=plan.machine,
            quant=plan.quant,
            changes=tuple(plan.set),
            system=system,
            objective="throughput" if system == "flexgen" else "request",
            workload=tuple(sorted(asked.items())),
            settings=tuple(sorted(fixed.items())),
        )


_KEPT = ("cache_k", "cache_v", "engine", "release", "margin", "threads")
"""Settings of a plan that a person chose rather than the planner."""


def checked_objective(text: str) -> Objective:
    """An objective by name.

    Raises:
        InputError: there is none of that name.
    """
    known: tuple[Objective, ...] = get_args(Objective)
    for name in known:
        if text == name:
            return name
    raise InputError(f"objective: '{text[:40]}' is not one of {', '.join(known)}")


def _merged(old: tuple[tuple[str, Any], ...], new: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((dict(old) | dict(new)).items()))


Combination = Literal["cartesian", "paired"]
"""How several swept paths go together: every value with every other, or the first with the first and so on."""
