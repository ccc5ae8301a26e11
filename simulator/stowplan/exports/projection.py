"""A plan brought to an engine: what the engine will do, where that is not what the plan wants, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.errors import StowplanError
from stowplan.exports.base import Exporter
from stowplan.exports.places import differences
from stowplan.plan import Plan, Prediction
from stowplan.planner.predict import make_setup, predict
from stowplan.systems import list_systems, load_system
from stowplan.systems.base import Setup

_SAME, _MANIFOLD = 0.01, 2.0


@dataclass(frozen=True, slots=True)
class Projection:
    """The result.

    Attributes:
        plan: what the engine will do.
        differences: sentences about what it does otherwise than the plan wants; empty where it does the same.
        prediction: of `plan`; None where stowplan cannot predict it.
        cost: sentence about what the differences cost, or why that is not known; None where there is none.
    """

    plan: Plan
    differences: tuple[str, ...]
    prediction: Prediction | None
    cost: str | None


def project(exporter: Exporter, setup: Setup, plan: Plan) -> Projection:
    """What an engine makes of a plan.

    Raises:
        NotExpressible: the engine cannot run it at all.
    """
    nearest = exporter.nearest(setup, plan)
    found = tuple(differences(setup.model, plan, nearest, exporter.title))
    prediction, reason = predicted(setup, nearest)
    if not found:
        return Projection(nearest, found, prediction, None)
    if prediction is None:
        return Projection(nearest, found, None, f"What that costs is not known: {reason}")
    wanted, unknown = predicted(setup, plan)
    if wanted is None:
        return Projection(nearest, found, prediction, f"What that costs is not known: {unknown}")
    return Projection(nearest, found, prediction, _cost(exporter.title, wanted, prediction))


def predicted(setup: Setup, plan: Plan) -> tuple[Prediction | None, str]:
    """The prediction of a plan, or why there is none."""
    if plan.system not in list_systems():
        return None, f"stowplan does not predict {plan.system} yet"
    system = load_system(plan.system)
    own = make_setup(setup.machine, setup.model, system, plan.settings.get("engine") if _forks(plan) else None)
    try:
        return predict(own, plan, system), ""
    except StowplanError as error:
        return None, f"stowplan does not predict this placement in {plan.system} ({error})"


def _forks(plan: Plan) -> bool:
    return plan.system == "llama.cpp"


def _cost(title: str, wanted: Prediction, got: Prediction) -> str:
    ratio = _seconds(got) / _seconds(wanted)
    speeds = f"decode {wanted.decode_tokens_per_s:.3g} -> {got.decode_tokens_per_s:.3g} tok/s"
    if wanted.ttft_s:
        speeds += f", first token {wanted.ttft_s:.3g} -> {got.ttft_s:.3g} s"
    if abs(ratio - 1) < _SAME:
        return f"The nearest that {title} can do takes as long ({speeds})."
    if ratio >= _MANIFOLD:
        return f"The nearest that {title} can do takes {ratio:.1f} times as long ({speeds})."
    amount = f"costs {100 * (ratio - 1):.0f} %" if ratio > 1 else f"saves {100 * (1 - ratio):.0f} %"
    return f"The nearest that {title} can do {amount} of a request's time ({speeds})."


def _seconds(prediction: Prediction) -> float:
    return prediction.ttft_s + max(1, prediction.workload.generate) * prediction.tpot_s
