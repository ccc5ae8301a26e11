"""`stowplan replay`: a trace through a plan, and what its users feel."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Json, Quant, Set
from stowplan.errors import DoesNotFit, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stowplan.plan import Plan
    from stowplan.serving.answers import Answers, Distribution, Objective
    from stowplan.serving.from_plan import Engine
    from stowplan.systems.base import Setup
    from stowplan.traces.trace import Trace


_TOGETHER = 8


class SchedulerName(StrEnum):
    """Who decides which requests run."""

    CONTINUOUS = "continuous"
    CHUNKED = "chunked"
    STATIC = "static"
    SHORTEST = "shortest"
    SHORTEST_CHUNKED = "shortest-chunked"


def replay(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A name of `stowplan traces list`, or a file.")],
    *,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="What serves; planned first.")] = None,
    on: Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Where it serves.")] = None,
    quant: Quant = None,
    set_: Set = None,
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN.json", help="Serve this plan instead.")] = None,
    scheduler: Annotated[
        SchedulerName, typer.Option("--scheduler", help="Who decides which requests run.")
    ] = SchedulerName.CHUNKED,
    max_running: Annotated[int, typer.Option("--max-running", min=1, max=4096, help="Requests at a time.")] = 128,
    budget: Annotated[int, typer.Option("--budget", min=16, max=65536, help="Tokens of one step.")] = 2048,
    step_overhead: Annotated[
        str, typer.Option("--step-overhead", metavar="TIME", help="The server's own work per step.")
    ] = "0 ms",
    head: Annotated[int | None, typer.Option("--head", min=1, help="Only the first requests.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Speed the trace up or down to requests/s.")] = None,
    slo: Annotated[str | None, typer.Option("--slo", metavar="ttft=1s,tpot=50ms", help="Count what meets it.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE.csv", help="Write each request.")
    ] = None,
    json: Json = False,
) -> None:
    """Replay a trace and print latencies, throughput and goodput."""
    from pathlib import Path

    from stowplan.cli import inputs, tables
    from stowplan.cli.documents import as_json
    from stowplan.serving.answers import parse_objective, summarise, write_requests_csv
    from stowplan.serving.from_plan import Serving, engine_of
    from stowplan.serving.replay import replay as run_replay
    from stowplan.serving.requests import Requests
    from stowplan.units import parse_quantity

    inputs.check_output("-o", output, [".csv"])
    objective = parse_objective(slo) if slo is not None else None
    overhead = parse_quantity(step_overhead, "seconds", where="--step-overhead")
    asked = _trace(trace, head, rate)
    requests = Requests(asked.arrival_s, asked.prompt_tokens, asked.output_tokens)
    longest = int((asked.prompt_tokens + asked.output_tokens).max())
    setup, chosen = _planned(model, on, quant, set_ or [], plan, asked)
    serving = Serving(max_running, max(budget, max_running), "recompute", max(longest, 1024), overhead)
    engine = engine_of(setup, chosen, serving)
    done = run_replay(requests, engine.step_time, engine.limits, scheduler.value)
    answers = summarise(done, objective)
    if output is not None:
        write_requests_csv(done, Path(output))
    if json:
        tables.print_verbatim(
            as_json(
                {
                    "schema_version": "stowplan.replay/1",
                    "trace": asked.name,
                    "origin": asked.origin,
                    "model": setup.model.name,
                    "quant": setup.model.quant,
                    "machine": setup.machine.name,
                    "scheduler": scheduler.value,
                    "cache_tokens": engine.cache_tokens,
                    **asdict(answers),
                }
            )
        )
        return
    lines = _report(setup, asked, engine, answers, scheduler.value, objective)
    tables.print_lines(tables.Line(text) for text in lines)


def _trace(name: str, head: int | None, rate: float | None) -> Trace:
    """The trace asked for, cut and scaled."""
    from pathlib import Path

    from stowplan.traces.reading import load_trace, read_trace

    found = read_trace(Path(name)) if Path(name).is_file() else load_trace(name)
    if head is not None:
        found = found.head(head)
    return found if rate is None else found.scaled_rate(rate)


def _planned(
    model: str | None, on: str | None, quant: str | None, overrides: Sequence[str], plan: str | None, trace: Trace
) -> tuple[Setup, Plan]:
    """The plan to serve: a file's, or the best one for eight median requests with room for the longest."""
    from pathlib import Path

    import numpy as np

    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.plan import checked_workload, read_plan
    from stowplan.planner.predict import make_setup
    from stowplan.systems import load_system

    if plan is not None:
        if model is not None or on is not None or quant is not None:
            raise InputError(f"{plan} says model, mix and machine; leave out --model, --quant and --on")
        stored = read_plan(Path(plan))
        machine, loaded = (
            load_machine(stored.machine, [*stored.set, *overrides]),
            load_model(stored.model, stored.quant),
        )
        return make_setup(machine, loaded, load_system(stored.system), stored.settings.get("engine")), stored
    if model is None or on is None:
        raise InputError("name what serves: --model MODEL --on MACHINE, or --plan PLAN.json")
    from stowplan.planner.dispatch import plan_for
    from stowplan.planner.result import Request

    setup = make_setup(load_machine(on, overrides), load_model(model, quant), load_system("llama.cpp"))
    asked = {
        "prompt": max(1, int(np.median(trace.prompt_tokens))),
        "generate": max(1, int(np.median(trace.output_tokens))),
        "context": int((trace.prompt_tokens + trace.output_tokens).max()) + 1,
    }
    for together in (_TOGETHER, 1):  # room for the longest request several times, or at least once
        workload = checked_workload(asked | {"batch": together})
        try:
            return setup, plan_for("llama.cpp", Request(setup, (model, quant), workload)).plan
        except DoesNotFit:
            if together == 1:
                raise
    raise AssertionError("the loop returns or raises")


