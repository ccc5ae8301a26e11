"""The document of ``stowplan batch --json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stowplan.cli.document_record import DocumentRecord
from stowplan.plan import Plan

if TYPE_CHECKING:
    from stowplan.planner.batching import Batching
    from stowplan.planner.batching_costs import Requests
    from stowplan.planner.batching_from_plan import Chosen


class BatchLimits(DocumentRecord):
    """What a batch may hold."""

    cache_tokens: int = Field(description="tokens of KV cache, shared by the requests of a batch")
    max_batch: int = Field(description="requests")


class BatchCost(DocumentRecord):
    """Coefficients of a batch's time, and how far they are from the plan's own step prices."""

    step_s: list[float] = Field(description="seconds of a decode step with 1, 2 ... requests, their caches apart")
    context_s: float = Field(description="seconds per cached token that a decode step reads")
    pass_s: float = Field(description="seconds of a micro-batch of prompt tokens, whatever it holds")
    token_s: float = Field(description="seconds per prompt token")
    pair_s: float = Field(description="seconds per pair of a prompt's token and one that it attends to")
    micro_batch: int = Field(description="tokens of a micro-batch")
    decode_error: float = Field(description="largest relative deviation of a decode step; 0.01 is 1 %")
    prefill_error: float = Field(description="largest relative deviation of a micro-batch; 0.01 is 1 %")


class FormedBatch(DocumentRecord):
    """Requests that run together."""

    requests: list[int] = Field(description="places in the file, from 0, longest outputs first")
    prefill_s: float = Field(description="seconds of the prompts")
    decode_s: float = Field(description="seconds of the decode steps")
    reserved_tokens: int = Field(description="tokens of KV cache")


class OtherBatching(DocumentRecord):
    """What a rule without search comes to."""

    makespan_s: float = Field(description="seconds of all batches")
    batches: int = Field(description="batches")


class BatchingDocument(DocumentRecord):
    """The document of ``stowplan batch --json``.

    The time that the search took is left out: the same input gives the same bytes.
    """

    schema_version: Literal["stowplan.batching/1"] = Field(
        default="stowplan.batching/1", description="form of the document"
    )
    requests: int = Field(description="requests of the file")
    plan: Plan = Field(description="where every byte lives while they run")
    limits: BatchLimits = Field(description="what a batch may hold")
    cost: BatchCost = Field(description="coefficients of a batch's time")
    method: str = Field(description="what formed the batches: exact, columns, or the name of a rule")
    makespan_s: float = Field(description="seconds of all batches")
    bound_s: float = Field(description="seconds that no batches without padding can beat; 0 where none was sought")
    bounds_s: dict[str, float] = Field(description="seconds of every bound that was found, by name")
    gap: float = Field(description="share of the makespan that is not proven necessary, 0 to 1")
    batches: list[FormedBatch] = Field(description="the batches in the order in which they run")
    others: dict[str, OtherBatching] = Field(description="rules without search, by name")


def batching_document(
    chosen: Chosen, asked: Requests, best: Batching, others: Mapping[str, Batching]
) -> BatchingDocument:
    """The document of batches."""
    cost, fitted = chosen.fitted.cost, chosen.fitted
    return BatchingDocument(
        requests=len(asked),
        plan=chosen.planned.plan,
        limits=BatchLimits(cache_tokens=chosen.limits.cache_tokens, max_batch=chosen.limits.max_batch),
        cost=BatchCost(
            step_s=list(cost.step_s),
            context_s=cost.context_s,
            pass_s=cost.pass_s,
            token_s=cost.token_s,
            pair_s=cost.pair_s,
            micro_batch=cost.micro_batch,
            decode_error=fitted.decode_error,
            prefill_error=fitted.prefill_error,
        ),
        method=best.method,
        makespan_s=best.makespan_s,
        bound_s=best.bound_s,
        bounds_s=dict(best.bounds),
        gap=best.gap,
        batches=[
            FormedBatch(
                requests=list(each.requests),
                prefill_s=each.time.prefill_s,
                decode_s=each.time.decode_s,
                reserved_tokens=each.reserved,
            )
            for each in best.batches
        ],
        others={
            name: OtherBatching(makespan_s=other.makespan_s, batches=len(other.batches))
            for name, other in others.items()
        },
    )
