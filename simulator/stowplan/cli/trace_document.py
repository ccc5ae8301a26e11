"""The documents of ``stowplan traces list --json`` and ``stowplan traces stats --json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, RootModel

from stowplan.cli.document_record import DocumentRecord

if TYPE_CHECKING:
    from stowplan.traces.catalogue import Entry
    from stowplan.traces.stats import Statistics


class NamedTrace(DocumentRecord):
    """A trace that has a name."""

    name: str = Field(description="what commands call it")
    kind: Literal["excerpt", "generator", "download"] = Field(description="shipped, made here, or to be fetched")
    here: bool = Field(description="whether its file is on this machine")
    title: str = Field(description="what it is")
    licence: str = Field(description="licence of the data")
    attribution: str = Field(description="whom to name where it is used")


class TraceListDocument(RootModel[list[NamedTrace]]):
    """The document of ``stowplan traces list --json``."""


class ValueSpread(DocumentRecord):
    """A distribution, in the unit of its values."""

    mean: float = Field(description="mean")
    sd: float = Field(description="standard deviation")
    least: float = Field(description="smallest value")
    most: float = Field(description="largest value")
    quantiles: dict[str, float] = Field(description="quantiles by level, such as 0.5")


class PrefixReuse(DocumentRecord):
    """How much of the prompts has been seen before, with a cache that never forgets."""

    block_tokens: int = Field(description="tokens per block")
    blocks: int = Field(description="blocks of all prompts")
    distinct: int = Field(description="different blocks among them")
    seen_share: float = Field(description="share of the blocks that an earlier request had too, 0 to 1")
    hit_tokens_share: float = Field(
        description="share of the prompt tokens in the run of seen blocks that a prompt begins with, 0 to 1"
    )


class Conversations(DocumentRecord):
    """Requests that follow one another."""

    sessions: int = Field(description="conversations")
    requests: int = Field(description="requests in them")
    turns: ValueSpread = Field(description="requests per conversation")
    gap_s: ValueSpread | None = Field(description="seconds between turns; null where there is no gap")


class TraceStatisticsDocument(DocumentRecord):
    """The document of ``stowplan traces stats --json``."""

    schema_version: Literal["stowplan.trace-statistics/1"] = Field(
        default="stowplan.trace-statistics/1", description="form of the document"
    )
    name: str = Field(description="name or file of the trace")
    origin: str = Field(description="where it comes from and how it was changed")
    requests: int = Field(description="requests")
    duration_s: float = Field(description="seconds from the first to the last arrival")
    rate: float | None = Field(description="requests per second; null where all arrive at once")
    gap_cv: float | None = Field(
        description="coefficient of variation of the gaps between arrivals, 1 for Poisson; null below two gaps"
    )
    fano: dict[str, float] = Field(
        description="variance over mean of the arrivals per window, 1 for Poisson, by the window's seconds"
    )
    prompt_total: int = Field(description="tokens of all prompts")
    output_total: int = Field(description="tokens of all outputs")
    prompt: ValueSpread = Field(description="tokens of a prompt")
    output: ValueSpread = Field(description="tokens of an output")
    correlation: float | None = Field(
        description="correlation of the logarithms of both lengths, -1 to 1; null where one of them never changes"
    )
    reuse: PrefixReuse | None = Field(description="reuse of prefixes; null where the trace tells none")
    sessions: Conversations | None = Field(description="conversations; null where the trace tells none")
    dropped: dict[str, int] = Field(description="rows left out while reading, by reason")


def trace_list_document(entries: Iterable[Entry]) -> TraceListDocument:
    """The document of named traces."""
    return TraceListDocument(
        [
            NamedTrace(
                name=each.name,
                kind=each.kind,
                here=each.path.is_file(),
                title=each.title,
                licence=each.licence,
                attribution=each.attribution,
            )
            for each in entries
        ]
    )


def trace_statistics_document(found: Statistics) -> TraceStatisticsDocument:
    """The document of a trace's statistics."""
    return TraceStatisticsDocument.model_validate(found.document())
