"""`stowplan predict`: a plan file, or the command that somebody runs already."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Depth, Generate, Html, Json, Prompt, Quant, Set, Trace
from stowplan.errors import DoesNotFit, InputError

if TYPE_CHECKING:
    from stowplan.cli.tables import Line
    from stowplan.plan import Plan, Prediction
    from stowplan.planner.result import Planned
    from stowplan.systems.base import Setup

_RELEASES = ("current", "pre-2025-12")
_CLOSE = 1.03
_LONG_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class _Given:
    """What is to be predicted: a plan on a machine, and what was understood only in part."""

    setup: Setup
    plan: Plan
    warnings: list[str]


def predict(
    words: Annotated[
        list[str], typer.Argument(metavar="PLAN.json | -- COMMAND...", help="A plan file, or -- and a command.")
    ],
    *,
    on: Annotated[
        str | None, typer.Option("--on", metavar="MACHINE", help="Machine; a plan file carries its own.")
    ] = None,
    set_: Set = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="What the model file holds.")] = None,
    quant: Quant = None,
    prompt: Prompt = None,
    generate: Generate = None,
    depth: Depth = None,
    release: Annotated[
        str | None, typer.Option("--release", metavar="current|pre-2025-12", help="Which rule -ngl follows.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare/--no-compare", help="Also look for a better plan.")] = True,
    html: Html = None,
    trace: Trace = None,
    json: Json = False,
) -> None:
    """Say what a plan or a command will do."""
    from stowplan.cli import answers, documents, inputs, outputs, tables
    from stowplan.cli.words import provenance
    from stowplan.planner.predict import predict as predicted
    from stowplan.systems import list_systems, load_system
    from stowplan.systems.published import published_keys

    inputs.check_output("--html", html, [".html", ".htm"])
    inputs.check_output("--trace", trace, [".json", ".json.gz"])
    if release is not None and release not in _RELEASES:
        raise InputError(f"--release {release[:40]}: it is one of {', '.join(_RELEASES)}")
    asked = {
        name: value
        for name, value in (("prompt", prompt), ("generate", generate), ("depth", depth))
        if value is not None
    }
    given = _given(words, on, set_ or [], (model, quant), asked=asked, release=release)
    if given.plan.system not in (*list_systems(), *published_keys()):
        raise InputError(f"stowplan knows what {given.plan.system} places where, but does not predict its speed yet")
    system = load_system(given.plan.system)
    try:
        prediction = predicted(given.setup, given.plan, system)
    except DoesNotFit as error:
        raise DoesNotFit(f"{error}{_what_fits(given)}", error.missing_bytes) from error
    prediction = prediction.model_copy(update={"warnings": [*given.warnings, *prediction.warnings]})
    run = outputs.simulated_step(given.setup, given.plan) if trace is not None else None
    page = None
    if html is not None:
        from stowplan.report.page import prediction_page

        page = prediction_page(given.setup, given.plan, prediction)
    if trace is not None and run is not None:
        outputs.write_trace(trace, run, f"decode step of {prediction.model}")
    if html is not None and page is not None:
        outputs.write_text(html, page)
    if json:
        tables.print_verbatim(documents.as_json(prediction))
        return
    rates = system.decode_graph(given.setup, given.plan).rates
    comparison = _comparison(given, prediction) if compare and given.plan.system == "llama.cpp" else []
    known = tables.paragraph(provenance(prediction), "faint")
    tables.print_lines(
        answers.prediction_answer(given.setup, given.plan, prediction, rates, _at_contexts(given))
        + tables.blocks(comparison, known)
    )


def _given(
    words: Sequence[str],
    on: str | None,
    overrides: Sequence[str],
    reference: tuple[str | None, str | None],
    *,
    asked: Mapping[str, int],
    release: str | None,
) -> _Given:
    """The plan of a file or of a command."""
    if len(words) == 1 and " " in words[0].strip():
        words = _split(words[0])
    if words[0].endswith(".json"):
        if len(words) > 1:
            raise InputError(f"give either {words[0]} or a command, not both: '{words[1][:40]}' follows the plan file")
        return _from_file(Path(words[0]), on, overrides, reference, asked=asked, release=release)
    if on is None:
        raise InputError("--on MACHINE is missing: a command does not say where it runs")
    from stowplan.exports.reading import Told, read_command
    from stowplan.machines import load_machine
    from stowplan.plan import checked_workload

    told = Told(load_machine(on, overrides), *reference, workload=checked_workload(asked), release=release)
    found = read_command(words, told)
    return _Given(found.setup, found.plan, found.warnings)


def _split(text: str) -> list[str]:
    """Words of a whole command that came in one pair of quotes."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"the command cannot be split into words ({error}): '{text[:60]}'") from error


