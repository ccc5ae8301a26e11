"""The documents of ``stowplan replay --json`` and ``stowplan capacity --json``."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stowplan.cli.document_record import DocumentRecord

if TYPE_CHECKING:
    from stowplan.cli.served import Served
    from stowplan.serving.answers import Answers
    from stowplan.serving.capacity import Capacity
    from stowplan.serving.economics import Costs
    from stowplan.traces.trace import Trace


class Latency(DocumentRecord):
    """Distribution of a latency over the requests that have it."""

    count: int = Field(description="requests")
    mean: float = Field(description="seconds")
    percentiles: dict[str, float] = Field(description="seconds by percentile: 50, 90, 95, 99")
    largest: float = Field(description="seconds")


class ReplayCosts(DocumentRecord):
    """Energy and money of a replay, at most; null where the machine's profile lacks what it takes."""

    joules_per_token: float | None = Field(description="joules per generated token")
    kwh: float | None = Field(description="kilowatt-hours in all")
    usd_per_million: float | None = Field(description="US dollars per million generated tokens")


class _Served(DocumentRecord):
    """What a trace and a service came to."""

    schema_version: str
    trace: str = Field(description="name or file of the trace")
    origin: str = Field(description="where the trace comes from and how it was changed")
    model: str = Field(description="name of the model")
    quant: str = Field(description="storage mix of the weights")
    machine: str = Field(description="name of one machine")
    system: str = Field(description="key of the system that serves")
    scheduler: str = Field(description="how steps are filled")
    scheduled_ahead: bool = Field(description="whether a step is filled while the one before it runs")
    cache_tokens: int = Field(description="tokens that the KV cache of one engine holds")
    counts: dict[str, int] = Field(description="requests by the state that they ended in")
    span_s: float = Field(description="seconds from the first arrival to the last token")
    queue: Latency | None = Field(description="seconds from arrival until first scheduled; null where no request was")
    ttft: Latency | None = Field(description="seconds from arrival to the first token; null where there was none")
    tpot: Latency | None = Field(description="seconds per token after the first; null without answers of two tokens")
    e2e: Latency | None = Field(description="seconds from arrival to the last token; null where none finished")
    requests_per_s: float = Field(description="finished requests per second of the span")
    prompt_tokens_per_s: float = Field(description="prompt tokens of finished requests per second of the span")
    output_tokens_per_s: float = Field(description="output tokens of finished requests per second of the span")
    attainment: float | None = Field(description="share of all requests within the objective, 0 to 1; null without one")
    goodput_per_s: float | None = Field(description="requests within the objective per second; null without one")
    preemptions: int = Field(description="preemptions in all")
    preempted: int = Field(description="requests that were preempted at least once")
    peak_cache: float = Field(description="largest share of the KV cache in use, 0 to 1")
    engines: int = Field(description="engines that served")
    busy: float = Field(description="share of the span in which an engine ran a step, over all of them, 0 to 1")
    mean_tokens: float = Field(description="tokens that a step processed on average")
    hit_rate: float | None = Field(
        description="share of the tokens of admitted prompts that a prefix cache had, 0 to 1; null without one"
    )
    hits: dict[str, float] = Field(description="shares of it by place, the GPU first; empty without a cache")
    timed_out_tokens: int = Field(description="tokens that were generated for nobody")


class ReplayDocument(_Served):
    """The document of ``stowplan replay --json``."""

    schema_version: Literal["stowplan.replay/1"] = Field(
        default="stowplan.replay/1", description="form of the document"
    )
    costs: ReplayCosts = Field(description="energy and money")


class TriedRate(DocumentRecord):
    """One replay of a search."""

    rate: float | None = Field(description="requests per second; null where all arrive at once")
    engines: int = Field(description="engines that served")
    attainment: float = Field(description="share of the requests within the objective, 0 to 1")


class CapacityDocument(_Served):
    """The document of ``stowplan capacity --json``: what was found, and the replay there."""

    schema_version: Literal["stowplan.capacity/1"] = Field(
        default="stowplan.capacity/1", description="form of the document"
    )
    rate: float | None = Field(description="requests per second that are carried; null where all arrive at once")
    tried: list[TriedRate] = Field(description="every replay, in order")


def replay_document(trace: Trace, served: Served, answers: Answers, scheduler: str, costs: Costs) -> ReplayDocument:
    """The document of a replay."""
    return ReplayDocument.model_validate(_served(trace, served, answers, scheduler) | {"costs": asdict(costs)})


def capacity_document(trace: Trace, served: Served, found: Capacity) -> CapacityDocument:
    """The document of a search."""
    tried = [{"rate": _finite(at), "engines": count, "attainment": met} for at, count, met in found.tried]
    told = {"rate": _finite(found.rate), "engines": found.engines, "tried": tried}
    return CapacityDocument.model_validate(_served(trace, served, found.answers, served.service.scheduler) | told)


def _served(trace: Trace, served: Served, answers: Answers, scheduler: str) -> dict[str, Any]:
    figures = asdict(answers)
    for latency in ("queue", "ttft", "tpot", "e2e"):
        if (found := figures[latency]) is not None:
            found["percentiles"] = {str(rank): value for rank, value in found["percentiles"].items()}
    return {
        "trace": trace.name,
        "origin": trace.origin,
        "model": served.setup.model.name,
        "quant": served.setup.model.quant,
        "machine": served.setup.machine.name,
        "system": served.plan.system,
        "scheduler": scheduler,
        "scheduled_ahead": served.ahead,
        "cache_tokens": served.engine.cache_tokens,
        **figures,
    }


def _finite(rate: float) -> float | None:
    """For JSON, which has no infinity: None where all requests arrive at once."""
    return rate if isfinite(rate) else None
