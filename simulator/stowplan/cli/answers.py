"""What people read after `plan` and `predict`: the answer first, on one screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stowplan.cli import words
from stowplan.cli.placement import held_in_ram, placement_table
from stowplan.cli.tables import WIDTH, Line, blocks, labelled, paragraph, table
from stowplan.report.words import place
from stowplan.units import format_bytes

if TYPE_CHECKING:
    from stowplan.plan import Plan, Prediction
    from stowplan.planner.result import Alternative, Planned
    from stowplan.planner.serial_search import Objective
    from stowplan.planner.upgrades import Upgrade
    from stowplan.systems.base import Setup

_GIB = 2.0**30
_PROVEN = 1e-3
_MOST_ALTERNATIVES = 5
_OBJECTIVES = {"request": "request", "decode": "decode", "ttft": "first token", "throughput": "token"}


def plan_answer(
    setup: Setup,
    planned: Planned,
    objective: Objective,
    rates: Mapping[str, float],
    simulated_s: float,
    changes: Sequence[Upgrade] = (),
) -> list[Line]:
    """What `plan` prints.

    Args:
        setup, planned, objective: what was asked and found.
        rates: what each resource gives per second.
        simulated_s: a decode step in the simulator.
    """
    plan, prediction = planned.plan, planned.prediction
    return blocks(
        heading(setup, prediction),
        speed(prediction) + limit(setup, plan, prediction, rates),
        details(setup, plan, prediction),
        alternatives(planned, objective),
        helps(planned, changes, objective),
        batch_curve(planned),
        worth(planned, objective, len(setup.gpus)),
        [Line(line, "verbatim") for line in (prediction.command or "").splitlines()],
        proof(planned, simulated_s),
    )


def prediction_answer(
    setup: Setup, plan: Plan, prediction: Prediction, rates: Mapping[str, float], at_contexts: Mapping[int, float]
) -> list[Line]:
    """What `predict` prints before any comparison; `at_contexts` has tokens/s by tokens in the cache."""
    return blocks(
        heading(setup, prediction),
        speed(prediction) + contexts(at_contexts) + limit(setup, plan, prediction, rates),
        details(setup, plan, prediction),
    )


def contexts(rates: Mapping[int, float]) -> list[Line]:
    """Decode at several fillings of the cache."""
    entries = [f"{words.tokens(held)} tokens" if held else "an empty cache" for held in rates]
    shown = [f"{words.rate(rate)} tok/s at {at}" for at, rate in zip(entries, rates.values(), strict=True)]
    return labelled("by context", ", ".join(shown)) if shown else []


def heading(setup: Setup, prediction: Prediction) -> list[Line]:
    """Model, mix, size and machine; two lines where one is too short."""
    size = format_bytes(setup.model.weight_bytes)
    left = f"  {prediction.model}  {prediction.quant.upper()}  {size}"
    together = f"{left}   on   {prediction.machine}"
    if len(together) <= WIDTH:
        return [Line(together, "answer")]
    return [Line(left, "answer"), *labelled("on", prediction.machine, "answer")]


def speed(prediction: Prediction) -> list[Line]:
    """Decode and first token with their intervals."""
    workload = prediction.workload
    found = prediction.interval
    rate = words.rate(prediction.decode_tokens_per_s)
    text = f"{rate} tok/s   {words.interval(found['decode_tokens_per_s'], first=True)}"
    if workload.batch > 1:
        each = words.rate(prediction.per_request_tokens_per_s)
        text += f"   {workload.batch} requests, {each} tok/s each"
    lines = [Line(f"  {'decode':<11}{text}", "answer")]
    if workload.prompt:
        prompt = f"{words.tokens(workload.prompt)}-token prompt"
        asked = f"of a {prompt}" if workload.batch == 1 else f"of {workload.batch} prompts of {workload.prompt} tokens"
        wait = f"first token {asked}   {words.seconds(prediction.ttft_s)}   {words.interval(found['ttft_s'])}"
        joined = f"{lines[0].text}     {wait}"
        if len(joined) <= WIDTH:
            return [Line(joined, "answer")]
        lines += labelled("", wait, "answer")
    return lines


def limit(setup: Setup, plan: Plan, prediction: Prediction, rates: Mapping[str, float]) -> list[Line]:
    """What limits a step, and the memory."""
    sentence = words.limit(prediction, rates, held_in_ram(setup, plan), len(setup.gpus))
    return labelled("limit", sentence, "limit") + labelled("memory", words.memory(prediction.memory_bytes))


def details(setup: Setup, plan: Plan, prediction: Prediction) -> list[Line]:
    """The table of places and what the user should know."""
    minded = [line for text in prediction.warnings for line in labelled("mind", text, "warning")]
    return placement_table(setup, plan) + blocks(minded)


def alternatives(planned: Planned, objective: Objective) -> list[Line]:
    """Runners-up; the engine's own default says how much it leaves on the table."""
    best = planned.alternatives[:_MOST_ALTERNATIVES]
    best += [each for each in planned.alternatives[_MOST_ALTERNATIVES:] if each.default]
    if not best:
        return []
    rows = [
        [
            each.title,
            f"{words.rate(each.decode_tokens_per_s)} tok/s",
            words.seconds(each.ttft_s) if each.ttft_s else "-",
            _longer(each, planned.cost),
        ]
        for each in best
    ]
    return table(["runners-up", "decode", "first token", f"a {_OBJECTIVES[objective]} takes"], rows, numbers=(1, 2))


