"""What the constants were fitted on, and how much further predictions are off for a part that no fitted record had.

``python -m stowplan.validate.spread`` prints the whole of ``hwprofiles/seen/llama.cpp.toml``; nothing is written.
Groups of the fit are each predicted by the fit without them, and held-out records tell of groups that the fit lacks.
What a new group adds is told apart from what sources, records and figures differ by anyway. Records that were collected
later than everything else (``fresh``) are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from stowplan.errors import StowplanError
from stowplan.plan import UnseenPart
from stowplan.planner.commands import Understood
from stowplan.planner.predict import predict_and_move, situation
from stowplan.planner.unseen import PARTS, PHASES, groups_of, share_of
from stowplan.systems import load_system
from stowplan.validate.cases import Case, load_cases
from stowplan.validate.components import Sample, components, widened
from stowplan.validate.fit import FAMILIES, Problem, chosen
from stowplan.validate.run import machine_of, understood

ENGINE = "llama.cpp"
_AND = " + "
_WORKS = 0.05  # share of the time from which on a part tells anything

Groups = Mapping[UnseenPart, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured figure and its prediction.

    Attributes:
        case, phase: what was measured.
        held_out: whether no constant was fitted on its hardware.
        residual: log of measured over predicted.
        figures_sd: spread that the figures' own uncertainty gives the prediction.
        situation: where its time goes, see `stowplan.planner.predict.situation`.
        machine: what it ran on.
        groups: group of every part; shares: share of the time of every part.
    """

    case: Case
    phase: str
    held_out: bool
    residual: float
    figures_sd: float
    situation: str
    machine: str
    groups: Mapping[UnseenPart, str]
    shares: Mapping[UnseenPart, float]

    @property
    def key(self) -> tuple[str, str]:
        """Case and figure."""
        return self.case.id, self.phase


@dataclass(frozen=True, slots=True)
class New:
    """What a part without a fitted record adds to a phase: its spread, and the groups and sources that say so."""

    spread: float
    groups: int
    held_out: int
    sources: int


def fitted_groups() -> dict[UnseenPart, frozenset[str]]:
    """Groups that a record of the fit has, by part; a GPU counts where it held weights."""
    found: dict[UnseenPart, set[str]] = {part: set() for part in PARTS}
    for case in _cases("fit"):
        for part, groups in groups_of(understood(case).setup).items():
            if part != "gpu" or case.kind != "cpu-only":
                found[part] |= set(groups)
    return {part: frozenset(groups) for part, groups in found.items()}


def new_groups() -> dict[tuple[UnseenPart, str], New]:
    """What a group without a fitted record adds, by part and phase, for the constants as they are; takes minutes."""
    problem = Problem()
    start = np.zeros(len(problem.names))
    jacobian = problem.jacobian(start)
    points = [point for case, meant, _ in problem.meant for point in _points(case, meant)]
    for case in chosen(_cases("test")):
        try:
            points += _points(case, understood(case))
        except StowplanError:  # what cannot be predicted has no residual; `stowplan validate` lists it
            continue
    fitted = fitted_groups()
    found: dict[tuple[UnseenPart, str], New] = {}
    for part in PARTS:
        left = problem.left_out(start, jacobian, partial(_group_of_case, part))
        for phase in PHASES:
            mine = [point for point in points if point.phase == phase and point.shares[part] > _WORKS]
            found[part, phase] = _new(mine, part, left, fitted[part])
    return found


def _cases(split: str) -> list[Case]:
    cases = [case for engine in FAMILIES for case in load_cases(engine, split)]
    return [case for case in cases if not case.note.startswith("Odd:") and not case.out_of_memory]


def _points(case: Case, meant: Understood) -> Iterator[Point]:
    prediction, moves = predict_and_move(meant.setup, meant.plan, load_system(meant.system))
    told = (
        ("decode", case.measured.decode_tokens_per_s, prediction.decode_tokens_per_s, prediction.time_shares),
        ("prefill", case.measured.prefill_tokens_per_s, prediction.prefill_tokens_per_s, prediction.prefill_shares),
    )
    for phase, measured, predicted, shares in told:
        if measured and predicted:
            own = [getattr(move, phase) for move in moves if not move.name.startswith("unseen.")]
            yield Point(
                case=case,
                phase=phase,
                held_out=case.split != "fit",
                residual=math.log(measured / predicted),
                figures_sd=math.hypot(*own),
                situation=situation(shares),
                machine=machine_of(case).spec,
                groups={part: _group(meant, part) for part in PARTS},
                shares={part: share_of(part, shares) for part in PARTS},
            )


def _group_of_case(part: UnseenPart, _: Case, meant: Understood) -> str:
    return _group(meant, part)


def _group(meant: Understood, part: UnseenPart) -> str:
    return _AND.join(sorted(groups_of(meant.setup)[part]))


def _new(
    points: Sequence[Point], part: UnseenPart, left: Mapping[tuple[str, str], float], fitted: frozenset[str]
) -> New:
    """What a new group adds: groups of the fit are predicted without it, held-out ones that the fit has add nothing."""
    samples = []
    held_out: set[str] = set()
    for point in points:
        new = not point.held_out or not set(point.groups[part].split(_AND)) <= fitted
        if new and point.held_out:
            held_out.add(point.groups[part])
        samples.append(_sample(point, left, point.groups[part] if new else None, point.shares[part]))
    found = components(samples)
    spread = 0.0 if found.group is None else widened(found.group, found.groups)
    return New(spread, found.groups, len(held_out), found.sources)


def _sample(point: Point, left: Mapping[tuple[str, str], float], group: str | None, share: float) -> Sample:
    return Sample(
        residual=-left[point.key] if point.key in left else point.residual,
        source=point.case.source,
        record=point.case.record,
        situation=point.situation,
        known={("figures", point.machine, point.situation): point.figures_sd},
        group=group,
        share=share,
    )


def seen_file(fitted: Groups, new: Mapping[tuple[UnseenPart, str], New]) -> str:
    """The whole of ``hwprofiles/seen/{engine}.toml``."""
    lines = [
        f"# What the constants of kernels/{ENGINE}.toml were fitted on, and how much further predictions are off where",
        "# a part had none: deviations of the log of its time. Printed by `python -m stowplan.validate.spread`.",
    ]
    for part in PARTS:
        lines += ["", f"[{part}]", "groups = [", *(f'  "{group}",' for group in sorted(fitted[part])), "]"]
        for phase in PHASES:
            each = new[part, phase]
            where = (
                f"{each.groups - each.held_out} groups of the fit, each predicted without it, and {each.held_out} held "
                f"out; likeliest beside {each.sources} sources, their records and figures; widened as Student's t asks "
                "for so few groups"
            )
            lines.append(f'{phase} = {{ value = {each.spread:.2g}, source = "fitted", where = "{where}" }}')
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the file."""
    print(seen_file(fitted_groups(), new_groups()), end="")


if __name__ == "__main__":
    main()
