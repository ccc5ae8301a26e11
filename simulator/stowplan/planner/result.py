"""What planning returns: the best plan, its prediction, the runners-up, and what one more byte or byte/s is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stowplan.plan import Plan, Prediction, Workload
from stowplan.planner.serial_search import Objective
from stowplan.systems.base import Setup

if TYPE_CHECKING:
    from stowplan.planner.bench import Bench
    from stowplan.planner.counts import Placement
    from stowplan.planner.predict import Move


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan for.

    Attributes:
        setup: model, machine and figures.
        model_reference: model and storage mix as the user names them.
        workload: what is asked.
        objective: what is minimised.
        settings: knobs that the user has fixed, by the system's own names; the rest is chosen.
        batches: batch sizes to choose from; empty to keep the workload's.
        solver: ``highs`` or ``cbc``.
        write_lp: file to print the winner's programme to.
        progress: told what is being solved.
        bench: what like requests share; None for a fresh one.
        alternatives: whether runners-up, the engine's own placements and the batch curve are wanted beside the winner.
    """

    setup: Setup
    model_reference: tuple[str, str | None]
    workload: Workload
    objective: Objective = "request"
    settings: Mapping[str, object] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    solver: str = "highs"
    write_lp: str | None = None
    progress: Callable[[str], None] = lambda _: None
    bench: Bench | None = None
    alternatives: bool = True


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another placement: what it is, and what it does.

    Attributes:
        title: in the user's words: "all experts in RAM (--cpu-moe)".
        decode_tokens_per_s, ttft_s: of the whole batch.
        cost: objective in seconds, to compare with the winner's.
        default: whether the engine would do this by itself.
    """

    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost: float
    default: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer.

    Attributes:
        plan, prediction: the winner.
        cost: its objective in seconds.
        alternatives: runners-up and the engine's own placements, best first.
        worth: seconds of the objective that one more byte of each tier saves (dual of the relaxed programme).
        batch_curve: (batch, decode tokens/s, TPOT in s, TTFT in s) of every batch size tried.
        moves: how far each figure's uncertainty moves the prediction; empty where the planner keeps none.
        programme: the winner's placement programme, None where there is no single one.
    """

    plan: Plan
    prediction: Prediction
    cost: float
    alternatives: list[Alternative]
    worth: Mapping[str, float]
    batch_curve: list[tuple[int, float, float, float]]
    moves: Sequence[Move] = ()
    programme: Placement | None = None
