"""The documents of ``stowplan whatif --json``: the answer, a sweep, a break-even point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from stowplan.cli.document_record import DocumentRecord
from stowplan.plan import Plan

if TYPE_CHECKING:
    from stowplan.whatif.answer import WhatIf
    from stowplan.whatif.sweep import Sweep
    from stowplan.whatif.until import BreakEven

Pair = tuple[float, float]
_BYTES = "_bytes"


class AskedScenario(DocumentRecord):
    """What was asked."""

    model: str = Field(description="model as it was named")
    machine: str = Field(description="machine as after --on")
    quant: str | None = Field(description="storage mix; null for the model's own")
    changes: list[str] = Field(description="overrides of the machine, path=value, in order")
    system: str = Field(description="key of the system")
    objective: str = Field(description="what is made fast: request, decode, ttft or throughput")
    workload: list[tuple[str, int]] = Field(description="name and number of what is asked: tokens, for batch requests")
    settings: list[tuple[str, str | int | float | bool | None]] = Field(description="name and value of fixed settings")
    any_batch: bool = Field(description="whether the batch is chosen too")


class Moved(DocumentRecord):
    """How log times move when one figure gets worse by one standard deviation."""

    name: str = Field(description="the figure")
    source: str = Field(description="where it was read")
    sd: float = Field(description="relative standard deviation; 0.01 is 1 %")
    decode: float = Field(description="move of the logarithm of a decode step's time")
    prefill: float = Field(description="move of the logarithm of the prompt's time")


class PlannedOutcome(DocumentRecord):
    """The best plan of the scenario."""

    error: str | None = Field(description="why there is no plan; else null")
    cost_s: float | None = Field(description="seconds of the objective")
    figures: dict[str, float] | None = Field(description="by name: tokens/s (_per_s) and seconds (_s)")
    interval: dict[str, Pair] | None = Field(description="80 % intervals of figures, least and most, units as theirs")
    bottleneck: str = Field(description="what limits a decode step")
    prefill_bottleneck: str = Field(description="what limits the prompt")
    shares: dict[str, float] | None = Field(description="share of a decode step by resource, 0 to 1")
    memory: dict[str, Pair] | None = Field(description="bytes used and available by tier")
    price_usd: float | None = Field(description="US dollars of the machine; null where a part has no price")
    plan: Plan | None = Field(description="where every byte lives")
    command: str | None = Field(description="what to run")
    moves: list[Moved] = Field(description="how far each figure's uncertainty moves the times")
    model_sd: Pair = Field(description="spread of log times that the model leaves: decode, prefill")
    hardware: list[str] = Field(description="keys of the GPUs and the CPU")


class PricedResource(DocumentRecord):
    """Something that there could be more of."""

    key: str = Field(description="name for programs")
    title: str = Field(description="name for people")
    unit: str = Field(description="unit of one more, such as GiB or GB/s")
    amount: float = Field(description="how much there is, in units")
    tiers: list[str] = Field(description="memory tiers that grow together; empty for a rate")
    figures: list[str] = Field(description="figures that rise together; empty for a memory")


class PricedUnit(DocumentRecord):
    """What one more unit of a resource is worth."""

    resource: PricedResource = Field(description="which")
    relaxed: float | None = Field(
        description="tokens/s per unit at the margin, by the relaxed programme; null where no programme found the plan"
    )
    step: float = Field(description="units that were added to confirm it")
    resolved: float | None = Field(description="tokens/s per unit, solved again with the step; null where it cannot be")
    noise: float = Field(description="tokens/s per unit that two proofs within the solver's gap may differ by")
    whole_layers: bool = Field(description="whether the two differ because layers move whole")


class Gain(DocumentRecord):
    """A ratio to what is now, with its 80 % interval."""

    ratio: float = Field(description="after over before")
    low: float = Field(description="least of the 80 % interval")
    high: float = Field(description="most of the 80 % interval")
    certain: bool = Field(description="whether the interval leaves out that nothing changes")


class SingleChange(DocumentRecord):
    """One change and what the best plan does with it."""

    title: str = Field(description="the change in words")
    decode_tokens_per_s: float | None = Field(description="tokens/s of decode")
    ttft_s: float | None = Field(description="seconds to the first token")
    interval: dict[str, Pair] | None = Field(description="80 % intervals of figures, least and most, units as theirs")
    gain: Gain = Field(description="how many times faster the objective is")
    decode_ratio: Gain = Field(description="decode tokens/s over those before")
    price_usd: float | None = Field(description="US dollars of what is bought; null where not known or nothing is")
    usd_per_token_per_s: float | None = Field(description="US dollars per token/s of decode gained; null without")
    quality: bool = Field(description="whether the model's answers change with it")


class WhatIfDocument(DocumentRecord):
    """The document of ``stowplan whatif --json``."""

    schema_version: Literal["stowplan.whatif/1"] = Field(
        default="stowplan.whatif/1", description="form of the document"
    )
    scenario: AskedScenario = Field(description="what was asked")
    plan: PlannedOutcome = Field(description="the best plan as it is")
    speed_tokens_per_s: float = Field(description="tokens/s of the objective, which shadow prices count")
    shadow_prices: list[PricedUnit] = Field(description="what one more unit of every resource is worth")
    changes: list[SingleChange] = Field(description="single changes, most helpful first")


class SweepFigures(DocumentRecord):
    """Figures of one variant; null where there is no plan. Further fields: TIER_bytes, bytes used on each tier."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | str | None]

    decode_tokens_per_s: float | None = Field(description="tokens/s of decode")
    decode_tokens_per_s_low: float | None = Field(description="least of its 80 % interval, tokens/s")
    decode_tokens_per_s_high: float | None = Field(description="most of its 80 % interval, tokens/s")
    request_tokens_per_s: float | None = Field(description="tokens/s of whole requests")
    prefill_tokens_per_s: float | None = Field(description="tokens/s of prompts")
    ttft_s: float | None = Field(description="seconds to the first token")
    ttft_s_low: float | None = Field(description="least of its 80 % interval, seconds")
    ttft_s_high: float | None = Field(description="most of its 80 % interval, seconds")
    tpot_s: float | None = Field(description="seconds per further token")
    bottleneck: str | None = Field(description="what limits a decode step")
    price_usd: float | None = Field(description="US dollars of the machine; null where a part has no price")
    error: str | None = Field(description="why there is no plan; else null")


