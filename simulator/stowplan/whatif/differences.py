"""Whether two outcomes really differ: the error bar of a ratio, in which errors that both share cancel.

Write ``t = f(theta) * r`` for a time, with independent relative errors of the figures theta and a residual r that the
model leaves. With m = d log t / d log theta times the figure's spread (a `Move`), the variance of ``log(t_b / t_a)`` is

    sum over figures of (m_b - m_a)^2    for a figure that both rest on,
    + sum over figures of m_b^2 or m_a^2 for a figure that only one rests on or that was read elsewhere,
    + s_a^2 + s_b^2 - 2 rho s_a s_b      for the residuals with spreads s, which are alike for like runs.

A figure's moves have the same sign on both sides (a faster link never slows), so magnitudes suffice. A figure is the
same where its source is, also when it was scaled in proportion. How alike the residuals of two runs are was measured on
published runs, see `ALIKE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stowplan.planner.predict import Move
from stowplan.whatif.outcome import Outcome

_Z80 = 1.2815515655446004  # an 80 % interval is +-1.28 deviations wide
_IN_PROPORTION = "in proportion to: "

FIGURES: Mapping[str, tuple[str, bool]] = {
    "decode_tokens_per_s": ("decode", True),
    "tpot_s": ("decode", False),
    "prefill_tokens_per_s": ("prefill", True),
    "ttft_s": ("prefill", False),
    "request_tokens_per_s": ("request", True),
}
"""Phase whose time a figure is made of, and whether the figure is a rate."""

ALIKE: Mapping[str, tuple[float, float, float]] = {"decode": (0.92, 0.68, 0.5), "prefill": (0.91, 0.67, 0.25)}
"""Correlation rho of the log residuals of two runs, by what they have in common.

Fitted on 968 published figures of llama.cpp and ik_llama.cpp (``stowplan.validate``), as one less half of the mean
squared difference over the variance. First: all but lengths, batch and placement (the points of one record: 83 records
for decode, 86 for prefill). Second: kinds of hardware and model (64 and 62 groups of records). Third: one of the two
(1,866 pairs of records for decode, 0.56 to 0.62; 1,792 for prefill, 0.25 to 0.39; about the lower of each). Runs with
nothing in common have none. The figures and kernels of today give 0.95 and 0.63 for decode, 0.92 and 0.87 for prefill;
396 fresh figures, which nothing was fitted on, 0.96 and 0.95 for decode, 0.74 and 0.73 for prefill.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """Figure of b over figure of a with its 80 % interval; `certain` where the interval leaves out "no change"."""

    ratio: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the change is larger than its error bar."""
        return self.low > 1.0 or self.high < 1.0


def difference(a: Outcome, b: Outcome, figure: str) -> Difference | None:
    """Figure of `b` over that of `a`; None where one of them has no plan or no such figure."""
    phase, _ = FIGURES[figure]
    before, after = a.figure(figure), b.figure(figure)
    if not before or not after:
        return None
    sd = math.sqrt(_variance(a, b, phase))
    ratio = after / before
    return Difference(ratio, ratio * math.exp(-_Z80 * sd), ratio * math.exp(_Z80 * sd))


def _variance(a: Outcome, b: Outcome, phase: str) -> float:
    """Variance of the log ratio of the times of a phase."""
    mine, theirs = _moves(a, phase), _moves(b, phase)
    total = 0.0
    for name in mine.keys() | theirs.keys():
        source_a, move_a = mine.get(name, (None, 0.0))
        source_b, move_b = theirs.get(name, (None, 0.0))
        same = source_a is None or source_b is None or source_a == source_b
        total += (move_b - move_a) ** 2 if same else move_a**2 + move_b**2
    spread_a, spread_b = _residual(a, phase), _residual(b, phase)
    alike = _alike(a, b, phase)
    return total + max(0.0, spread_a**2 + spread_b**2 - 2 * alike * spread_a * spread_b)


def _moves(outcome: Outcome, phase: str) -> dict[str, tuple[str, float]]:
    """Source and move of every figure."""
    prompt = _share_of_prompt(outcome)

    def amount(move: Move) -> float:
        if phase == "request":
            return prompt * move.prefill + (1.0 - prompt) * move.decode
        return move.decode if phase == "decode" else move.prefill

    return {move.name: (_origin(move.source), amount(move)) for move in outcome.moves}


def _origin(source: str) -> str:
    """Where a figure comes from before it was scaled."""
    while source.startswith(_IN_PROPORTION):
        source = source.removeprefix(_IN_PROPORTION)
    return source


def _residual(outcome: Outcome, phase: str) -> float:
    decode, prefill = outcome.model_sd
    if phase == "request":
        prompt = _share_of_prompt(outcome)
        return prompt * prefill + (1.0 - prompt) * decode
    return decode if phase == "decode" else prefill


def _share_of_prompt(outcome: Outcome) -> float:
    """Share of a request's time that its prompt takes."""
    figures, plan = outcome.figures, outcome.plan
    if figures is None or plan is None:
        return 0.0
    decode = figures["tpot_s"] * max(1, int(plan["workload"]["generate"]))
    whole = figures["ttft_s"] + decode
    return figures["ttft_s"] / whole if whole else 0.0


def _alike(a: Outcome, b: Outcome, phase: str) -> float:
    """How alike the residuals of two runs are: those of another model, mix or GPU tell little about each other."""
    if a.plan is None or b.plan is None or a.plan["system"] != b.plan["system"]:
        return 0.0
    common = [set(a.hardware) == set(b.hardware), all(a.plan[name] == b.plan[name] for name in ("model", "quant"))]
    if not any(common):
        return 0.0
    sources = [{move.name: _origin(move.source) for move in each.moves} for each in (a, b)]
    rates = all(sources[1].get(name, source) == source for name, source in sources[0].items())
    level = 2 if not all(common) else 0 if rates and a.hardware == b.hardware else 1
    decode, prefill = (ALIKE[each][level] for each in ("decode", "prefill"))
    if phase == "request":
        prompt = _share_of_prompt(a)
        return prompt * prefill + (1.0 - prompt) * decode
    return decode if phase == "decode" else prefill
