"""A case through the same door as a user's command: its machine, its model, and the plan that its command means."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import lru_cache

from stowplan.errors import DoesNotFit, StowplanError
from stowplan.machines import Machine, load_machine
from stowplan.models import Model, load_model
from stowplan.plan import Workload
from stowplan.planner.commands import Hints, Understood, understand
from stowplan.validate.cases import Case
from stowplan.validate.rows import Result, Row


def machine_of(case: Case) -> Machine:
    """The machine that a case ran on."""
    return _machine(case.machine, case.overrides)


@lru_cache(maxsize=256)
def _machine(spec: str, overrides: tuple[str, ...]) -> Machine:
    return load_machine(spec, overrides)


@lru_cache(maxsize=16)
def _model(name: str, quant: str) -> Model:
    return load_model(name, quant)


def attempt(case: Case, rows: Callable[[], tuple[Row, ...]]) -> Result:
    """Rows of a case, or the sentence why there are none."""
    ran = not case.out_of_memory
    try:
        return Result(rows=rows(), ran=ran)
    except DoesNotFit as error:
        return Result(refused=str(error), does_not_fit=True, ran=ran)
    except StowplanError as error:
        return Result(refused=str(error), ran=ran)


def understood(case: Case) -> Understood:
    """Setup and plan of a case.

    Raises:
        StowplanError: the command holds something that cannot be understood or placed.
    """
    machine, model = machine_of(case), _model(case.model, case.quant)
    hints = Hints(
        model=case.model,
        quant=case.quant,
        workload=Workload(prompt=case.prompt, generate=case.generate, depth=case.depth, batch=case.batch),
        release="current" if case.engine_version == "current" else "pre-2025-12",
        ik=case.engine_version == "ik",
        built=case.date,
        loaded=model,
    )
    return understand(shlex.split(case.command), machine, hints)
