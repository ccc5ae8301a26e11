"""What programs get: the document of a plan, and how every document is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from stowplan.plan import Interval, MemoryUse, Plan, Prediction, Solver

if TYPE_CHECKING:
    from stowplan.planner.result import Planned
    from stowplan.planner.upgrades import Upgrade


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OtherPlacement(_Record):
    """A runner-up: its name, what it does, its objective in seconds, and whether the engine would choose it itself."""

    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost_s: float
    default: bool


class Change(_Record):
    """One thing changed and the best plan with it; `quality` says whether the model's answers change."""

    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost_s: float
    quality: bool


class BatchPoint(_Record):
    """One batch size: tokens/s of the whole batch, seconds per token of one request, seconds to its first token."""

    batch: int
    decode_tokens_per_s: float
    tpot_s: float
    ttft_s: float


class Answer(_Record):
    """The answer of ``stowplan plan --json``.

    Attributes:
        decode_tokens_per_s ... command: the prediction's main figures once more, for short scripts.
        prediction, plan: all of it; `plan` is what ``-o`` writes and ``stowplan predict`` reads.
        cost_s: objective of the plan in seconds.
        alternatives: runners-up, best first.
        worth: seconds of the objective that one more byte of each tier saves.
        batch_curve: every batch size that was tried.
        upgrades: single changes and what they bring, most helpful first; empty unless asked for.
        simulated_step_s: a decode step of the plan in the simulator.
    """

    schema_version: Literal["stowplan.answer/1"] = "stowplan.answer/1"
    decode_tokens_per_s: float
    per_request_tokens_per_s: float
    prefill_tokens_per_s: float
    ttft_s: float
    tpot_s: float
    memory_bytes: dict[str, MemoryUse]
    bottleneck: str
    interval: dict[str, Interval]
    solver: Solver | None
    command: str | None
    objective: str
    cost_s: float
    simulated_step_s: float
    prediction: Prediction
    plan: Plan
    alternatives: list[OtherPlacement]
    worth: dict[str, float]
    batch_curve: list[BatchPoint]
    upgrades: list[Change] = []


def answer_of(planned: Planned, objective: str, simulated_s: float, changes: Sequence[Upgrade] = ()) -> Answer:
    """The document of a plan."""
    prediction = planned.prediction
    return Answer(
        decode_tokens_per_s=prediction.decode_tokens_per_s,
        per_request_tokens_per_s=prediction.per_request_tokens_per_s,
        prefill_tokens_per_s=prediction.prefill_tokens_per_s,
        ttft_s=prediction.ttft_s,
        tpot_s=prediction.tpot_s,
        memory_bytes=prediction.memory_bytes,
        bottleneck=prediction.bottleneck,
        interval=prediction.interval,
        solver=prediction.solver,
        command=prediction.command,
        objective=objective,
        cost_s=planned.cost,
        simulated_step_s=simulated_s,
        prediction=prediction,
        plan=planned.plan,
        alternatives=[
            OtherPlacement(
                title=each.title,
                decode_tokens_per_s=each.decode_tokens_per_s,
                ttft_s=each.ttft_s,
                cost_s=each.cost,
                default=each.default,
            )
            for each in planned.alternatives
        ],
        worth=dict(planned.worth),
        batch_curve=[
            BatchPoint(batch=batch, decode_tokens_per_s=rate, tpot_s=step, ttft_s=first)
            for batch, rate, step, first in planned.batch_curve
        ],
        upgrades=[
            Change(
                title=each.title,
                decode_tokens_per_s=each.decode_tokens_per_s,
                ttft_s=each.ttft_s,
                cost_s=each.cost,
                quality=each.quality,
            )
            for each in changes
        ],
    )


def as_json(document: BaseModel | Mapping[str, Any]) -> str:
    """Indented JSON, the same for the same document."""
    data = document.model_dump(mode="json", by_alias=True) if isinstance(document, BaseModel) else document
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
