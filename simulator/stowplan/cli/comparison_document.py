"""The document of ``stowplan compare --json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from stowplan.plan import MemoryUse, Workload

if TYPE_CHECKING:
    from stowplan.planner.comparison import Compared, Comparison


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComparedSystem(_Record):
    """One system: speeds, the objective in seconds, what limits it, bytes by tier, whether exact, what it chose."""

    system: str
    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost_s: float
    bottleneck: str
    time_shares: dict[str, float]
    memory_bytes: dict[str, MemoryUse]
    exact: bool
    quality: str
    settings: dict[str, Any]


class RefusedSystem(_Record):
    """A system that cannot run the work, and why."""

    system: str
    title: str
    reason: str


class ComparisonDocument(_Record):
    """The answer of ``stowplan compare --json``.

    Attributes:
        objective: what every plan minimises.
        systems: best first by the objective.
        refused: those that cannot run the work.
        ideal: the exact mechanisms composed, with kernels at the machine's rates.
        floor_tokens_per_s: decode rate that no exact engine can exceed.
    """

    schema_version: Literal["stowplan.comparison/1"] = "stowplan.comparison/1"
    machine: str
    model: str
    quant: str
    workload: Workload
    objective: str
    systems: list[ComparedSystem]
    refused: list[RefusedSystem]
    ideal: ComparedSystem | None
    floor_tokens_per_s: float | None


def comparison_document(found: Comparison, machine: str, model: str, quant: str) -> ComparisonDocument:
    """The document of a comparison."""
    return ComparisonDocument(
        machine=machine,
        model=model,
        quant=quant,
        workload=found.workload,
        objective=found.objective,
        systems=[_system(each) for each in found.runs],
        refused=[RefusedSystem(system=each.key, title=each.title, reason=each.reason) for each in found.refused],
        ideal=_system(found.ideal) if found.ideal is not None else None,
        floor_tokens_per_s=found.floor_tokens_per_s,
    )


def _system(each: Compared) -> ComparedSystem:
    return ComparedSystem(
        system=each.key,
        title=each.title,
        decode_tokens_per_s=each.decode_tokens_per_s,
        ttft_s=each.ttft_s,
        cost_s=each.cost_s,
        bottleneck=each.bottleneck,
        time_shares=dict(each.shares),
        memory_bytes=dict(each.memory),
        exact=each.exact,
        quality=each.quality,
        settings=dict(each.settings),
    )
