"""Published systems and engines on one work, side by side: each one's best plan, or why it cannot run the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stowplan.errors import DoesNotFit, NotExpressible, StowplanError
from stowplan.machines.machine import Machine
from stowplan.models.model import Model
from stowplan.plan import MemoryUse, Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.ideal import decode_floor
from stowplan.planner.predict import make_setup
from stowplan.planner.published import Variant, variants
from stowplan.planner.result import Request
from stowplan.planner.serial_search import Objective, Weights
from stowplan.systems import load_system
from stowplan.systems.mechanisms.policy import Policy
from stowplan.systems.published import load_published, published_keys
from stowplan.systems.published.base import Published, differences
from stowplan.systems.published.ideal import SYSTEM as IDEAL
from stowplan.systems.published.system import PublishedSystem


@dataclass(frozen=True, slots=True)
class Compared:
    """One system on the work.

    Attributes:
        key, title: its names.
        decode_tokens_per_s: of the whole batch; ttft_s: until all prompts have their first token.
        cost_s: the objective.
        bottleneck: resource with the largest share of a decode step.
        shares: share of a decode step by resource.
        memory: use by tier.
        exact: whether its answers are the model's own; quality: what the paper reports where they are not.
        settings: what its plan chose, as dotted fields; empty for engines with a notation of their own.
    """

    key: str
    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost_s: float
    bottleneck: str
    shares: Mapping[str, float]
    memory: Mapping[str, MemoryUse]
    exact: bool
    quality: str
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Refused:
    """A system that cannot run the work, and why."""

    key: str
    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems on one work.

    Attributes:
        objective: what each plan minimises.
        runs: those that run it, best first by the objective.
        refused: those that do not.
        ideal: the exact mechanisms composed, with kernels at the machine's rates; None where it does not fit.
        floor_tokens_per_s: decode rate that no exact engine can exceed.
    """

    workload: Workload
    objective: Objective
    runs: list[Compared]
    refused: list[Refused]
    ideal: Compared | None
    floor_tokens_per_s: float | None

    @property
    def best_exact(self) -> Compared | None:
        """The best of those whose answers are the model's own."""
        return next((each for each in self.runs if each.exact), None)


def compare(
    machine: Machine,
    model: Model,
    reference: tuple[str, str | None],
    workload: Workload,
    *,
    systems: Sequence[str] = (),
    objective: Objective = "request",
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Plan every system for a work.

    Args:
        machine, model: what runs where.
        reference: model and storage mix as the user names them.
        workload: what is asked; its batch is kept.
        systems: keys of published systems, or of engines; all published ones when empty.
        objective: what each plan minimises.
        progress: told which system is being planned.

    Raises:
        UnknownName: no such system.
    """
    declared = [load_published(key) for key in systems or published_keys()]
    runs: list[Compared] = []
    refused: list[Refused] = []
    for each in declared:
        progress(each.title)
        try:
            runs.append(_compared(each, machine, model, reference, workload, objective))
        except (DoesNotFit, NotExpressible) as error:
            refused.append(Refused(each.key, each.title, str(error)))
    progress(IDEAL.title)
    setup = PublishedSystem(IDEAL).setup(machine, model)
    try:
        ideal: Compared | None = _compared(IDEAL, machine, model, reference, workload, objective)
    except StowplanError:
        ideal = None
    try:
        floor: float | None = workload.batch / decode_floor(setup, workload)
    except NotExpressible:
        floor = None
    runs.sort(key=lambda row: (row.cost_s, row.key))
    return Comparison(workload, objective, runs, refused, ideal, floor)


def _compared(
    declared: Published,
    machine: Machine,
    model: Model,
    reference: tuple[str, str | None],
    workload: Workload,
    objective: Objective,
) -> Compared:
    if _in_full(declared, model, workload):
        return _planned_in_full(declared, machine, model, reference, workload, objective)
    system = PublishedSystem(declared)
    best: Variant = variants(system, system.setup(machine, model), workload, objective)[0]
    evaluation = best.evaluation
    total = sum(evaluation.decode_shares.values()) or 1.0
    shares = {name: seconds / total for name, seconds in evaluation.decode_shares.items()}
    return Compared(
        key=declared.key,
        title=declared.title,
        decode_tokens_per_s=workload.batch / evaluation.decode_s,
        ttft_s=evaluation.prefill_s,
        cost_s=best.cost,
        bottleneck=max(sorted(shares), key=lambda name: shares[name], default="overhead"),
        shares=shares,
        memory=evaluation.memory,
        exact=declared.quality is None,
        quality=declared.quality or "",
        settings=_chosen(declared, best, model),
    )


def _chosen(declared: Published, best: Variant, model: Model) -> dict[str, object]:
    """What the plan chose; what it says of experts means nothing where there are none."""
    routed = any(layer.experts for layer in model.layers)
    changes = differences(declared.policy, best.policy)
    return {path: value for path, value in changes.items() if routed or not path.startswith("experts.")}


def _in_full(declared: Published, model: Model, workload: Workload) -> bool:
    """Whether the engine behind a system runs it: always without a policy of its own, else for OPT in batches.

    FlexGen's own code runs OPT and chooses its batch where one request is asked for; elsewhere its mechanisms stand in.
    """
    if declared.existing is None:
        return False
    return declared.policy == Policy() or (model.architecture == "opt" and workload.batch > 1)


def _planned_in_full(
    declared: Published,
    machine: Machine,
    model: Model,
    reference: tuple[str, str | None],
    workload: Workload,
    objective: Objective,
) -> Compared:
    key = declared.existing or declared.key
    setup = make_setup(machine, model, load_system(key))
    aim: Objective = "throughput" if key == "flexgen" else objective
    request = Request(setup, reference, workload, aim, dict(declared.settings))
    prediction = plan_for(key, request).prediction
    weights = Weights.of(objective, workload)
    return Compared(
        key=declared.key,
        title=declared.title,
        decode_tokens_per_s=prediction.decode_tokens_per_s,
        ttft_s=prediction.ttft_s,
        cost_s=weights.prefill * prediction.ttft_s + weights.decode * prediction.tpot_s,
        bottleneck=prediction.bottleneck,
        shares=prediction.time_shares,
        memory=prediction.memory_bytes,
        exact=declared.quality is None,
        quality=declared.quality or "",
        settings={},
    )