def helps(planned: Planned, changes: Sequence[Upgrade], objective: Objective) -> list[Line]:
    """What single changes bring, the most helpful first."""
    if not changes:
        return []
    before = planned.prediction
    now = words.rate(before.decode_tokens_per_s)
    rows = [
        [
            each.title,
            f"{now} -> {words.rate(each.decode_tokens_per_s)} tok/s",
            f"{words.seconds(before.ttft_s)} -> {words.seconds(each.ttft_s)}" if before.ttft_s else "-",
            _gain(planned.cost / each.cost) + (" (the answers change)" if each.quality else ""),
        ]
        for each in changes
    ]
    return table(["what would help", "decode", "first token", f"a {_OBJECTIVES[objective]} is"], rows, numbers=(1, 2))


def _gain(ratio: float) -> str:
    """How much faster a change makes the objective."""
    if ratio < 1.005:
        return "no faster"
    return f"{words.times(ratio)} faster" if ratio < 1.5 else f"{ratio:.1f}x as fast"


def _longer(each: Alternative, cost: float) -> str:
    """How much longer another placement takes, and whether the engine would leave that on the table."""
    ratio = each.cost / cost
    longer = (
        f"{words.times(ratio)} longer"
        if 1.005 <= ratio < 1.5
        else f"{ratio:.1f}x as long"
        if ratio >= 1.5
        else "as long"
    )
    return f"{longer}, left on the table" if each.default and ratio >= 1.005 else longer


def worth(planned: Planned, objective: Objective, gpus: int) -> list[Line]:
    """What one more GiB of every tier saves, by the duals of the relaxed programme."""
    entries = []
    for tier, per_byte in planned.worth.items():
        saved = 100 * per_byte * _GIB / planned.cost if planned.cost else 0.0
        name = "GPU memory" if gpus == 1 and tier == "gpu0" else place(tier, gpus)
        entries.append(f"{name} {f'{saved:.1f} %' if saved >= 0.05 else 'nothing'}")
    if not entries or len(entries) > 5:
        return []
    if all(entry.endswith("nothing") for entry in entries):
        return labelled("1 GiB more", "of any memory changes nothing")
    return labelled("1 GiB more", f"shortens the {_OBJECTIVES[objective]} by:   {'   '.join(entries)}")


def proof(planned: Planned, simulated_s: float) -> list[Line]:
    """How far from the best possible, how it was found, and what it rests on."""
    parts = []
    solver = planned.prediction.solver
    if solver is not None:
        gap = max(solver.gap, 1.0 - solver.bound / planned.cost if planned.cost else 0.0)
        effort = f"{solver.name.replace('highs', 'HiGHS').replace('cbc', 'CBC')}, {solver.seconds:.2f} s"
        many = "programme" if solver.programmes == 1 else "programmes"
        tried = f"({effort}, {solver.programmes} {many})"
        within = f"{math.ceil(gap * 1000 - 1e-6) / 10 if gap > _PROVEN else 0.1:.1f} %"
        if gap <= _PROVEN * 1.01:
            parts.append(f"proven optimal within 0.1 % {tried} for what {planned.plan.system} can place")
        else:
            parts.append(f"at most {within} from the best that {planned.plan.system} can place {tried}")
    parts.append(f"one step simulated: {words.seconds(simulated_s)}")
    parts.append(words.provenance(planned.prediction))
    return paragraph("; ".join(parts), "faint")


def batch_curve(planned: Planned) -> list[Line]:
    """Throughput against latency, where several batch sizes were tried."""
    if len(planned.batch_curve) < 2:
        return []
    chosen = planned.plan.workload.batch
    rows = [
        [str(batch), words.rate(rate), words.seconds(step), words.seconds(first), "chosen" if batch == chosen else ""]
        for batch, rate, step, first in planned.batch_curve
    ]
    return table(["batch", "tok/s", "per token", "first token", ""], rows, numbers=(0, 1, 2, 3))
