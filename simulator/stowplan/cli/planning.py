"""`stowplan plan`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Context, Depth, Generate, Html, Json, On, Prompt, Quant, Set, Trace
from stowplan.errors import DoesNotFit, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stowplan.planner.result import Planned, Request
    from stowplan.planner.serial_search import Objective
    from stowplan.planner.upgrades import Upgrade
    from stowplan.systems.base import Setup

_IK = "ik_llama.cpp"


class Aim(StrEnum):
    """What is made fast."""

    REQUEST = "request"
    DECODE = "decode"
    TTFT = "ttft"
    THROUGHPUT = "throughput"


class LoadMode(StrEnum):
    """How llama.cpp brings weights into host memory."""

    MMAP = "mmap"
    NONE = "none"
    MLOCK = "mlock"


class SolverName(StrEnum):
    """Which solver proves it."""

    HIGHS = "highs"
    CBC = "cbc"


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a .gguf, a config.json or a folder.")],
    *,
    on: On,
    quant: Quant = None,
    system: Annotated[
        str, typer.Option("--system", metavar="SYSTEM", help="llama.cpp, ik_llama.cpp, flexgen or accelerate.")
    ] = "llama.cpp",
    set_: Set = None,
    context: Context = None,
    prompt: Prompt = None,
    generate: Generate = None,
    depth: Depth = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, max=2**20, help="Requests at once (1; chosen for throughput).")
    ] = None,
    objective: Annotated[
        Aim | None, typer.Option("--objective", help="What to make fast (request; throughput for flexgen).")
    ] = None,
    kv: Annotated[
        str | None, typer.Option("--kv", metavar="TYPE", help="Cache type such as q8_0, or KEYS,VALUES.")
    ] = None,
    ubatch: Annotated[int | None, typer.Option("--ubatch", min=1, max=2**20, help="Fix the micro-batch.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=4096, help="Threads of the CPU.")] = None,
    margin: Annotated[
        str | None, typer.Option("--margin", metavar="SIZE", help='GPU memory to leave free ("512 MiB").')
    ] = None,
    load_mode: Annotated[
        LoadMode | None, typer.Option("--load-mode", help="How weights reach RAM; mmap may leave any share on disk.")
    ] = None,
    solver: Annotated[SolverName, typer.Option("--solver", help="Which solver.")] = SolverName.HIGHS,
    upgrades: Annotated[
        bool, typer.Option("--upgrades", help="Plan again with one thing changed: what would help.")
    ] = False,
    write_lp: Annotated[str | None, typer.Option("--write-lp", metavar="FILE.lp", help="Print the programme.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write the plan.")] = None,
    html: Html = None,
    trace: Trace = None,
    json: Json = False,
) -> None:
    """Find the best plan and say what it does."""
    from stowplan.cli import inputs
    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.planner.predict import make_setup
    from stowplan.systems import load_system

    for option, path, endings in (
        ("-o", output, [".json"]),
        ("--html", html, [".html", ".htm"]),
        ("--trace", trace, [".json", ".json.gz"]),
        ("--write-lp", write_lp, [".lp"]),
    ):
        inputs.check_output(option, path, endings)
    settings = inputs.llama_cpp_settings(kv=kv, ubatch=ubatch, threads=threads, margin=margin)
    if load_mode is not None:
        settings["load_mode"] = load_mode.value
    variant = None
    if system == _IK:
        variant, system, settings = _IK, "llama.cpp", settings | {"engine": _IK, "release": "pre-2025-12"}
    elif system != "llama.cpp" and settings:
        raise InputError(
            f"--kv, --ubatch, --threads, --margin and --load-mode are knobs of llama.cpp; {system} has none of them"
        )
    aim = objective or (Aim.THROUGHPUT if system == "flexgen" else Aim.REQUEST)
    asked = inputs.workload(context=context, prompt=prompt, generate=generate, depth=depth, batch=batch)
    if upgrades and system != "llama.cpp":
        raise InputError(f"--upgrades plans llama.cpp again and again; {system} is planned once")
    if write_lp is not None and system != "llama.cpp":
        raise InputError(f"--write-lp prints llama.cpp's programme; {system} is solved as many small ones")
    setup = make_setup(load_machine(on, set_ or []), load_model(model, quant), load_system(system), variant)
    from stowplan.planner.result import Request  # loads the solver: only once the input is known to be good

    progress = inputs.Progress()
    request = Request(
        setup=setup,
        model_reference=(model, quant),
        workload=asked,
        objective=aim.value,
        settings=settings,
        batches=_batches() if aim is Aim.THROUGHPUT and batch is None else (),
        solver=solver.value,
        progress=progress,
    )
    try:
        planned = _solved(system, request, write_lp)
        changes = _changes(system, request, planned) if upgrades else []
    finally:
        progress.done()
    _answer(setup, planned, aim.value, changes, output=output, html=html, trace=trace, json=json)


def _solved(system: str, request: Request, write_lp: str | None) -> Planned:
    """The plan; the programme appears under its name only once it is whole."""
    if write_lp is None:
        return solved(system, request)
    from dataclasses import replace
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from stowplan.plan import write_atomically

    with TemporaryDirectory() as folder:
        unfinished = Path(folder) / "programme.lp"
        planned = solved(system, replace(request, write_lp=str(unfinished)))
        write_atomically(Path(write_lp), unfinished.read_bytes())
    return planned


def solved(system: str, request: Request) -> Planned:
    """The plan; where nothing fits, the error says what would.

    Raises:
        DoesNotFit: with a smaller mix and a larger machine in its sentence.
    """
    from stowplan.planner.dispatch import plan_for

    try:
        return plan_for(system, request)
    except DoesNotFit as error:
        from stowplan.cli.fitting import suggestions

        keys = str(request.settings.get("cache_k", "f16"))
        values = str(request.settings.get("cache_v", "f16"))
        setup = request.setup
        more = suggestions(setup.machine, setup.model, request.model_reference, request.workload, (keys, values))
        raise DoesNotFit(f"{error}{more}", error.missing_bytes) from error


def _changes(system: str, request: Request, planned: Planned) -> list[Upgrade]:
    """What single changes of machine or format would bring."""
    from stowplan.planner.upgrades import upgrades

    return upgrades(system, request, planned)


def _batches() -> tuple[int, ...]:
    return tuple(2**k for k in range(9))


def _answer(
    setup: Setup,
    planned: Planned,
    objective: Objective,
    changes: Sequence[Upgrade],
    *,
    output: str | None,
    html: str | None,
    trace: str | None,
    json: bool,
) -> None:
    """Write the files that were asked for, then print the answer."""
    from stowplan.cli import answers, documents, outputs, tables

    run = outputs.simulated_step(setup, planned.plan)
    page = None
    if html is not None:
        from stowplan.report.page import plan_page

        page = plan_page(setup, planned)
    if output is not None:
        outputs.write_text(output, documents.as_json(planned.plan) + "\n")
    if trace is not None:
        outputs.write_trace(trace, run, f"decode step of {planned.prediction.model}")
    if html is not None and page is not None:
        outputs.write_text(html, page)
    if json:
        tables.print_verbatim(documents.as_json(documents.answer_of(planned, objective, run.makespan, changes)))
        return
    tables.print_lines(answers.plan_answer(setup, planned, objective, run.graph.rates, run.makespan, changes))