def _from_file(
    path: Path,
    on: str | None,
    overrides: Sequence[str],
    reference: tuple[str | None, str | None],
    *,
    asked: Mapping[str, int],
    release: str | None,
) -> _Given:
    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.plan import read_plan
    from stowplan.planner.predict import make_setup
    from stowplan.systems import load_system

    stored = read_plan(path)
    changes = [*([] if on else stored.set), *overrides]
    machine = load_machine(on or stored.machine, changes)
    if reference[0] is not None or reference[1] is not None:
        raise InputError(f"{path} says which model and mix it is for; --model and --quant are for commands")
    settings = stored.settings | ({"release": release} if release else {})
    plan = stored.model_copy(
        update={
            "machine": machine.spec,
            "set": changes,
            "workload": stored.workload.model_copy(update=dict(asked)),
            "settings": settings,
        }
    )
    variant = plan.settings.get("engine")
    setup = make_setup(machine, load_model(plan.model, plan.quant), load_system(plan.system), variant)
    return _Given(setup, plan, [])


def _at_contexts(given: _Given) -> dict[int, float]:
    """Tokens/s of the batch at an empty, a half full and a full cache, where it is long enough to matter."""
    from stowplan.systems import load_system

    system, capacity = load_system(given.plan.system), given.plan.workload.capacity
    if capacity < _LONG_CONTEXT:
        return {}
    rates = {}
    for held in (0, capacity // 2, capacity):
        workload = given.plan.workload.model_copy(
            update={"prompt": 0, "generate": 0, "depth": 0, "decode_depth": held, "context": capacity}
        )
        evaluation = system.evaluate(given.setup, given.plan.model_copy(update={"workload": workload}))
        rates[held] = workload.batch / evaluation.decode_s
    return rates


def _better(given: _Given) -> Planned:
    """The best plan of the same model, mix, context, batch and cache types."""
    from stowplan.planner.dispatch import plan_for
    from stowplan.planner.result import Request

    kept = ("cache_k", "cache_v", "engine", "release")
    settings = {name: given.plan.settings[name] for name in kept if name in given.plan.settings}
    reference = (given.plan.model, given.plan.quant)
    return plan_for(given.plan.system, Request(given.setup, reference, given.plan.workload, settings=settings))


def _comparison(given: _Given, prediction: Prediction) -> list[Line]:
    """What the command leaves on the table, and how to get it."""
    from stowplan.cli import tables
    from stowplan.cli import words as plain

    try:
        better = _better(given)
    except DoesNotFit:  # the command runs with less room to spare than a plan leaves
        return []
    ratio = _request_seconds(prediction) / _request_seconds(better.prediction)
    if ratio < _CLOSE:
        return tables.paragraph("This is within 3 % of the best plan for the same request, mix and cache types.")
    found = better.prediction
    gains = [
        f"decode {plain.rate(prediction.decode_tokens_per_s)} -> {plain.rate(found.decode_tokens_per_s)} tok/s",
        f"first token {plain.seconds(prediction.ttft_s)} -> {plain.seconds(found.ttft_s)}",
    ]
    text = f"You leave {plain.times(ratio)} on the table ({', '.join(gains if prediction.ttft_s else gains[:1])}):"
    return [*tables.paragraph(text, "limit"), tables.Line(f"  {plan_command(given.plan)}", "limit")]


def _request_seconds(prediction: Prediction) -> float:
    return prediction.ttft_s + max(1, prediction.workload.generate) * prediction.tpot_s


def plan_command(plan: Plan) -> str:
    """The `stowplan plan` command for the same request, mix and cache types."""
    workload, settings = plan.workload, plan.settings
    parts = ["stowplan", "plan", plan.model]
    parts += ["--quant", plan.quant] if plan.quant else []
    parts += ["--on", plan.machine]
    for change in plan.set:
        parts += ["--set", change]
    if settings.get("engine") == "ik_llama.cpp":
        parts += ["--system", "ik_llama.cpp"]
    for name, value, default in (
        ("context", workload.context, None),
        ("prompt", workload.prompt, 512),
        ("generate", workload.generate, 128),
        ("depth", workload.depth, 0),
        ("batch", workload.batch, 1),
    ):
        if value != default:
            parts += [f"--{name}", str(value)]
    cache = [str(settings.get(name, "f16")) for name in ("cache_k", "cache_v")]
    if cache != ["f16", "f16"]:
        parts += ["--kv", ",".join(dict.fromkeys(cache))]
    return shlex.join(parts)


def _what_fits(given: _Given) -> str:
    """The end of a sentence: the plan that fits, or what would."""
    if given.plan.system != "llama.cpp":
        return ""
    from stowplan.cli import words as plain

    try:
        better = _better(given)
    except DoesNotFit:
        from stowplan.cli.fitting import suggestions

        cache = (str(given.plan.settings.get("cache_k", "f16")), str(given.plan.settings.get("cache_v", "f16")))
        reference = (given.plan.model, given.plan.quant)
        return suggestions(given.setup.machine, given.setup.model, reference, given.plan.workload, cache)
    reached = f"{plain.rate(better.prediction.decode_tokens_per_s)} tok/s"
    return f"; what fits, at {reached}: `{plan_command(given.plan)}`"
