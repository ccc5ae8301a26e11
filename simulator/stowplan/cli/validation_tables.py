"""Lines of `stowplan validate`: families, promises, winners, what has no prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stowplan.cli.tables import Line, blocks, labelled, paragraph, table
from stowplan.report.words import count, three

if TYPE_CHECKING:
    from stowplan.validate.ablation import Ablation
    from stowplan.validate.pairs import Winners
    from stowplan.validate.rows import Row
    from stowplan.validate.statistics import Errors
    from stowplan.validate.targets import Reached, Targets
    from stowplan.validate.unexpressed import Unexpressed
    from stowplan.validate.validation import Validation

_HEADER = ("n", "records", "signed", "median", "p90", "within 80 %", "target")
_SHOWN_REFUSALS = 8
_SHOWN_SYSTEMS = 5


def answer(found: Validation, targets: Targets, *, whole: bool, fitted: bool, cases: bool) -> list[Line]:
    """Everything about a comparison.

    Args:
        found: the comparison.
        targets: what was promised.
        whole: whether nothing was filtered out, so that a promise without a measurement is worth a line.
        fitted: whether hardware that constants were set on is shown.
        cases: whether every figure is.
    """
    promised = [each for each in found.targets if whole or each.errors is not None]
    return blocks(
        _scope(found),
        _families("hardware that no constant was set on", found.held_out),
        _families("hardware that constants were set on", found.fitted) if fitted else [],
        _promises(promised),
        _families("fresh measurements, on any hardware", found.fresh),
        _winners(found, targets),
        _fits(found),
        _refused(found),
        _cases(found.rows) if cases else [],
    )


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share in whole per cent, or a dash."""
    if value is None:
        return "-"
    return f"{100 * value:+.0f}%" if signed else f"{100 * value:.0f}%"


def _scope(found: Validation) -> list[Line]:
    def told(rows: Sequence[Row]) -> str:
        return (
            f"{count(len(rows), 'figure')} of {count(len({row.record for row in rows}), 'record')} "
            f"on {count(len({row.hardware for row in rows}), 'machine')}"
        )

    held_out, fit, fresh = found.part("held-out"), found.part("fit"), found.part("fresh")
    return [
        *labelled("held out", f"{told(held_out)} that no constant was set on: the errors below", "answer"),
        *labelled("fitted", f"{told(fit)} whose runs may set constants (--fitted shows them)"),
        *(labelled("fresh", f"{told(fresh)}, written down before anything predicted them") if fresh else ()),
        *labelled("errors", "(predicted - measured) / measured; a record counts once however many points it has"),
    ]


def _families(title: str, families: Iterable[Errors]) -> list[Line]:
    rows = [_family_row(each) for each in families]
    return table((title, *_HEADER), rows, numbers=range(1, 8)) if rows else []


def _family_row(found: Errors) -> list[str]:
    return [
        found.name,
        str(found.n),
        str(found.records),
        percent(found.median_signed_error, signed=True),
        percent(found.median_abs_error),
        percent(found.p90_abs_error),
        percent(found.interval_coverage),
        percent(found.target_median),
    ]


def _promises(targets: Iterable[Reached]) -> list[Line]:
    rows = []
    for each in targets:
        limits = percent(each.target.median)
        limits += "" if each.target.p90 is None else f", p90 {percent(each.target.p90)}"
        errors = each.errors
        if errors is None:
            rows.append([each.target.name, limits, "-", "not measured"])
        else:
            got = percent(errors.median_abs_error)
            got += "" if each.target.p90 is None else f", p90 {percent(errors.p90_abs_error)}"
            rows.append([each.target.name, limits, got, "met" if each.met else "missed"])
    return table(("target, median of the absolute error", "at most", "reached", ""), rows) if rows else []


def _winners(found: Validation, targets: Targets) -> list[Line]:
    every: list[tuple[str, Winners, str]] = []
    if found.winners is not None:
        every.append(("all pairs", found.winners, percent(targets.winners)))
        every += [(each.name, each, "") for each in found.by_group]
    if found.winners_fresh is not None:
        every.append(("all pairs, fresh", found.winners_fresh, percent(targets.winners)))
    if not every:
        return []
    rows = [[name, str(each.pairs), str(each.choices), percent(each.share), target] for name, each, target in every]
    title = "two runs, same machine, model, lengths; > 10 % apart"
    return table((title, "pairs", "choices", "winner predicted", "target"), rows, numbers=range(1, 5))


