"""`stowplan calibrate`: measure this machine, and make profiles that later plans rest on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Html, Json, Quant
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.cli.tables import Line
    from stowplan_calibrate.profile import Document
    from stowplan_calibrate.suite import Outcome

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"max_content_width": 110})

_Folder = Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder of the results.")]
_Profile = Annotated[str | None, typer.Option("-o", "--output", metavar="FILE.toml", help="Where the profile goes.")]


@app.command("run")
def run(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points, about a minute.")] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="gpu,pcie,cpu,disk", help="Only these groups.")] = None,
    output: _Folder = "calibration",
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="Time to spend, such as '4 min' (the default).")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", metavar="MACHINE", help="Machine whose datasheet the figures are laid over.")
    ] = "auto",
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="DIR", help="Where the disk is measured; the results' folder.")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PROGRAM", help="A Python that has torch, to measure its kernels.")
    ] = None,
    html: Html = None,
) -> None:
    """Measure this machine. What is there already is not measured again; Ctrl-C keeps what is done."""
    from stowplan import __version__
    from stowplan.cli import inputs, tables
    from stowplan.cli.calibration_progress import shown_progress
    from stowplan.machines import load_machine
    from stowplan.units import parse_quantity
    from stowplan_calibrate.campaign import chosen_groups, look_around, save_profile, whole_suite
    from stowplan_calibrate.results import ResultsFolder
    from stowplan_calibrate.suite import FULL_S, QUICK_S, environment, run_suite

    inputs.check_output("--html", html, [".html", ".htm"])
    groups = chosen_groups(only)
    seconds = QUICK_S if quick else FULL_S
    if budget is not None:
        seconds = parse_quantity(budget, "seconds", where="--budget")
    machine, results = load_machine(on), ResultsFolder(Path(output))
    around = look_around(machine, Path(folder or output), quick=quick)
    suite = whole_suite(around, groups, python)
    results.prepare(environment(around, machine.name, {"stowplan": __version__}))
    with shown_progress(suite, seconds) as watcher:
        outcome = run_suite(suite, around, results, watcher, budget_s=seconds)
    profile = None if outcome.cancelled else save_profile(machine, results)
    if html is not None and profile is not None:
        _write_page(Path(html), results.folder)
    tables.print_lines(_told(outcome, results.folder, profile))
    if outcome.cancelled:
        raise KeyboardInterrupt


@app.command("show")
def show(
    what: Annotated[str, typer.Argument(metavar="DIR|FILE.toml", help="Results or a profile.")],
    *,
    html: Html = None,
    json: Json = False,
) -> None:
    """What was measured, point by point, or the numbers of a profile."""
    from stowplan.cli import inputs, tables
    from stowplan.cli.calibration_document import measurements_document, profile_document
    from stowplan.cli.calibration_tables import profile_lines, results_lines
    from stowplan.cli.documents import as_json
    from stowplan_calibrate.profile import read_profile
    from stowplan_calibrate.results import read_results

    inputs.check_output("--html", html, [".html", ".htm"])
    path = Path(what)
    if path.suffix == ".toml":
        if html is not None:
            raise InputError(f"--html draws measurements; give the results' folder, not the profile {what}")
        document = read_profile(path)
        if json:
            tables.print_verbatim(as_json(profile_document(document)))
        else:
            tables.print_lines(profile_lines(document))
        return
    results = read_results(path)
    if html is not None:
        _write_page(Path(html), path)
    if json:
        tables.print_verbatim(as_json(measurements_document(results)))
    else:
        tables.print_lines(results_lines(results))


@app.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="FIRST.toml", help="A profile.")],
    second: Annotated[str, typer.Argument(metavar="SECOND.toml", help="Another one.")],
    *,
    json: Json = False,
) -> None:
    """Numbers of two profiles that differ, and whether by more than they are known."""
    from stowplan.cli import tables
    from stowplan.cli.calibration_document import differences_document
    from stowplan.cli.calibration_tables import difference_lines
    from stowplan.cli.documents import as_json
    from stowplan_calibrate.profile_pairs import differences

    found = differences(_profile(first), _profile(second))
    if json:
        tables.print_verbatim(as_json(differences_document(found)))
    else:
        tables.print_lines(difference_lines(found))


@app.command("merge")
def merge(
    first: Annotated[str, typer.Argument(metavar="FIRST.toml", help="A profile.")],
    second: Annotated[str, typer.Argument(metavar="SECOND.toml", help="What it knows better is taken.")],
    *,
    output: _Profile = None,
) -> None:
    """One profile of two: of every number the one that is known better, of equals the second."""
    from stowplan.cli import tables
    from stowplan_calibrate.profile import write_profile
    from stowplan_calibrate.profile_pairs import merged

    if output is None:
        raise InputError("-o FILE.toml is missing: name the file that the merged profile goes to")
    machine = write_profile(Path(output), merged(_profile(first), _profile(second)))
    tables.print_lines(tables.blocks(tables.paragraph(f"{output}: {machine.name}", "answer")))


@app.command("fit")
def fit(
    logs: Annotated[list[str], typer.Argument(metavar="LOG...", help="llama-bench or serving benchmark JSON.")],
    *,
    on: Annotated[str, typer.Option("--on", metavar="FILE.toml", help="Profile of the machine it ran on.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="What the model files hold, where they are elsewhere."),
    ] = None,
    quant: Quant = None,
    output: _Profile = None,
    json: Json = False,
) -> None:
    """Fit an engine's constants to its own benchmark, and write them into the profile."""
    from stowplan.cli import tables
    from stowplan.cli.calibration_document import ServingFitDocument, engine_fit_document
    from stowplan.cli.calibration_fit import fit_llama_bench, fit_serving, serving_runs
    from stowplan.cli.calibration_tables import engine_lines, serving_lines
    from stowplan.cli.documents import as_json
    from stowplan_calibrate.engine_logs import kind_of_log, read_llama_bench
    from stowplan_calibrate.profile import constants_document, write_profile
    from stowplan_calibrate.profile_pairs import merged

    paths = [Path(log) for log in logs]
    kinds = {kind_of_log(path) for path in paths}
    if len(kinds) > 1:
        raise InputError(f"the logs are of {len(kinds)} kinds ({', '.join(sorted(kinds))}); fit one kind at a time")
    if kinds != {"llama-bench"}:
        found = fit_serving([run for path in paths for run in serving_runs(path)])
        if json:
            tables.print_verbatim(as_json(ServingFitDocument.model_validate(found)))
        else:
            tables.print_lines(serving_lines(found))
        return
    document = _profile(on)
    result = fit_llama_bench([run for path in paths for run in read_llama_bench(path)], on, model, quant)
    if output is not None:
        constants = constants_document(result.fit.constants, result.dimensions)
        write_profile(Path(output), merged(document, {"constants": constants}))
    if json:
        tables.print_verbatim(as_json(engine_fit_document(result.fit)))
    else:
        tables.print_lines(engine_lines(result.fit, output))


