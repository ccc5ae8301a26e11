"""Options of the commands that replay traces: the trace, what serves it, and what is asked of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


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


TraceName = Annotated[str, typer.Argument(metavar="TRACE", help="A name of `stowplan traces list`, or a file.")]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="What serves; planned first.")]
OnMachine = Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Where it serves.")]
PlanFile = Annotated[str | None, typer.Option("--plan", metavar="PLAN.json", help="Serve this plan instead.")]
EngineOption = Annotated[EngineChoice | None, typer.Option("--engine", help="The engine that is planned (llama.cpp).")]
Head = Annotated[int | None, typer.Option("--head", min=1, help="Only the first requests.")]
Between = Annotated[
    str | None, typer.Option("--between", metavar="START,END", help="Only arrivals in this span, such as 1h,2h.")
]
Rate = Annotated[float | None, typer.Option("--rate", help="Speed the trace up or down to requests/s.")]
Speed = Annotated[float | None, typer.Option("--speed", help="Play the trace so many times as fast.")]
Resample = Annotated[
    int | None, typer.Option("--resample", min=1, metavar="N", help="Draw the trace anew from N windows of it.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
Conversations = Annotated[
    bool,
    typer.Option("--conversations", help="Turns begin with the ones before; synthetic, where the trace does not say."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave rows out that cannot be read, and count them.")]
Scheduler = Annotated[
    SchedulerName | None,
    typer.Option("--scheduler", help="Who decides which requests run (chunked; vLLM has its own)."),
]
MaxRunning = Annotated[
    int | None, typer.Option("--max-running", min=1, max=4096, help="Requests at a time (128; vLLM as planned).")
]
Budget = Annotated[
    int | None, typer.Option("--budget", min=16, max=65536, help="Tokens of one step (2048; vLLM as planned).")
]
StepOverhead = Annotated[
    str | None, typer.Option("--step-overhead", metavar="TIME", help="The server's own work per step (0 ms).")
]
MaxWaiting = Annotated[
    int | None, typer.Option("--max-waiting", min=1, help="Requests that may wait; more are refused.")
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="How long a client waits for its answer.")
]
PrefixCache = Annotated[bool, typer.Option("--prefix-cache", help="Prompts that begin alike share their cache.")]
KvTier = Annotated[
    list[str] | None,
    typer.Option(
        "--kv-tier",
        metavar="PLACE=SIZE",
        help="Keep cached blocks in host=64GiB, disk=1TB, remote=10TB@25GB/s+1ms. Repeatable.",
    ),
]
Eviction = Annotated[EvictionChoice, typer.Option("--eviction", help="Which cached blocks go first.")]
Engines = Annotated[int, typer.Option("--engines", min=1, max=4096, help="Machines that serve side by side.")]
PromptEngines = Annotated[
    int, typer.Option("--prompt-engines", min=0, max=4096, help="Further machines for prompts alone.")
]
Handover = Annotated[
    str | None, typer.Option("--handover", metavar="RATE", help="Link from prompt machines, such as 50GB/s.")
]
RouterOption = Annotated[Router, typer.Option("--router", help="Who takes a request among several machines.")]
Migrate = Annotated[bool, typer.Option("--migrate", help="Sequences move from crowded machines to others.")]
Slo = Annotated[str | None, typer.Option("--slo", metavar="ttft=1s,tpot=50ms", help="Count what meets it.")]
Rent = Annotated[float | None, typer.Option("--rent", metavar="USD", help="Price of a machine per hour.")]
Electricity = Annotated[float | None, typer.Option("--electricity", metavar="USD", help="Price of a kWh.")]
