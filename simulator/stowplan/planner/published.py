"""The best plan of a published system for a work: its choices are enumerated, tiers filled, each variant simulated."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from stowplan.errors import DoesNotFit, InputError
from stowplan.plan import Plan, Solver, Workload
from stowplan.planner.predict import predict
from stowplan.planner.result import Alternative, Planned, Request
from stowplan.planner.serial_search import Objective, Weights
from stowplan.systems.base import Evaluation, Setup
from stowplan.systems.mechanisms.policy import Experts, Policy
from stowplan.systems.mechanisms.residency import check, filled
from stowplan.systems.published.base import Published, changed, differences
from stowplan.systems.published.system import PublishedSystem

_KEPT = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """One policy of a system with its tiers filled, and what it does."""

    policy: Policy
    plan: Plan
    evaluation: Evaluation
    cost: float


def placed(system: PublishedSystem, setup: Setup, workload: Workload, settings: Mapping[str, object]) -> Policy:
    """The system's policy with some fields given and its tiers filled.

    Args:
        system: the system.
        setup: with the system's own figures.
        workload: what is asked.
        settings: dotted fields; a share that is given (``weights.gpu``) is not filled, and the rest of it is in host
            memory unless that is given too.

    Raises:
        DoesNotFit: something has no room.
        InputError: no such field, or a value out of range.
    """
    declared = system.declared
    for name in ("weights", "cache", "experts"):
        share = settings.get(f"{name}.gpu")
        if isinstance(share, int | float) and f"{name}.ram" not in settings:
            settings = {**settings, f"{name}.ram": max(0.0, 1.0 - share)}
    policy = changed(declared.policy, settings)
    fills = tuple(name for name in declared.fills if f"{name}.gpu" not in settings and _present(name, setup))
    if not fills:
        check(setup, system.kernels, policy, workload)
        return policy
    return filled(setup, system.kernels, policy, workload, gpu=fills, disk=declared.disk)


def _present(name: str, setup: Setup) -> bool:
    return name != "experts" or any(layer.experts for layer in setup.model.layers)


def variants(
    system: PublishedSystem,
    setup: Setup,
    workload: Workload,
    objective: Objective = "request",
    settings: Mapping[str, object] | None = None,
) -> list[Variant]:
    """Every variant that fits, best first.

    Raises:
        DoesNotFit: none fits; the sentence is that of the one that lacks least.
        NotExpressible: the system was not made for the model or the machine.
    """
    system.refuse(setup)
    given, declared = dict(settings or {}), system.declared
    weights = Weights.of(objective, workload)
    found: list[Variant] = []
    tried: set[Policy] = set()
    least: DoesNotFit | None = None
    for variant in declared.variants():
        chosen = _not_given(differences(declared.policy, variant), given)
        try:
            policy = _effective(placed(system, setup, workload, chosen | given), setup, workload)
        except DoesNotFit as error:
            if least is None or error.missing_bytes < least.missing_bytes:
                least = error
            continue
        if policy in tried:
            continue
        tried.add(policy)
        plan = system.plan(setup, workload, policy)
        evaluation = system.evaluate(setup, plan)
        found.append(Variant(policy, plan, evaluation, weights.cost(evaluation)))
    if not found:
        raise least or DoesNotFit(f"no variant of {system.title} fits")
    return sorted(found, key=lambda each: each.cost)


def _effective(policy: Policy, setup: Setup, workload: Workload) -> Policy:
    """The policy without settings of what the model, the machine or the work does not have."""
    if not policy.weights.away and policy.weights.cpu:
        policy = replace(policy, weights=replace(policy.weights, cpu=0.0))
    if policy.experts != Experts() and not _present("experts", setup):
        policy = replace(policy, experts=Experts())
    if policy.chunk is not None and policy.chunk >= workload.prompt:
        policy = replace(policy, chunk=None)
    return policy


def _not_given(values: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Choices that are still open: not given, and no host share of something whose share on the GPU is given."""
    return {
        path: value
        for path, value in values.items()
        if path not in given and not (path.endswith(".ram") and path.replace(".ram", ".gpu") in given)
    }


def plan_published(declared: Published, request: Request) -> Planned:
    """The best plan of a published system that has no engine of its own.

    Raises:
        DoesNotFit, NotExpressible, InputError: see `variants`.
    """
    started = time.perf_counter()
    system = PublishedSystem(declared)
    setup = system.own(request.setup)
    for name in request.settings:
        if not isinstance(name, str):
            raise InputError(f"a setting's name must be a text, not {name!r}")
    request.progress(declared.title)
    found = variants(system, setup, request.workload, request.objective, request.settings)
    best = found[0]
    names = {"set": setup.machine.settings, "model": request.model_reference[0], "quant": request.model_reference[1]}
    plan = best.plan.model_copy(update=names)
    solver = Solver(
        name="enumeration",
        status="optimal",
        objective=best.cost,
        bound=best.cost,
        gap=0.0,
        seconds=time.perf_counter() - started,
        programmes=len(found),
    )
    prediction = predict(setup, plan, system, solver)
    return Planned(
        plan=plan,
        # It has no command line; the sentence that says so is for those who ask for one.
        prediction=prediction.model_copy(
            update={"warnings": [each for each in prediction.warnings if "without a command line" not in each]}
        ),
        cost=best.cost,
        alternatives=[_alternative(best, each, request.workload) for each in found[1 : 1 + _KEPT]],
        worth={},
        batch_curve=[],
    )


def _alternative(best: Variant, other: Variant, workload: Workload) -> Alternative:
    changes = differences(best.policy, other.policy)
    title = ", ".join(f"{path} {_short(value)}" for path, value in changes.items())
    decode_s = other.evaluation.decode_s
    return Alternative(title or "the same", workload.batch / decode_s, other.evaluation.prefill_s, other.cost)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
