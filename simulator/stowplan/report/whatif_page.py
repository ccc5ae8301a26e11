"""The page of a what-if answer: what limits, what would help with its error bar, what each resource is worth."""

from __future__ import annotations

from collections.abc import Sequence

from stowplan.report import answer, words
from stowplan.report.markup import Markup, join, picture, table, tag
from stowplan.report.shell import section, whole_page
from stowplan.report.whatif_words import summary, times
from stowplan.whatif.answer import Change, WhatIf
from stowplan.whatif.prices import ShadowPrice

_ROW, _LEFT, _RIGHT, _TOP, _WIDTH = 30, 380, 130, 34, 1100
_AIM = {"request": "a request", "decode": "a token", "ttft": "the first token", "throughput": "a token"}


def whatif_page(found: WhatIf) -> str:
    """One self-contained page."""
    prediction = found.planned.prediction
    aim = _AIM[found.scenario.objective]
    gains = (
        f"How many times faster {aim} is with one thing changed and everything planned anew. The bar holds 80 % of "
        "what may be true: errors that both plans share cancel. A pale bar does not exclude that nothing is gained."
    )
    worth = (
        "Tokens per second that one more unit is worth: at the margin of the relaxed programme, and when the whole "
        "plan is solved again with the step."
    )
    return whole_page(
        f"What would help {prediction.model} on {prediction.machine}",
        answer.heading(found.setup, prediction),
        answer.answers(prediction),
        tag("p", " ".join(summary(found)), class_="said"),
        section("What would help", gains, gain_chart(found.changes), _changes(found)),
        section("What each resource is worth", worth, _prices(found.prices, found.speed)),
    )


def gain_chart(changes: Sequence[Change]) -> Markup:
    """Every change as a bar from its low to its high gain with a dot at the gain; 1 is "as it is"."""
    most = max([1.2, *(change.gain.high for change in changes)])
    least = min([0.8, *(change.gain.low for change in changes)])
    width = _WIDTH - _LEFT - _RIGHT

    def x(ratio: float) -> float:
        return _LEFT + width * (ratio - least) / (most - least)

    height = _TOP + _ROW * len(changes) + 12
    marks = [
        tag("line", x1=x(1.0), x2=x(1.0), y1=_TOP - 8, y2=height - 8, class_="capacity"),
        tag("text", "as it is", x=x(1.0), y=_TOP - 14, class_="small faint middle"),
    ]
    for k, change in enumerate(changes):
        y = _TOP + _ROW * (k + 0.5)
        gain = change.gain
        said = f"{change.title}: {gain.ratio:.2f}x ({gain.low:.2f} to {gain.high:.2f})"
        title = change.title + (" *" if change.quality else "")
        marks += [
            tag("text", title, x=_LEFT - 14, y=y + 4, class_="end"),
            tag(
                "line",
                x1=x(gain.low),
                x2=x(gain.high),
                y1=y,
                y2=y,
                class_="whisker",
                stroke_opacity=None if gain.certain and change.helps else 0.3,
                data_tip=said,
            ),
            tag("circle", cx=x(gain.ratio), cy=y, r=5, class_="mean", data_tip=said),
            tag("text", _gain(change), x=_WIDTH - _RIGHT + 16, y=y + 4, class_="strong" if gain.certain else "faint"),
        ]
    return picture(_WIDTH, height, "Gain of every change with its error bar", *marks)


def _gain(change: Change) -> str:
    ratio = change.gain.ratio
    if ratio < 0.995:
        return f"{1 / ratio:.2f}x slower"
    return f"{times(ratio)} faster" if change.helps else "nothing"


def _changes(found: WhatIf) -> Markup:
    now = found.planned.prediction.decode_tokens_per_s
    priced = any(change.price_usd is not None for change in found.changes)
    rows = [
        [
            change.title + (" *" if change.quality else ""),
            f"{words.three(now)} → {words.three(change.decode.ratio * now)}",
            words.seconds(change.outcome.figure("ttft_s") or 0.0),
            f"{change.gain.ratio:.2f}x ({change.gain.low:.2f} – {change.gain.high:.2f})",
            *([_usd(change.price_usd), _usd(change.usd_per_token_per_s)] if priced else []),
        ]
        for change in found.changes
    ]
    header = ["change", "decode tok/s", "first token", "gain", *(["USD", "USD per tok/s gained"] if priced else [])]
    notes = []
    if any(change.quality for change in found.changes):
        notes.append("* The model's answers change with it.")
    if priced:
        notes.append("Prices are the street prices of the parts' profiles; where none is stated, none is shown.")
    return join([table(header, rows, numbers=range(1, len(header))), tag("p", " ".join(notes), class_="note")])


def _usd(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _prices(prices: Sequence[ShadowPrice], speed: float) -> Markup:
    rows = [
        [
            price.resource.title,
            f"{words.three(price.resource.amount)} {price.resource.unit}",
            _worth(price.relaxed, speed * 1e-5),
            _worth(price.resolved, price.noise),
            f"+{words.three(price.step)} {price.resource.unit}",
            "layers move whole" if price.whole_layers else "",
        ]
        for price in prices
    ]
    return table(["one more unit of", "there is", "relaxed", "solved again", "with", ""], rows, numbers=(1, 2, 3, 4))


def _worth(value: float | None, noise: float) -> str:
    if value is None:
        return "–"
    return "nothing" if abs(value) <= 0.5 * noise else f"{value:.2g} tok/s"
