"""Options of the commands that replay traces: the trace, and what serves it. Every field is an option."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from stowplan.cli.inputs import Quant, Set


class SchedulerName(StrEnum):
    """Who decides which requests run."""

    CONTINUOUS = "continuous"
    CHUNKED = "chunked"
    STATIC = "static"
    SHORTEST = "shortest"
    SHORTEST_CHUNKED = "shortest-chunked"
    FAIR = "fair"


class Router(StrEnum):
    """Who takes a request among several engines."""

    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    PREFIX = "prefix"


class EvictionChoice(StrEnum):
    """Which cached blocks go first."""

    LRU = "lru"
    COST = "cost"


class EngineChoice(StrEnum):
    """Whose steps are replayed."""

    LLAMA_CPP = "llama.cpp"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """The trace, and what is done to it before it is replayed."""

    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A name of `stowplan traces list`, or a file.")]
    head: Annotated[int | None, typer.Option("--head", min=1, help="Only the first requests.")] = None
    between: Annotated[
        str | None, typer.Option("--between", metavar="START,END", help="Only arrivals in this span, such as 1h,2h.")
    ] = None
    rate: Annotated[float | None, typer.Option("--rate", help="Speed the trace up or down to requests/s.")] = None
    speed: Annotated[float | None, typer.Option("--speed", help="Play the trace so many times as fast.")] = None
    resample: Annotated[
        int | None, typer.Option("--resample", min=1, metavar="N", help="Draw the trace anew from N windows of it.")
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")] = 0
    conversations: Annotated[
        bool,
        typer.Option(
            "--conversations", help="Turns begin with the ones before; synthetic, where the trace does not say."
        ),
    ] = False
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave rows out that cannot be read, and count them.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """What serves; None for what was not given."""

    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="What serves; planned first.")] = None
    on: Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Where it serves.")] = None
    quant: Quant = None
    set_: Set = None
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN.json", help="Serve this plan instead.")] = None
    engine: Annotated[EngineChoice | None, typer.Option("--engine", help="The engine that is planned (llama.cpp).")] = (
        None
    )
    scheduler: Annotated[
        SchedulerName | None,
        typer.Option("--scheduler", help="Who decides which requests run (chunked; vLLM has its own)."),
    ] = None
    max_running: Annotated[
        int | None, typer.Option("--max-running", min=1, max=4096, help="Requests at a time (128; vLLM as planned).")
    ] = None
    budget: Annotated[
        int | None, typer.Option("--budget", min=16, max=65536, help="Tokens of one step (2048; vLLM as planned).")
    ] = None
    block_size: Annotated[
        int | None, typer.Option("--block-size", min=1, help="Tokens of one block of vLLM's cache (16).")
    ] = None
    step_overhead: Annotated[
        str | None, typer.Option("--step-overhead", metavar="TIME", help="The server's own work per step (0 ms).")
    ] = None
    max_waiting: Annotated[
        int | None, typer.Option("--max-waiting", min=1, help="Requests that may wait; more are refused.")
    ] = None
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="How long a client waits for its answer.")
    ] = None
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache", help="Prompts that begin alike share their cache.")
    ] = False
    kv_tier: Annotated[
        list[str] | None,
        typer.Option(
            "--kv-tier",
            metavar="PLACE=SIZE",
            help="Keep cached blocks in host=64GiB, disk=1TB, remote=10TB@25GB/s+1ms. Repeatable.",
        ),
    ] = None
    eviction: Annotated[
        EvictionChoice | None, typer.Option("--eviction", help="Which cached blocks go first (lru).")
    ] = None
    engines: Annotated[
        int | None, typer.Option("--engines", min=1, max=4096, help="Machines that serve side by side (1).")
    ] = None
    prompt_engines: Annotated[
        int, typer.Option("--prompt-engines", min=0, max=4096, help="Further machines for prompts alone.")
    ] = 0
    handover: Annotated[
        str | None, typer.Option("--handover", metavar="RATE", help="Link from prompt machines, such as 50GB/s.")
    ] = None
    router: Annotated[
        Router | None, typer.Option("--router", help="Who takes a request among several machines (least-loaded).")
    ] = None
    migrate: Annotated[bool, typer.Option("--migrate", help="Sequences move from crowded machines to others.")] = False
