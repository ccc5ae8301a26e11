"""What programs get of a comparison with published measurements: the document behind ``stowplan validate --json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from stowplan.validate.rows import Part

if TYPE_CHECKING:
    from stowplan.validate.ablation import Ablation
    from stowplan.validate.pairs import Winners
    from stowplan.validate.rows import Row
    from stowplan.validate.statistics import Errors
    from stowplan.validate.targets import Reached
    from stowplan.validate.validation import Fits, Validation


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FamilyErrors(_Record):
    """Errors of one family: a system, how the weights lie, and a figure. A record counts once.

    Attributes:
        name: the family.
        n: measured figures; records: published records; hardware: kinds of hardware.
        median_signed_error: median of predicted / measured - 1.
        median_abs_error, p90_abs_error: of the absolute relative error.
        interval_coverage: share of measurements inside the predicted 80 % interval; null without intervals.
        interval_spread: median standard deviation of the logarithm that the intervals claim; wanted_spread: the one
            that would hold 82.5 % of the measurements.
        interval_score: mean width of the intervals in logarithms plus ten times what measurements are outside by; the
            smaller the better, and neither wide nor narrow intervals alone make it small.
        target_median: what the median absolute error should be at most; null where nothing was promised.
    """

    name: str
    n: int
    records: int
    hardware: int
    median_signed_error: float
    median_abs_error: float
    p90_abs_error: float
    interval_coverage: float | None
    interval_spread: float | None
    wanted_spread: float | None
    interval_score: float | None
    target_median: float | None


class TargetReached(_Record):
    """A promise and what was reached on held-out hardware; errors and `met` are null where nothing was measured."""

    name: str
    target_median: float
    target_p90: float | None
    n: int
    median_abs_error: float | None
    p90_abs_error: float | None
    met: bool | None


class WinnersPredicted(_Record):
    """Pairs of runs on the same machine, model and lengths: how often the faster one was predicted.

    Attributes:
        name: part, or the systems that are compared and the figure.
        pairs: pairs whose measurements differ by more than 10 %; choices: pairs of records that they come from.
        share: share of the choices, points of the same two records sharing one vote.
    """

    name: str
    pairs: int
    choices: int
    share: float


class LevelErrors(_Record):
    """Errors of one group at one level of knowledge."""

    median_abs_error: float
    p90_abs_error: float


class AblatedFamily(_Record):
    """Errors of held-out rows with datasheets only, with kernel fits, with everything."""

    name: str
    n: int
    datasheet: LevelErrors
    kernels: LevelErrors
    everything: LevelErrors


class SystemPart(_Record):
    """Records and hardware that constants of a system may be fitted to, or that are kept apart."""

    system: str
    part: Part
    records: int
    hardware: list[str]


class Constant(_Record):
    """A constant of an engine or of all machines: where it is, its value, and what it rests on."""

    file: str
    name: str
    value: str
    kind: str
    where: str


class AblationDocument(_Record):
    """The document of ``stowplan validate --ablation --json``."""

    schema_version: Literal["stowplan.ablation/1"] = "stowplan.ablation/1"
    families: list[AblatedFamily]
    parts: list[SystemPart]
    constants: list[Constant]


class WrongChoice(_Record):
    """Two runs of which the slower one was predicted to be at least as fast; gains are better over worse."""

    better: str
    worse: str
    figure: str
    measured_gain: float
    predicted_gain: float


class ComparedCase(_Record):
    """One measured figure beside its prediction: tokens/s, bytes for memory, seconds for latencies.

    `unseen` names parts that no fitted record had (architecture, gpu), for which the interval is wider.
    """

    id: str
    family: str
    part: Part
    machine: str
    model: str
    run: str
    predicted: float
    measured: float
    low: float | None
    high: float | None
    limits: dict[str, float]
    unseen: list[str]
    source: str
    note: str


class RefusedCase(_Record):
    """A run that finished but has no prediction, and why."""

    id: str
    system: str
    part: Part
    reason: str


class FitsAgreement(_Record):
    """What was said to fit against what did: runs that finished, those refused, runs out of memory, those missed."""

    ran: int
    refused: int
    out_of_memory: int
    missed: int


class ValidationDocument(_Record):
    """The document of ``stowplan validate --json``.

    Attributes:
        families: on held-out hardware, which no constant was set on.
        fitted_families: on hardware whose runs set constants.
        fresh_families, winners_fresh: of measurements that were written down before they were predicted.
        targets, winners: promises, on held-out hardware.
        winners_by_group: winners by the systems that are compared; wrong_choices: those that were not predicted.
        fits: agreement on what fits into memory, fresh runs left out.
        cases: every figure, all parts; refused: runs without a prediction.
    """

    schema_version: Literal["stowplan.validation/1"] = "stowplan.validation/1"
    families: list[FamilyErrors]
    fitted_families: list[FamilyErrors]
    fresh_families: list[FamilyErrors]
    targets: list[TargetReached]
    winners: WinnersPredicted | None
    winners_fresh: WinnersPredicted | None
    target_winners: float
    winners_by_group: list[WinnersPredicted]
    wrong_choices: list[WrongChoice]
    fits: FitsAgreement
    cases: list[ComparedCase]
    refused: list[RefusedCase]


def validation_document(found: Validation, target_winners: float) -> ValidationDocument:
    """The document of a comparison."""
    return ValidationDocument(
        families=[_family(each) for each in found.held_out],
        fitted_families=[_family(each) for each in found.fitted],
        fresh_families=[_family(each) for each in found.fresh],
        targets=[_target(each) for each in found.targets],
        winners=None if found.winners is None else _winners(found.winners),
        winners_fresh=None if found.winners_fresh is None else _winners(found.winners_fresh),
        target_winners=target_winners,
        winners_by_group=[_winners(each) for each in found.by_group],
        wrong_choices=[
            WrongChoice(
                better=each.better.id,
                worse=each.worse.id,
                figure=each.better.figure,
                measured_gain=each.gain,
                predicted_gain=each.predicted_gain,
            )
            for each in found.wrong
        ],
        fits=_fits(found.fits),
        cases=[_case(row) for row in found.rows],
        refused=[
            RefusedCase(id=each.unit.name, system=each.unit.system, part=each.unit.part, reason=each.reason)
            for each in found.refused
        ],
    )


def ablation_document(found: Ablation) -> AblationDocument:
    """The document of an ablation."""
    families = []
    for each in found.families:
        levels = [LevelErrors(median_abs_error=level.median, p90_abs_error=level.p90) for level in each.levels]
        families.append(
            AblatedFamily(name=each.name, n=each.n, datasheet=levels[0], kernels=levels[1], everything=levels[2])
        )
    return AblationDocument(
        families=families,
        parts=[
            SystemPart(system=each.system, part=each.part, records=each.records, hardware=list(each.hardware))
            for each in found.parts
        ],
        constants=[
            Constant(file=each.file, name=each.name, value=each.value, kind=each.kind, where=each.where)
            for each in found.constants
        ],
    )


def _family(found: Errors) -> FamilyErrors:
    return FamilyErrors(
        name=found.name,
        n=found.n,
        records=found.records,
        hardware=found.hardware,
        median_signed_error=found.median_signed_error,
        median_abs_error=found.median_abs_error,
        p90_abs_error=found.p90_abs_error,
        interval_coverage=found.interval_coverage,
        interval_spread=found.interval_spread,
        wanted_spread=found.wanted_spread,
        interval_score=found.interval_score,
        target_median=found.target_median,
    )


def _target(found: Reached) -> TargetReached:
    errors = found.errors
    return TargetReached(
        name=found.target.name,
        target_median=found.target.median,
        target_p90=found.target.p90,
        n=0 if errors is None else errors.n,
        median_abs_error=None if errors is None else errors.median_abs_error,
        p90_abs_error=None if errors is None else errors.p90_abs_error,
        met=found.met,
    )


def _winners(found: Winners) -> WinnersPredicted:
    return WinnersPredicted(name=found.name, pairs=found.pairs, choices=found.choices, share=found.share)


def _fits(found: Fits) -> FitsAgreement:
    return FitsAgreement(ran=found.ran, refused=found.refused, out_of_memory=found.out_of_memory, missed=found.missed)


def _case(row: Row) -> ComparedCase:
    return ComparedCase(
        id=row.id,
        family=row.family,
        part=row.part,
        machine=row.machine,
        model=row.model,
        run=row.run,
        predicted=row.predicted,
        measured=row.measured,
        low=row.low,
        high=row.high,
        limits=dict(row.shares),
        unseen=list(row.unseen),
        source=row.source,
        note=row.note,
    )
