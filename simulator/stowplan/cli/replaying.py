"""`stowplan replay` and `stowplan capacity`: a trace through a service, and how much of it the service carries."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.cli.inputs import Html, Jobs, Json
from stowplan.cli.option_groups import with_groups
from stowplan.cli.serving_options import ServiceOptions, TraceOptions
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.cli.served import Served
    from stowplan.serving.answers import Answers, Distribution, Objective
    from stowplan.serving.capacity import Attempt, Capacity
    from stowplan.serving.economics import Costs
    from stowplan.traces.trace import Trace


@with_groups
def replay(
    service: ServiceOptions,
    traced: TraceOptions,
    *,
    slo: Annotated[str | None, typer.Option("--slo", metavar="ttft=1s,tpot=50ms", help="Count what meets it.")] = None,
    rent: Annotated[float | None, typer.Option("--rent", metavar="USD", help="Price of a machine per hour.")] = None,
    electricity: Annotated[float | None, typer.Option("--electricity", metavar="USD", help="Price of a kWh.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE.csv", help="Write each request.")
    ] = None,
    html: Html = None,
    jobs: Jobs = None,
    json: Json = False,
) -> None:
    """Replay a trace and print latencies, throughput and goodput."""
    from pathlib import Path

    from stowplan.cli import inputs, tables
    from stowplan.cli.documents import as_json
    from stowplan.cli.replay_document import replay_document
    from stowplan.cli.replay_progress import ReplayProgress
    from stowplan.cli.served import served_by, trace_of
    from stowplan.plan import write_atomically
    from stowplan.serving.answers import parse_objective, summarise, write_requests_csv
    from stowplan.serving.economics import check_prices, costs_of
    from stowplan.serving.requests import Requests

    inputs.check_output("-o", output, [".csv"])
    inputs.check_output("--html", html, [".html"])
    objective = parse_objective(slo) if slo is not None else None
    with ReplayProgress() as progress:
        progress.stage("reading the trace")
        asked = trace_of(traced)
        progress.stage("planning")
        served = served_by(service, traced, asked)
        check_prices(served.setup.machine, rent, electricity)
        progress.stage(f"{len(asked):,} requests")
        done = served.service.replay(Requests.from_trace(asked), progress.watch, inputs.processes(jobs))
        progress.stage("summing up")
        answers = summarise(done, objective)
        costs = costs_of(done, served.setup.machine, usd_per_hour=rent, usd_per_kwh=electricity)
        page = None
        if html is not None:
            from stowplan.report.replay_page import replay_page

            page = replay_page(asked, served.setup, served.engine, done, answers, objective)
        if output is not None:
            write_requests_csv(done, Path(output))
        if html is not None and page is not None:
            write_atomically(Path(html), page.encode())
    if json:
        tables.print_verbatim(as_json(replay_document(asked, served, answers, done.scheduler, costs)))
        return
    tables.print_lines(
        tables.Line(text) for text in replay_answer(served, asked, answers, costs, objective, done.scheduler)
    )


@with_groups
def capacity(
    service: ServiceOptions,
    traced: TraceOptions,
    *,
    slo: Annotated[str, typer.Option("--slo", metavar="ttft=1s,tpot=50ms", help="What each request is to meet.")],
    share: Annotated[float, typer.Option("--share", help="Share of the requests that must meet it.")] = 0.99,
    count_engines: Annotated[
        bool, typer.Option("--count-engines", help="Find the fewest machines for the trace's own rate instead.")
    ] = False,
    jobs: Jobs = None,
    json: Json = False,
) -> None:
    """Find the highest rate, or the fewest machines, at which an objective is kept."""
    from stowplan.cli import inputs, tables
    from stowplan.cli.documents import as_json
    from stowplan.cli.replay_document import capacity_document
    from stowplan.cli.replay_progress import ReplayProgress
    from stowplan.cli.served import served_by, trace_of
    from stowplan.serving.answers import parse_objective
    from stowplan.serving.capacity import fewest_engines, highest_rate

    objective = parse_objective(slo)
    if count_engines and service.engines is not None:
        raise InputError("--count-engines: finds the number of machines; leave out --engines")
    if count_engines and service.prompt_engines:
        raise InputError("--count-engines: counts machines that do everything; leave out --prompt-engines")
    with ReplayProgress() as progress:
        progress.stage("reading the trace")
        asked = trace_of(traced)
        if not count_engines:
            _check_rate(traced)
        progress.stage("planning")
        served = served_by(service, traced, asked, counted=count_engines)

        def tell(attempt: Attempt) -> None:
            progress.stage(_attempt_words(attempt, counted=count_engines), attempt.left)

        search = fewest_engines if count_engines else highest_rate
        found = search(
            served.service,
            asked,
            objective,
            share=share,
            progress=tell,
            watch=progress.watch,
            workers=inputs.processes(jobs),
        )
    if json:
        tables.print_verbatim(as_json(capacity_document(asked, served, found)))
        return
    lines = capacity_answer(served, asked, found, slo, share, counted=count_engines)
    tables.print_lines(tables.Line(text) for text in lines)


def _check_rate(traced: TraceOptions) -> None:
    """Refuse a rate where one is searched, unless it is what gives requests their arrivals.

    Raises:
        InputError: the trace has arrivals of its own.
    """
    from dataclasses import replace

    from stowplan.cli.served import trace_of

    name = "--rate" if traced.rate is not None else "--speed"
    if traced.rate is None and traced.speed is None:
        return
    if isfinite(trace_of(replace(traced, rate=None, speed=None)).rate):
        raise InputError(f"{name}: the search finds the rate; leave it out, or keep it with --count-engines")


def _attempt_words(attempt: Attempt, *, counted: bool) -> str:
    tried = f"{attempt.engines} machines" if counted else f"{attempt.rate:.3g} requests/s"
    return tried if attempt.last is None else f"{attempt.last:.1%} met the objective; {tried}"


def _rate_words(rate: float) -> str:
    return f"{rate:.3g} requests/s" if isfinite(rate) else "all at once"


def _wrapped(text: str) -> list[str]:
    from stowplan.cli import tables

    return [line.text for line in tables.paragraph(text)]


def _heading(served: Served, trace: Trace) -> list[str]:
    setup = served.setup
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in trace.dropped.items() if count)
    plural = "s" if len(trace) > 1 else ""
    return [
        "",
        *_wrapped(f"{setup.model.name}  {setup.model.quant.upper()}   on   {setup.machine.name}"),
        *_wrapped(f"{trace.name}: {len(trace):,} request{plural}, {_rate_words(trace.rate)}; {trace.origin}"),
        *([f"  left out: {dropped}"] if dropped else []),
        "",
    ]


def replay_answer(
    served: Served, trace: Trace, answers: Answers, costs: Costs, objective: Objective | None, scheduler: str
) -> list[str]:
    """The answer first, then the distributions."""
    lines = _heading(served, trace)
    lines.append(
        f"  serves     {answers.requests_per_s:.3g} requests/s   {answers.output_tokens_per_s:,.0f} output tok/s   "
        f"{answers.prompt_tokens_per_s:,.0f} prompt tok/s"
    )
    if answers.attainment is not None and answers.goodput_per_s is not None and objective is not None:
        lines.append(
            f"  goodput    {answers.goodput_per_s:.3g} requests/s: {answers.attainment:.1%} meet the objective"
        )
    ends = ", ".join(f"{count:,} {state.replace('_', ' ')}" for state, count in answers.counts.items() if count)
    lines += ["", *_latencies(answers), ""]
    lines.append(f"  requests   {ends}; {answers.preempted:,} preempted")
    if answers.timed_out_tokens:
        lines.append(f"  dropped    {answers.timed_out_tokens:,} tokens of requests that timed out")
    lines.append(
        f"  steps      busy {answers.busy:.0%} of the time, {answers.mean_tokens:,.1f} tokens in a step on average"
    )
    room = f"room for {served.engine.cache_tokens:,} tokens" + (" each" if answers.engines > 1 else "")
    lines.append(f"  cache      {room}, {answers.peak_cache:.0%} in use at the most")
    if answers.hit_rate is not None:
        places = ", ".join(f"{name} {share:.1%}" for name, share in answers.hits.items())
        lines.append(f"  reuse      {answers.hit_rate:.1%} of prompt tokens were cached: {places}")
    spent = [
        f"{costs.joules_per_token:.3g} J per output token" if costs.joules_per_token is not None else "",
        f"{costs.usd_per_million:,.3g} USD per million of them" if costs.usd_per_million is not None else "",
    ]
    if any(spent):
        lines.append(f"  costs      {', '.join(text for text in spent if text)}, at most")
    error = served.engine.step_time.largest_error
    ahead = ", one step ahead" if served.ahead else ""
    lines.append(
        f"  engine     {served.plan.system}, {scheduler}{ahead}; step times within {error:.1%} of the engine's model"
    )
    return lines


def capacity_answer(
    served: Served, trace: Trace, found: Capacity, slo: str, share: float, *, counted: bool
) -> list[str]:
    """The answer first, then the latencies that come with it."""
    machines = f"{found.engines} machine{'s' if found.engines > 1 else ''}"
    lines = _heading(served, trace)
    if counted:
        lines.append(f"  needs      {machines} for {_rate_words(found.rate)}")
    else:
        lines.append(f"  carries    {found.rate:.3g} requests/s on {machines}, bursts as in the trace")
    lines.append(
        f"  objective  {slo}: {found.answers.attainment or 0.0:.2%} of the requests meet it, {share:.2%} wanted"
    )
    return [*lines, "", *_latencies(found.answers), "", f"  {len(found.tried)} replays"]


def _latencies(answers: Answers) -> list[str]:
    from stowplan.units import format_seconds

    lines = [f"  {'':22}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'longest':>10}"]
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
    return lines