class SweepRow(SweepFigures):
    """One variant. Further fields: the value of every swept path as a text, and TIER_bytes."""

    decode_ratio: float | None = Field(description="decode over that of the unchanged scenario")
    decode_ratio_low: float | None = Field(description="least of its 80 % interval")
    decode_ratio_high: float | None = Field(description="most of its 80 % interval")
    certain: bool | None = Field(description="whether the interval leaves out that nothing changes")
    front: bool = Field(description="whether the variant is on the Pareto front")
    command: str | None = Field(description="what to run")


class SweptAxis(DocumentRecord):
    """A path and the values that it takes."""

    path: str = Field(description="what is varied, such as gpu.memory")
    values: list[str] = Field(description="texts with units")


class SweepDocument(DocumentRecord):
    """The document of ``stowplan whatif --sweep ... --json``."""

    schema_version: Literal["stowplan.sweep/1"] = Field(default="stowplan.sweep/1", description="form of the document")
    scenario: AskedScenario = Field(description="the unchanged scenario")
    base: SweepFigures = Field(description="figures of the unchanged scenario")
    axes: list[SweptAxis] = Field(description="what was varied")
    front: list[str] = Field(description="what the Pareto front is drawn over")
    rows: list[SweepRow] = Field(description="one per variant, in order")

    @model_validator(mode="after")
    def _names_further_fields(self) -> Self:
        """Beyond the named fields a row has the swept paths, as texts, and bytes by tier."""
        paths = {axis.path for axis in self.axes}
        for row, swept in [(self.base, set[str]()), *((row, paths) for row in self.rows)]:
            further = row.__pydantic_extra__
            if swept - further.keys():
                raise ValueError(f"a row lacks {', '.join(sorted(swept - further.keys()))}")
            for name, value in further.items():
                if isinstance(value, str) != (name in swept) or not (name in swept or name.endswith(_BYTES)):
                    raise ValueError(f"'{name}' is neither a swept path nor bytes of a tier")
        return self


class BreakEvenDocument(DocumentRecord):
    """The document of ``stowplan whatif --until ... --json``."""

    schema_version: Literal["stowplan.breakeven/1"] = Field(
        default="stowplan.breakeven/1", description="form of the document"
    )
    path: str = Field(description="what was varied")
    until: str = Field(description="what it must reach, such as decode=10 (tokens/s)")
    range: tuple[str, str] = Field(description="both ends, texts with units")
    tried: int = Field(description="plans that were made")
    value: str | None = Field(
        description="the least (of a context: the most) that reaches it, a text with its unit; null where nothing does"
    )
    figures: dict[str, float] | None = Field(
        description="there, or at the best end of the range: tokens/s (_per_s) and seconds (_s) by name"
    )
    error: str | None = Field(description="why there is no plan; else null")


def whatif_document(answer: WhatIf) -> WhatIfDocument:
    """The document of an answer."""
    from stowplan.whatif.answer import as_document

    return WhatIfDocument.model_validate(as_document(answer))


def sweep_document(found: Sweep, wishes: Sequence[str]) -> SweepDocument:
    """The document of a sweep: what ``-o FILE.json`` writes."""
    from stowplan.whatif.records import document

    return SweepDocument.model_validate(document(found, wishes))


def break_even_document(found: BreakEven, until: str) -> BreakEvenDocument:
    """The document of a break-even point."""
    outcome = found.outcome
    return BreakEvenDocument(
        path=found.path,
        until=until,
        range=found.ends,
        tried=found.tried,
        value=found.value,
        figures=None if outcome.figures is None else dict(outcome.figures),
        error=outcome.error,
    )
