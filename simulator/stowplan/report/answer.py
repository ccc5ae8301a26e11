"""The top of the page: what runs where, how fast, what limits it, and the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stowplan.plan import Interval, Plan, Prediction
from stowplan.report import words
from stowplan.report.markup import Markup, join, tag
from stowplan.systems.base import Setup
from stowplan.units import format_bytes

_MOST_SHARES = 5
_VISIBLE_SHARE = 0.005


def heading(setup: Setup, prediction: Prediction) -> Markup:
    """Model, mix and size on a machine, and what is asked of it."""
    workload = prediction.workload
    size = format_bytes(setup.model.weight_bytes)
    name = tag(
        "h1",
        prediction.model,
        tag("span", f" {prediction.quant.upper()}, {size}, on "),
        prediction.machine,
    )
    asked = [
        words.count(workload.batch, "request") + (" at a time" if workload.batch > 1 else ""),
        f"prompt {workload.prompt:,} tokens",
        f"{workload.generate:,} generated",
        f"room for {workload.capacity:,}",
    ]
    if workload.depth:
        asked.insert(1, f"{workload.depth:,} tokens before")
    return join([name, tag("p", ", ".join(asked), class_="soft")])


def answers(prediction: Prediction) -> Markup:
    """Decode, first token and time per token, each with its 80 % interval."""
    found, workload = prediction.interval, prediction.workload
    name = "decode" if workload.batch == 1 else f"decode, {workload.batch} requests together"
    rate = prediction.decode_tokens_per_s
    cards = [_card(name, words.three(rate), "tok/s", rate, found["decode_tokens_per_s"], 1.0, "answer first")]
    if workload.prompt:
        cards.append(_duration("first token", prediction.ttft_s, found["ttft_s"]))
    cards.append(_duration("each further token", prediction.tpot_s, found["tpot_s"]))
    return tag("div", *cards, class_="answers")


def _duration(name: str, value: float, found: Interval) -> Markup:
    scale, unit = words.seconds_unit(value)
    return _card(name, words.three(value * scale), unit, value, found, scale, "answer")


def _card(name: str, text: str, unit: str, value: float, found: Interval, scale: float, style: str) -> Markup:
    shown = tag("div", f"{text} ", tag("small", unit), class_="value")
    between = f"80 %: {words.interval(found, scale)}"
    return tag(
        "div",
        tag("div", name, class_="name"),
        shown,
        _interval_bar(value, found),
        tag("div", between, class_="note"),
        class_=style,
    )


def _interval_bar(value: float, found: Interval) -> Markup:
    """The interval as a bar on a line from zero, with a dot at the value."""
    whole = 1.12 * max(found.high, value)
    low, mean, high = (240 * each / whole if whole else 0.0 for each in (found.low, value, found.high))
    return tag(
        "svg",
        tag("line", x1=1, x2=239, y1=8, y2=8, class_="rule"),
        tag("line", x1=1, x2=1, y1=3, y2=13, class_="rule"),
        tag("line", x1=low, x2=high, y1=8, y2=8, class_="whisker"),
        tag("circle", cx=mean, cy=8, r=5, class_="mean"),
        viewBox="0 0 240 16",
        aria_hidden="true",
    )


def limits(plan: Plan, prediction: Prediction, rates: Mapping[str, float], gpus: int) -> Markup:
    """What limits a decode step in a sentence, the same for the first token, and where the step's time goes."""
    held = words.held_in_ram(plan)

    def sentence(name: str, shares: Mapping[str, float]) -> str:
        return words.limit(name, shares.get(name, 0.0), rates, held, gpus)

    name = prediction.bottleneck
    said = [
        tag(
            "p",
            "A decode step is limited by ",
            tag("b", words.resource(name, gpus)),
            f": {sentence(name, prediction.time_shares)}.",
            class_="limit",
        )
    ]
    if prediction.prefill_bottleneck and prediction.workload.prompt:
        first = prediction.prefill_bottleneck
        said.append(
            tag(
                "p",
                "The first token waits for ",
                tag("b", words.resource(first, gpus)),
                f": {sentence(first, prediction.prefill_shares)}.",
            )
        )
    said.append(tag("div", *_share_rows(prediction.time_shares, gpus), class_="shares"))
    return join(said)


def _share_rows(shares: Mapping[str, float], gpus: int) -> Iterator[Markup]:
    largest = max(shares.values(), default=1.0)
    for name, share in list(shares.items())[:_MOST_SHARES]:
        if share >= _VISIBLE_SHARE:
            yield tag("span", words.resource(name, gpus))
            yield tag("i", style=f"width:{100 * share / largest:.1f}%")
            yield tag("b", f"{100 * share:.1f} %")


def warnings(prediction: Prediction) -> Markup:
    """What the user should know."""
    return join(tag("p", text, class_="warning") for text in prediction.warnings)


def command(prediction: Prediction) -> Markup:
    """The command, ready to paste; nothing where the system has none."""
    if prediction.command is None:
        return Markup("")
    button = tag("button", "Copy", type="button", data_copies="command")
    return tag("div", tag("pre", tag("code", prediction.command.rstrip("\n"), id="command")), button, class_="command")