def _report(
    setup: Setup, trace: Trace, engine: Engine, answers: Answers, scheduler: str, objective: Objective | None
) -> list[str]:
    """The answer first, then the distributions."""
    from stowplan.units import format_seconds

    lines = [
        "",
        f"  {setup.model.name}  {setup.model.quant.upper()}   on   {setup.machine.name}",
        f"  {trace.name}: {len(trace):,} requests, {trace.rate:.3g}/s, {trace.origin}",
        "",
        f"  serves     {answers.requests_per_s:.3g} requests/s   {answers.output_tokens_per_s:,.0f} output tok/s   "
        f"{answers.prompt_tokens_per_s:,.0f} prompt tok/s",
    ]
    if answers.attainment is not None and answers.goodput_per_s is not None and objective is not None:
        lines.append(
            f"  goodput    {answers.goodput_per_s:.3g} requests/s: {answers.attainment:.1%} meet the objective"
        )
    lines += ["", f"  {'':22}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'longest':>10}"]
    rows: list[tuple[str, Distribution | None]] = [
        ("waiting", answers.queue),
        ("time to first token", answers.ttft),
        ("time per output token", answers.tpot),
        ("end to end", answers.e2e),
    ]
    for title, found in rows:
        if found is not None:
            values = (found.mean, *(found.percentiles[p] for p in (50, 90, 99)), found.largest)
            lines.append(f"  {title:22}" + "".join(f"{format_seconds(value):>10}" for value in values))
    ends = ", ".join(f"{count:,} {state.replace('_', ' ')}" for state, count in answers.counts.items() if count)
    lines += [
        "",
        f"  requests   {ends}; {answers.preempted:,} preempted",
        f"  cache      room for {engine.cache_tokens:,} tokens, {answers.peak_cache:.0%} in use at the most",
        f"  scheduler  {scheduler}; step times within {engine.step_time.largest_error:.1%} of the simulated engine",
    ]
    return lines