def _fits(found: Validation) -> list[Line]:
    fits = found.fits
    text = f"{count(fits.ran, 'run')} that finished, {fits.refused} of them refused for want of memory"
    if fits.out_of_memory:
        text += f"; {count(fits.out_of_memory, 'run')} that ran out of memory, {fits.missed} of them said to fit"
    return labelled("memory", text)


def _refused(found: Validation) -> list[Line]:
    if not found.refused:
        return []
    records: dict[str, list[str]] = {}
    for each in found.refused:
        records.setdefault(each.unit.record, []).append(each.reason)
    rows = [[name, str(len(reasons)), reasons[0]] for name, reasons in list(records.items())[:_SHOWN_REFUSALS]]
    lines = table(("without a prediction", "runs", "why"), rows, numbers=(1,))
    if len(records) > _SHOWN_REFUSALS:
        lines += paragraph(f"and {count(len(records) - _SHOWN_REFUSALS, 'record')} more; --json lists all", "faint")
    return lines


def _cases(rows: Iterable[Row]) -> list[Line]:
    ordered = sorted(rows, key=lambda row: (row.part != "held-out", row.family, row.ratio))
    return table(
        ("family", "case", "part", "predicted", "measured", "ratio", "limit"),
        [
            [
                row.family,
                row.id,
                row.part,
                three(row.predicted),
                three(row.measured),
                f"{row.ratio:.2f}",
                row.shares[0][0] if row.shares else "",
            ]
            for row in ordered
        ],
        numbers=(3, 4, 5),
    )


def ablation(found: Ablation) -> list[Line]:
    """Errors at three levels of knowledge, and what was fitted on what."""
    header = ("held-out hardware, median absolute error (p90)", "n", "datasheets", "+ kernel fits", "everything")
    rows = [
        [each.name, str(each.n), *(f"{percent(level.median)} ({percent(level.p90)})" for level in each.levels)]
        for each in found.families
    ]
    kinds = [
        [file, str(sum(counts.values())), *(str(counts.get(kind, 0)) for kind in _KINDS)]
        for file, counts in _by_file(found).items()
    ]
    fitted = [each for each in found.constants if each.kind == "fitted"]
    return blocks(
        labelled("datasheets", "every part reaches what its maker prints; only moving and computing cost time"),
        labelled("kernel fits", "parts reach what was measured on such parts, kernels have their efficiencies"),
        labelled("everything", "launches, synchronisation, the engine's own work per step are added"),
        table(header, rows, numbers=range(1, 5)),
        _parts(found),
        table(("constants of", "all", *_KINDS), kinds, numbers=range(1, 6)),
        table(
            ("fitted", "value", "on what"),
            [[f"{each.file.removesuffix('.toml')} {each.name}", each.value, each.where] for each in fitted],
        ),
    )


_KINDS = ("measured", "fitted", "datasheet", "assumed")


def _by_file(found: Ablation) -> dict[str, Counter[str]]:
    files: dict[str, Counter[str]] = {}
    for each in found.constants:
        files.setdefault(each.file, Counter())[each.kind] += 1
    return files


def _parts(found: Ablation) -> list[Line]:
    rows = [[each.system, each.part, str(each.records), ", ".join(each.hardware)] for each in found.parts]
    return table(("system", "part", "records", "hardware"), rows, numbers=(2,))


def unexpressed(groups: Sequence[Unexpressed]) -> list[Line]:
    """Published measurements that are no case, by reason."""
    total = sum(len(group.ids) for group in groups)
    reasons: Counter[str] = Counter()
    for group in groups:
        reasons[group.reason] += len(group.ids)
    rows: list[list[str]] = []
    for reason, number in reasons.most_common():
        systems = list(dict.fromkeys(group.system for group in groups if group.reason == reason))
        more = f" and {len(systems) - _SHOWN_SYSTEMS} more" if len(systems) > _SHOWN_SYSTEMS else ""
        rows.append([str(number), f"{reason} ({', '.join(systems[:_SHOWN_SYSTEMS])}{more})"])
    return blocks(
        paragraph(f"{total:,} published measurements were read and are no case, for these reasons:"),
        table(("n", "reason (systems)"), rows, numbers=(0,)),
    )