@app.command("load")
def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Server, such as http://127.0.0.1:8000/v1.")],
    *,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model as the server names it.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE.jsonl", help="Log of every request.")],
    requests: Annotated[int, typer.Option("--requests", min=1, max=100_000, help="Requests in all (100).")] = 100,
    rate: Annotated[float | None, typer.Option("--rate", min=1e-6, help="Requests per second; all at once.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=4096, help="Most at a time (64).")] = 64,
    prompt: Annotated[int, typer.Option("--prompt", min=1, max=2**20, help="Words of a prompt (256).")] = 256,
    generate: Annotated[int, typer.Option("--generate", min=1, max=2**20, help="Tokens of an answer (64).")] = 64,
) -> None:
    """Load an OpenAI-compatible server and keep every token's time; `calibrate fit` reads the logs."""
    import asyncio
    import math

    from stowplan.cli import inputs, tables
    from stowplan_calibrate.load_client import Load, as_serving_run, send_load, write_requests

    inputs.check_output("--output", output, [".jsonl"])
    asked = Load(url, model, requests, math.inf if rate is None else rate, concurrency, prompt, generate)
    sent = asyncio.run(send_load(asked))
    write_requests(Path(output), asked, sent)
    found, failed = as_serving_run(asked, sent, output), sum(bool(each.error) for each in sent)
    told = (
        f"{found.requests} of {len(sent)} requests in {found.duration:.1f} s: median first token "
        f"{1e3 * found.ttft:.0f} ms, per token {1e3 * found.tpot:.1f} ms"
    )
    tables.print_lines(tables.blocks(tables.paragraph(f"{told}; {failed} failed", "limit" if failed else "answer")))


def _profile(path: str) -> Document:
    from stowplan_calibrate.profile import read_profile

    if not path.endswith(".toml"):
        raise InputError(f"'{path[:80]}' is no profile; name a .toml file such as calibration/profile.toml")
    return read_profile(Path(path))


def _write_page(path: Path, folder: Path) -> None:
    from stowplan.plan import write_atomically
    from stowplan_calibrate.page import results_page
    from stowplan_calibrate.results import read_results

    write_atomically(path, results_page(read_results(folder)).encode())


def _told(outcome: Outcome, folder: Path, profile: Path | None) -> list[Line]:
    """How a run ended."""
    from stowplan.cli import tables
    from stowplan_calibrate.derive import throttled
    from stowplan_calibrate.results import read_results

    results = read_results(folder)
    noise = sorted(record.samples.noise for record in results.records)
    lines: Sequence[Line] = [
        *tables.labelled("measured", f"{outcome.measured} points in {outcome.seconds:.0f} s", "answer"),
        *(tables.labelled("kept", f"{outcome.present} points that were there already") if outcome.present else []),
        *(tables.labelled("noise", _noise(noise)) if noise else []),
        *(line for each in outcome.skipped for line in tables.labelled("left out", f"{each.name}: {each.reason}")),
        *(line for text in throttled(results) for line in tables.labelled("mind", text, "warning")),
    ]
    end = f"cancelled; run the same command again to go on: what is done is kept in {folder}"
    if profile is not None:
        end = f"plan with it: stowplan plan MODEL --on {profile}"
    return tables.blocks(lines, tables.paragraph(end, "limit" if profile is None else ""))


def _noise(sorted_noise: Sequence[float]) -> str:
    middle = sorted_noise[len(sorted_noise) // 2]
    worst = sorted_noise[-1]
    return (
        f"medians lie {100 * middle:.1f} % above the undisturbed time at half the points, at most {100 * worst:.0f} %"
    )
