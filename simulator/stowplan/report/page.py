"""One self-contained page: the answer first, then pictures of it, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stowplan.engine.run import Run
from stowplan.engine.simulate import simulate
from stowplan.plan import Plan, Prediction
from stowplan.planner.result import Planned
from stowplan.report import answer, grounds, words
from stowplan.report.curve import batch_charts, curve_of
from stowplan.report.lanes import step_lanes
from stowplan.report.markup import Markup, tag
from stowplan.report.operators import groups_of, roofs_of, steps
from stowplan.report.roofline import roofline
from stowplan.report.shell import section, whole_page
from stowplan.report.stowage import hatching, holds, stowage_plan
from stowplan.systems import load_system
from stowplan.systems.base import Setup, System

_WHOLE = 0.98
"""A chunk that takes this share of the time to the first token is the whole prompt."""


def plan_page(setup: Setup, planned: Planned) -> str:
    """The page of a plan that was found, with its runners-up.

    Raises:
        DoesNotFit, NotExpressible: see `stowplan.systems.base.System.evaluate`.
        SimulationError: a step of the plan can never finish.
    """
    return _page(setup, planned.plan, planned.prediction, planned)


def prediction_page(setup: Setup, plan: Plan, prediction: Prediction) -> str:
    """The page of a plan that was given; raises as `plan_page`."""
    return _page(setup, plan, prediction, None)


def _page(setup: Setup, plan: Plan, prediction: Prediction, planned: Planned | None) -> str:
    system, gpus = load_system(plan.system), len(setup.gpus)
    decode = simulate(system.decode_graph(setup, plan))
    prefill = simulate(system.prefill_graph(setup, plan)) if plan.workload.prompt else None
    sections = [
        answer.heading(setup, prediction),
        answer.answers(prediction),
        answer.limits(plan, prediction, decode.graph.rates, gpus),
        answer.warnings(prediction),
        answer.command(prediction),
        *_stowage(setup, plan, prediction),
        *_time(decode, prefill, prediction.ttft_s, gpus),
        *_roofline(system, setup, plan, decode, prefill),
        *_batches(system, setup, plan, planned),
        *_grounds(prediction, planned),
    ]
    return whole_page(f"{prediction.model} on {prediction.machine}", *sections, style="", before=hatching())


def _stowage(setup: Setup, plan: Plan, prediction: Prediction) -> list[Markup]:
    sentence = (
        "Each memory is drawn to its own scale; the thick line is where it is full. Point at a box for its bytes."
    )
    return [section("Where the bytes lie", sentence, stowage_plan(holds(setup, plan, prediction)))]


def _time(decode: Run, prefill: Run | None, ttft_s: float, gpus: int) -> list[Markup]:
    length = words.seconds(decode.makespan)
    content: list[str] = [step_lanes(decode, gpus, of="one decode step")]
    if prefill is not None:
        chunk = words.seconds(prefill.makespan)
        whole = prefill.makespan > _WHOLE * ttft_s
        first = (
            f"The prompt: {chunk}" if whole else f"The first chunk of the prompt: {chunk} of {words.seconds(ttft_s)}"
        )
        content += [tag("h2", first), step_lanes(prefill, gpus, of="the first chunk of the prompt")]
    sentence = "Who works when, in the simulator. Colours are those of the boxes above; pink is copying."
    return [section(f"One decode step: {length}", sentence, *content)]


def _roofline(system: System, setup: Setup, plan: Plan, decode: Run, prefill: Run | None) -> list[Markup]:
    known = steps(system, setup, plan)
    if known is None:
        return []
    groups = groups_of(setup, decode, known[0], "decode")
    if prefill is not None and known[1] is not None:
        groups += groups_of(setup, prefill, known[1], "prefill")
    if not groups:
        return []
    gpus = len(setup.gpus)
    copied = any(group.copied for group in groups)
    rate = max((rate for name, rate in decode.graph.rates.items() if name.endswith(".h2d")), default=0.0)
    link = ("link to GPU", rate) if copied and rate else None
    sentence = (
        "Every dot is a group of operators over all layers, as large as the time it takes: circles in decode, diamonds "
        "in the first chunk of the prompt. Under a slanted line memory is the limit, under a flat one arithmetic. "
        "Copies that an operator waits for count as its time."
    )
    roofs = list(roofs_of(setup, {group.device for group in groups}))
    return [section("What each operator reaches", sentence, roofline(groups, roofs, link, gpus))]


def _batches(system: System, setup: Setup, plan: Plan, planned: Planned | None) -> list[Markup]:
    curve = curve_of(system, setup, plan)
    others: Sequence[tuple[int, float, float, float]] = planned.batch_curve if planned else ()
    if not curve.beaten_by(others):
        others = ()
    if len(curve.points) < 2 and len(others) < 2:
        if curve.too_large is None:
            return []
        sentence = f"With this placement no second request fits: {curve.too_large} at a time need more memory."
        return [section("More requests at a time", sentence)]
    sentence = "Decode with this placement when more requests run together, each with the same prompt and context."
    if curve.too_large is not None:
        sentence += f" {curve.too_large} at a time do not fit."
    if len(others) > 1:
        sentence += " Dashed: the best placement for each batch."
    return [section("More requests at a time", sentence, batch_charts(curve, plan.workload.batch, others))]


def _grounds(prediction: Prediction, planned: Planned | None) -> Iterator[Markup]:
    if planned is not None and planned.alternatives:
        sentence = "What else was tried, best first."
        yield section("Other placements", sentence, grounds.alternatives_table(planned.alternatives, planned.cost))
    if prediction.rests_on:
        sentence = "Numbers that move the prediction, strongest first; the interval follows from their spread."
        new = words.unseen(prediction.unseen)
        sentence += f" {new[0].upper()}{new[1:]}." if new else ""
        yield section("What this rests on", sentence, grounds.figures_table(prediction.rests_on))
    if planned is not None and prediction.solver is not None:
        yield tag("p", grounds.proof(prediction.solver, prediction.system, planned.cost), class_="note")
