"""The documents of ``stowplan calibrate show``, ``compare`` and ``fit`` with ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, RootModel

from stowplan.cli.document_record import DocumentRecord
from stowplan_calibrate.profile_pairs import Difference, numbers_of

if TYPE_CHECKING:
    from stowplan_calibrate.engine_fit import Compared, EngineFit
    from stowplan_calibrate.results import Results

Known = Literal["measured", "fitted", "datasheet", "assumed"]
Value = str | int | float


class MeasuredPoint(DocumentRecord):
    """One measurement at one point."""

    name: str = Field(description="what was measured, such as host.read")
    group: str = Field(description="cpu, disk, gpu or pcie")
    parameters: dict[str, str | int | float | bool] = Field(description="the point: threads, bytes, shapes, formats")
    seconds: float = Field(description="seconds of an undisturbed sample")
    rates: dict[str, float] = Field(description="per second of one, by what is counted: bytes, flops, operations")
    noise: float = Field(description="how far the median lies above the undisturbed time; 0.01 is 1 %")
    throttled: bool = Field(description="whether the run slowed down while it was measured")
    samples: list[float] = Field(description="seconds of every sample in the order taken")
    date: str = Field(description="when it was measured, ISO 8601, UTC")


class MeasurementsDocument(RootModel[list[MeasuredPoint]]):
    """The document of ``stowplan calibrate show DIR --json``."""


class ProfileNumber(DocumentRecord):
    """One number of a profile."""

    path: str = Field(description="where it stands, such as parts.vda.read")
    value: Value = Field(description="a text with its unit, such as 1.02 GB/s, or a number in SI units")
    source: Known = Field(description="how it is known")
    sd: float | None = Field(description="relative standard deviation; 0.01 is 1 %; null where not told")
    where: str = Field(description="what it was measured with or where it was read")


class ProfileDocument(RootModel[list[ProfileNumber]]):
    """The document of ``stowplan calibrate show FILE.toml --json``: the measured numbers first."""


class ProfileEntry(DocumentRecord):
    """A number as a profile writes it."""

    value: Value = Field(description="a text with its unit, such as 1.02 GB/s, or a number in SI units")
    source: Known = Field(description="how it is known")
    where: str = Field(description="what it was measured with or where it was read")
    sd: float | None = Field(default=None, description="relative standard deviation; 0.01 is 1 %; null where not told")
    dimension: str | None = Field(
        default=None, description="what an engine's constant measures, such as bytes/s; else null"
    )


class ProfileDifference(DocumentRecord):
    """A number whose value or source differs."""

    path: str = Field(description="where it stands, such as parts.vda.read")
    first: ProfileEntry | None = Field(description="of the first profile; null where it has none")
    second: ProfileEntry | None = Field(description="of the second profile; null where it has none")
    ratio: float | None = Field(description="second over first; null where there is nothing to compare")
    beyond_noise: bool = Field(description="whether they differ by more than twice both standard deviations together")


class ProfileDifferencesDocument(RootModel[list[ProfileDifference]]):
    """The document of ``stowplan calibrate compare --json``."""


class FittedConstant(DocumentRecord):
    """A constant that was fitted."""

    value: float = Field(description="in the SI unit of the constant, or a share")
    sd: float | None = Field(description="relative standard deviation; 0.01 is 1 %; null where not told")
    where: str = Field(description="what it was fitted to")


class FittedRow(DocumentRecord):
    """A row of the benchmark beside its prediction."""

    label: str = Field(description="the row: file, test and settings")
    phase: str = Field(description="what the row measures: prefill or decode")
    seconds: float = Field(description="seconds measured")
    predicted: float = Field(description="seconds predicted")


class EngineFitDocument(DocumentRecord):
    """The document of ``stowplan calibrate fit --json`` for llama-bench."""

    schema_version: Literal["stowplan.engine-fit/1"] = Field(
        default="stowplan.engine-fit/1", description="form of the document"
    )
    constants: dict[str, FittedConstant] = Field(description="adjusted constants by name")
    rows: list[FittedRow] = Field(description="rows predicted with them")
    held_out: list[FittedRow] = Field(description="rows predicted by fits without their file; empty for one file")
    set_aside: list[str] = Field(description="labels of rows that were left out of the fit")


class StepParameter(DocumentRecord):
    """A parameter of a server's step time."""

    value: float = Field(description="seconds")
    sd: float = Field(description="relative standard error; 0.01 is 1 %")
    meaning: str = Field(description="what it is the time of")


class ServingFitDocument(DocumentRecord):
    """The document of ``stowplan calibrate fit --json`` for a serving benchmark."""

    schema_version: Literal["stowplan.serving-fit/1"] = Field(
        default="stowplan.serving-fit/1", description="form of the document"
    )
    engine: str = Field(description="what served")
    model: str = Field(description="model as the server names it")
    runs: int = Field(description="runs of the benchmark")
    parameters: dict[str, StepParameter] = Field(description="parameters of the step time by name")
    median_error: float = Field(description="median of the absolute relative errors; 0.01 is 1 %")
    worst_error: float = Field(description="largest of the absolute relative errors; 0.01 is 1 %")


def measurements_document(results: Results) -> MeasurementsDocument:
    """Every point, raw samples included."""
    return MeasurementsDocument(
        [
            MeasuredPoint(
                name=record.name,
                group=record.group,
                parameters=dict(record.parameters),
                seconds=record.samples.figure,
                rates={amount: record.rate(amount) for amount in record.amounts},
                noise=record.samples.noise,
                throttled=record.samples.throttled,
                samples=list(record.samples.seconds),
                date=record.date,
            )
            for record in results.records
        ]
    )


def profile_document(document: Mapping[str, Any]) -> ProfileDocument:
    """Every number of a profile, by how it is known."""
    order = ("measured", "fitted", "datasheet", "assumed")
    found = [
        ProfileNumber(path=path, value=entry["value"], source=entry["source"], sd=entry.get("sd"), where=entry["where"])
        for path, entry in numbers_of(document).items()
    ]
    return ProfileDocument(sorted(found, key=lambda row: (order.index(row.source), row.path)))


def differences_document(found: Sequence[Difference]) -> ProfileDifferencesDocument:
    """Numbers that differ."""
    return ProfileDifferencesDocument(
        [
            ProfileDifference(
                path=each.path,
                first=None if each.first is None else ProfileEntry.model_validate(each.first),
                second=None if each.second is None else ProfileEntry.model_validate(each.second),
                ratio=each.ratio,
                beyond_noise=each.beyond_noise,
            )
            for each in found
        ]
    )


def engine_fit_document(fit: EngineFit) -> EngineFitDocument:
    """A fit to an engine's own benchmark."""
    return EngineFitDocument(
        constants={
            name: FittedConstant(value=number.value, sd=number.sd, where=number.source)
            for name, number in fit.constants.items()
        },
        rows=_rows(fit.after),
        held_out=_rows(fit.held_out),
        set_aside=list(fit.rejected),
    )


def _rows(compared: Sequence[Compared]) -> list[FittedRow]:
    return [
        FittedRow(label=each.row.label, phase=each.row.phase, seconds=each.row.seconds, predicted=each.predicted)
        for each in compared
    ]
