"""The table of published against simulated: ``python -m stowplan.validate.published [SYSTEM ...] [--why]``.

Each case plans the system in the setting of its source, with what the source states held fixed, and prints published,
simulated and error. ``--why`` adds what was assumed. Nothing here knows a figure that it is compared with.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stowplan.errors import DoesNotFit, StowplanError
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.published import variants
from stowplan.systems import load_system
from stowplan.systems.base import Evaluation, Setup
from stowplan.systems.mechanisms.pricing import GPU
from stowplan.systems.published import load_published
from stowplan.systems.published.system import PublishedSystem
from stowplan.validate.published_cases_reader import Against, PublishedCase, load_published_cases

_LONGEST = 2**24


@dataclass(frozen=True, slots=True)
class Result:
    """A case beside its simulation; `simulated` is None where there is none, and `reason` says why."""

    case: PublishedCase
    simulated: float | None
    reason: str = ""

    @property
    def error(self) -> float:
        """Relative error of the simulation, signed."""
        return (self.simulated or 0.0) / self.case.published - 1.0


def run_published(case: PublishedCase) -> Result:
    """Simulate one case."""
    own = Against(case.system, case.settings, case.command, case.batch, case.quant)
    try:
        simulated = _figure(case, own)
        if case.baseline is not None:
            simulated = _ratio(case, simulated, _figure(case, case.baseline))
    except StowplanError as error:
        return Result(case, None, str(error))
    return Result(case, simulated)


def _ratio(case: PublishedCase, own: float, other: float) -> float:
    """How many times better: more of a rate, less of a time or of memory."""
    return other / own if case.figure in ("tpot_s", "ttft_s", "memory") else own / other


def _figure(case: PublishedCase, side: Against) -> float:
    if case.figure in ("context", "batch"):
        return float(_largest(case, side, case.figure))
    batch = side.batch or _largest(case, side, "batch")
    workload = Workload(prompt=case.prompt, generate=case.generate, depth=case.depth, batch=batch)
    evaluation = _evaluate(case, side, workload)
    decode_s, prefill_s = evaluation.decode_s, evaluation.prefill_s
    values: Mapping[str, float] = {
        "decode": workload.batch / decode_s,
        "throughput": workload.batch
        * workload.generate
        / (prefill_s + max(0, workload.generate - 1) * decode_s or 1.0),
        "prefill": workload.batch * workload.prompt / prefill_s if prefill_s else 0.0,
        "tpot_s": decode_s,
        "ttft_s": prefill_s,
        "memory": evaluation.memory[GPU].used if GPU in evaluation.memory else 0.0,
    }
    return values[case.figure]


def _evaluate(case: PublishedCase, side: Against, workload: Workload) -> Evaluation:
    machine, model = load_machine(case.machine, list(case.overrides)), load_model(case.model, side.quant)
    if side.command is not None:
        from stowplan.planner.commands import Hints, understand  # only engines in full detail have commands

        hints = Hints(model=case.model, quant=side.quant, workload=workload, loaded=model, release="pre-2025-12")
        meant = understand(shlex.split(side.command), machine, hints)
        return load_system(meant.system).evaluate(meant.setup, meant.plan)
    system = PublishedSystem(load_published(side.system), with_hardware=True)
    setup: Setup = system.setup(machine, model)
    objective = {"decode": "decode", "tpot_s": "decode", "ttft_s": "ttft", "prefill": "ttft"}.get(
        case.figure, "request"
    )
    return variants(system, setup, workload, objective, side.settings)[0].evaluation  # type: ignore[arg-type]


def _largest(case: PublishedCase, side: Against, what: str) -> int:
    """Longest prompt, or largest batch, that fits."""

    def fits(size: int) -> bool:
        workload = Workload(
            prompt=size if what == "context" else case.prompt,
            generate=case.generate,
            batch=size if what == "batch" else side.batch,
        )
        try:
            _evaluate(case, side, workload)
        except DoesNotFit:
            return False
        return True

    low, high = 0, 1
    while high < _LONGEST and fits(high):
        low, high = high, high * 2
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def table(results: Sequence[Result], *, why: bool = False) -> list[str]:
    """Lines of the table."""
    lines = [f"{'case':34} {'system':20} {'figure':18} {'role':5} {'published':>10} {'simulated':>10} {'error':>7}"]
    for each in results:
        case = each.case
        figure = case.figure if case.baseline is None else f"{case.figure} x {case.baseline.system}"
        shown = f"{each.simulated:10.4g} {each.error:+7.0%}" if each.simulated is not None else f"{'none':>10}"
        lines.append(f"{case.id:34} {case.system:20} {figure[:18]:18} {case.role:5} {case.published:10.4g} {shown}")
        if each.reason:
            lines.append(f"    {each.reason}")
        if why:
            lines += [f"    assumed: {text}" for text in case.assumed]
            lines += [f"    note: {case.note}"] if case.note else []
    return lines


def summary(results: Sequence[Result]) -> list[str]:
    """How many cases of each role are within 25 %."""
    lines = []
    for role, words in (("test", "stated settings"), ("fit", "used for a constant"), ("upto", "largest values")):
        some = [each for each in results if each.case.role == role]
        if not some:
            continue
        good = sum(each.simulated is not None and abs(each.error) <= 0.25 for each in some)
        errors = sorted(abs(each.error) for each in some if each.simulated is not None)
        median = f", median error {errors[len(errors) // 2]:.0%}" if errors else ""
        systems = {each.case.system for each in some}
        lines.append(f"{words}: {good} of {len(some)} within 25 %{median} ({len(systems)} systems)")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    wanted = [word for word in arguments if not word.startswith("--")]
    cases = [case for case in load_published_cases() if not wanted or case.system in wanted or case.id in wanted]
    results = [run_published(case) for case in cases]
    print("\n".join([*table(results, why="--why" in arguments), "", *summary(results)]))


if __name__ == "__main__":
    main(sys.argv[1:])
