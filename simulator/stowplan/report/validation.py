"""The page of a comparison with published measurements: what was promised, every figure, the worst ones explained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stowplan.report import validation_charts as charts
from stowplan.report.markup import Markup, join, table, tag
from stowplan.report.shell import section, whole_page
from stowplan.report.words import count
from stowplan.validate.explain import dominant_term, open_points, worst
from stowplan.validate.pairs import Pair, Winners
from stowplan.validate.rows import Row
from stowplan.validate.statistics import Errors
from stowplan.validate.targets import Reached, Targets
from stowplan.validate.validation import Validation

_WORST = 20
_STYLE = """
.swatches{display:flex;flex-wrap:wrap;gap:4px 18px;max-width:none;font-size:.9rem}
.swatch i{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:8px 28px}
.panels .plot{height:440px}.tall .plot{height:auto}
.met{background:var(--measured)}.missed{background:var(--assumed)}.open{background:var(--datasheet)}
.worst td:first-child{min-width:230px}.worst td:last-child{min-width:300px}
.key td{vertical-align:baseline}
"""


def validation_page(found: Validation, targets: Targets) -> str:
    """One self-contained page."""
    title = "Predictions against published measurements"
    held_out = found.part("held-out")
    sections = [
        _heading(title, held_out, found.part("fit")),
        *_promises(found, targets),
        *_scatters([row for row in found.rows if row.part != "fresh"]),
        *_errors(found, targets),
        *_fresh(found, targets),
        *_calibration(found),
        *_winners(found, targets),
        *_worst(held_out),
        *_refused(found),
    ]
    return whole_page(title, *sections, style=_STYLE)


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.0f} %" if signed else f"{100 * value:.0f} %"


def _heading(title: str, held_out: Sequence[Row], fit: Sequence[Row]) -> Markup:
    def told(rows: Sequence[Row]) -> str:
        records, machines = len({row.record for row in rows}), len({row.hardware for row in rows})
        return f"{count(len(rows), 'figure')} of {count(records, 'record')} on {count(machines, 'machine')}"

    systems = len({row.system for row in (*held_out, *fit)})
    return tag(
        "section",
        tag("h1", title),
        tag(
            "p",
            tag("b", told(held_out)),
            " that no constant was set on, and ",
            told(fit),
            f" that constants may rest on; {count(systems, 'system')}. ",
            "Errors are (predicted - measured) / measured; a record counts once however many points it has.",
        ),
    )


def _promises(found: Validation, targets: Targets) -> list[Markup]:
    rows = [_promise(each) for each in found.targets]
    if found.winners is not None:
        share, good = found.winners.share, found.winners.share >= targets.winners
        wanted, got = f"at least {_percent(targets.winners)}", f"{_percent(share)} of {found.winners.choices} choices"
        rows.append(["the better of two runs was predicted", wanted, got, _pill("met" if good else "missed")])
    header = ["held-out hardware", "promised", "reached", ""]
    sentence = "Median of the absolute error on machines that were not used for any fit."
    return [section("What is promised, and what is reached", sentence, table(header, rows))]


def _promise(each: Reached) -> list[str]:
    target, errors = each.target, each.errors
    wanted = f"at most {_percent(target.median)}"
    wanted += "" if target.p90 is None else f", 90th percentile {_percent(target.p90)}"
    if errors is None:
        return [target.name, wanted, "–", _pill("open", "not measured")]
    got = _percent(errors.median_abs_error)
    got += "" if target.p90 is None else f", 90th percentile {_percent(errors.p90_abs_error)}"
    got += f" ({count(errors.n, 'figure')} of {count(errors.records, 'record')})"
    return [target.name, wanted, got, _pill("met" if each.met else "missed")]


def _pill(kind: str, text: str | None = None) -> Markup:
    return tag("span", text or kind, class_=f"kind {kind}")


def _scatters(rows: Sequence[Row]) -> list[Markup]:
    sentence = (
        "A dot is a measured figure; large ones are held out, small faint ones are of hardware that constants were set "
        "on. On the line predictions are right; the dotted lines are 25 % off. Point at a dot for its source."
    )
    panels = tag("div", *charts.scatters(rows), class_="panels")
    return [section("Predicted against measured", sentence, charts.legend(rows), panels)]


def _errors(found: Validation, targets: Targets) -> list[Markup]:
    sentence = (
        "Held-out hardware. A stroke is a figure, the bar reaches from the 10th to the 90th percentile, the diamond is "
        "the median."
    )
    content: list[str] = []
    held_out = found.part("held-out")
    if held_out:
        content += [charts.error_strips(held_out), _families(found.held_out, targets)]
    if found.fitted:
        inner = _families(found.fitted, targets)
        content.append(tag("details", tag("summary", "The hardware that constants were set on"), inner))
    return [section("Errors by family", sentence, *content)]


def _fresh(found: Validation, targets: Targets) -> list[Markup]:
    rows = found.part("fresh")
    if not rows:
        return []
    sentence = (
        "Measurements on any hardware that were written down before anything predicted them; no fit sees them. "
        "Strokes, bars and diamonds as above."
    )
    content: list[str] = [charts.error_strips(rows, "fresh"), _families(found.fresh, targets)]
    if found.winners_fresh is not None:
        pairs = found.winners_fresh
        content.append(tag("p", f"Of {count(pairs.choices, 'choice')}, {_percent(pairs.share)} were predicted right."))
    return [section("Fresh measurements", sentence, *content)]


def _families(families: Iterable[Errors], targets: Targets) -> Markup:
    header = ["family", "figures", "records", "signed", "median", "90th", "at most", "inside the 80 % interval"]
    rows = [
        [
            each.name,
            f"{each.n}",
            f"{each.records}",
            _percent(each.median_signed_error, signed=True),
            _percent(each.median_abs_error),
            _percent(each.p90_abs_error),
            _percent(each.target_median),
            charts.coverage_words(each, targets.coverage),
        ]
        for each in families
    ]
    return table(header, rows, numbers=range(1, 7))


def _calibration(found: Validation) -> list[Markup]:
    if not any(row.spread for row in found.rows):
        return []
    sentence = (
        "On the diagonal, intervals hold as much as they say; below it they are too narrow, above it too wide. The "
        "green bar is where the 80 % interval should be on held-out hardware."
    )
    return [section("Do the intervals hold?", sentence, charts.calibration(found.rows))]


def _winners(found: Validation, targets: Targets) -> list[Markup]:
    if found.winners is None:
        return []
    sentence = (
        f"Pairs of runs of one model on one machine with the same lengths, {charts.pair_words()}: was the better one "
        f"predicted to be better? At least {_percent(targets.winners)} should be. Points of the same two records share "
        "one vote."
    )
    rows = [_winner("all pairs, held out", found.winners), *(_winner(each.name, each) for each in found.by_group)]
    if found.winners_fitted is not None:
        rows.append(_winner("all pairs, hardware that constants were set on", found.winners_fitted))
    header = ["what was compared", "pairs", "choices", "winner predicted", "better by, median"]
    content = [table(header, rows, numbers=range(1, 5))]
    if found.wrong:
        inner = table(
            ["better, as measured", "worse", "measured", "predicted"], map(_choice, found.wrong), numbers=(2, 3)
        )
        content.append(tag("details", tag("summary", f"{count(len(found.wrong), 'choice')} predicted wrong"), inner))
    return [section("Which of two runs is faster?", sentence, *content)]


def _choice(pair: Pair) -> list[str]:
    def run(row: Row) -> Markup:
        return join([tag("b", row.id), f" {row.family}", tag("div", tag("code", row.run), class_="note")])

    return [run(pair.better), run(pair.worse), f"{pair.gain:.2f}x", f"{pair.predicted_gain:.2f}x"]


def _winner(name: str, found: Winners) -> list[str]:
    return [name, str(found.pairs), str(found.choices), _percent(found.share), f"{found.median_gain:.2f}x"]


def _worst(rows: Sequence[Row]) -> list[Markup]:
    if not rows:
        return []
    sentence = (
        "Held-out hardware, the largest factors between prediction and measurement, one line for each record and "
        "figure: what limits the prediction, by how much that would have to differ, and what the source leaves open."
    )
    lines = [
        [
            join([_source(row), tag("div", row.family, class_="note")]),
            f"{row.ratio:.2f}x",
            charts.amount(row.predicted, charts.unit_of(row)),
            charts.amount(row.measured, charts.unit_of(row)),
            join(
                [
                    tag("div", dominant_term(row) or "no breakdown by resource"),
                    tag("div", f"{row.model} on {row.machine}", class_="note"),
                    tag("div", tag("code", row.run), class_="note"),
                    tag("div", open_points(row), class_="note"),
                ]
            ),
        ]
        for row in worst(rows, _WORST)
    ]
    header = ["case", "ratio", "predicted", "measured", "dominant term, run, what is open"]
    return [section("The worst twenty", sentence, tag("div", table(header, lines, numbers=(1, 2, 3)), class_="worst"))]


def _source(row: Row) -> Markup:
    """The case, with the address of its source to copy; a page of ours fetches nothing and links nowhere."""
    return join([tag("b", row.id), tag("div", tag("code", row.source), class_="note")])


def _refused(found: Validation) -> list[Markup]:
    fits = found.fits
    sentence = (
        f"{count(fits.ran, 'run')} finished, {fits.refused} of them are refused for want of memory; "
        f"{count(fits.out_of_memory, 'run')} ran out of memory, {fits.missed} of them are said to fit."
    )
    rows = [[each.unit.name, each.unit.system, each.reason] for each in found.refused]
    content = [table(["case", "system", "why there is no prediction"], rows)] if rows else []
    return [section("What fits", sentence, *content)]
