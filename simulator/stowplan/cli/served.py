"""From options to what is replayed: the trace, and the service that a plan makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stowplan.errors import DoesNotFit, InputError

if TYPE_CHECKING:
    from stowplan.plan import Plan
    from stowplan.serving.disaggregated import Handover
    from stowplan.serving.eviction import EvictionName
    from stowplan.serving.fleet import Migration
    from stowplan.serving.from_plan import Engine
    from stowplan.serving.kv_tiers import Place
    from stowplan.serving.replay import Caching
    from stowplan.serving.routers import RouterName
    from stowplan.serving.service import Service
    from stowplan.systems.base import Setup
    from stowplan.traces.trace import Trace

_TOGETHER = 8
_SCHEDULER = "chunked"
_MAX_RUNNING = 128
_BUDGET = 2048


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What is done to a trace before it is replayed."""

    name: str
    head: int | None = None
    between: str | None = None
    rate: float | None = None
    speed: float | None = None
    resample: int | None = None
    seed: int = 0
    conversations: bool = False
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What serves, in the words of the options; None for one that was not given."""

    model: str | None = None
    on: str | None = None
    quant: str | None = None
    overrides: Sequence[str] = ()
    plan: str | None = None
    engine: str | None = None
    scheduler: str | None = None
    max_running: int | None = None
    budget: int | None = None
    step_overhead: str | None = None
    max_waiting: int | None = None
    timeout: str | None = None
    prefix_cache: bool = False
    kv_tiers: Sequence[str] = ()
    eviction: EvictionName = "lru"
    engines: int = 1
    prompt_engines: int = 0
    handover: str | None = None
    router: RouterName = "least-loaded"
    migrate: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """A service, and the setup and plan that it came from."""

    service: Service
    setup: Setup
    plan: Plan

    @property
    def engine(self) -> Engine:
        """One engine of the service."""
        return self.service.engine

    @property
    def ahead(self) -> bool:
        """Whether the replay lets the engine schedule a step while the one before it runs."""
        return self.service.ahead and self.service.machines == 1


def trace_of(options: TraceOptions) -> Trace:
    """The trace that is asked for.

    Raises:
        UnknownName, BadFile, InputError: it cannot be read, or not be changed as asked.
    """
    from stowplan.traces.conversations import with_conversations
    from stowplan.traces.reading import load_trace
    from stowplan.traces.rows import ReadOptions
    from stowplan.units import parse_quantity

    reading = ReadOptions(skip_bad=options.skip_bad, seed=options.seed, rate=options.rate)
    found = load_trace(options.name, reading)
    if options.between is not None:
        start, comma, end = options.between.partition(",")
        if not comma:
            raise InputError(f"--between {options.between[:60]}: give two moments, such as 1h,2h")
        found = found.slice(*(parse_quantity(text, "seconds", where="--between") for text in (start, end)))
    if options.head is not None:
        found = found.head(options.head)
    if options.resample is not None:
        found = found.resampled(options.resample, options.seed)
    if options.conversations:
        found = with_conversations(found, seed=options.seed)
    if options.speed is not None:
        if options.rate is not None:
            raise InputError("--speed and --rate both say how fast the trace is played; give one of them")
        if options.speed <= 0.0:
            raise InputError(f"--speed {options.speed:g}: give a factor above 0")
        found = found.scaled_time(1.0 / options.speed)
    return found if options.rate is None else found.scaled_rate(options.rate)


def served_by(options: ServiceOptions, trace: Trace) -> Served:
    """The service that is asked for.

    Raises:
        StowplanError: the plan cannot be read, found or served, or an option contradicts another.
    """
    from dataclasses import replace

    from stowplan.serving.kv_tiers import parse_place
    from stowplan.serving.service import Service

    _check_together(options)
    patience, places = _patience(options), [parse_place(text) for text in options.kv_tiers]
    setup, plan = _planned(options, trace)
    if plan.system == "vllm":
        from stowplan.serving.from_vllm import engine_of_plan
        from stowplan.systems.vllm_settings import settings_of

        plan = _with_settings_of_vllm(options, plan)
        vllm, gpus = engine_of_plan(setup, plan), settings_of(plan).tensor_parallel
        engine = vllm.engine
        own = vllm.prefix_caching and not options.prompt_engines
        scheduler, ahead, request_s = vllm.scheduler, vllm.ahead, vllm.request_s
    else:
        engine, gpus, own = _llama_cpp(options, setup, plan, trace), 1, False
        scheduler, ahead, request_s = options.scheduler or _SCHEDULER, False, 0.0
    limits = replace(engine.limits, max_waiting=options.max_waiting, patience_s=patience)
    engine = replace(engine, limits=limits)
    return Served(
        Service(
            engine=engine,
            scheduler=scheduler,
            caching=_caching(options, places, setup, engine, trace, gpus, own=own),
            engines=options.engines,
            prompt_engines=options.prompt_engines,
            router=options.router,
            migration=_migration(options, setup, engine),
            handover=_handover(options, engine, gpus),
            ahead=ahead,
            request_s=request_s,
        ),
        setup,
        plan,
    )


def _check_together(options: ServiceOptions) -> None:
    """Refuse options that would change nothing next to others."""
    if options.prompt_engines and options.scheduler is not None:
        raise InputError("--scheduler: prompt engines take whole prompts, first come, first served; leave it out")
    if options.prompt_engines and (options.prefix_cache or options.kv_tiers or options.migrate):
        raise InputError("--prompt-engines: work without --prefix-cache, --kv-tier and --migrate; leave those out")
    if options.prompt_engines and (options.max_waiting is not None or options.timeout is not None):
        raise InputError("--prompt-engines: know no --max-waiting and no --timeout; leave those out")
    if options.migrate and options.engines < 2:
        raise InputError("--migrate: sequences can only move where there are two engines or more; give --engines")
    if options.prompt_engines and options.handover is None:
        raise InputError("--prompt-engines: needs the rate at which caches are handed over, such as --handover 50GB/s")
    if options.handover is not None and not options.prompt_engines:
        raise InputError("--handover: says how fast prompt engines hand over; give --prompt-engines too")
    running, budget = options.max_running or _MAX_RUNNING, options.budget
    if budget is not None and budget < running:
        raise InputError(
            f"--budget {budget}: a step holds a token of each of {running} running requests; give a larger budget or "
            f"a smaller --max-running"
        )


def _patience(options: ServiceOptions) -> float | None:
    from stowplan.units import parse_quantity

    if options.timeout is None:
        return None
    seconds = parse_quantity(options.timeout, "seconds", where="--timeout")
    if seconds <= 0.0:
        raise InputError(f"--timeout {options.timeout}: a client that waits no time gets nothing; give more")
    return seconds


def _llama_cpp(options: ServiceOptions, setup: Setup, plan: Plan, trace: Trace) -> Engine:
    from stowplan.serving.from_plan import Serving, engine_of
    from stowplan.units import parse_quantity

    longest = max(int((trace.prompt_tokens + trace.output_tokens).max()), 1024)
    overhead = parse_quantity(options.step_overhead or "0 ms", "seconds", where="--step-overhead")
    running = options.max_running or _MAX_RUNNING
    budget = options.budget or max(_BUDGET, running)
    return engine_of(setup, plan, Serving(running, budget, "recompute", longest, overhead))


def _with_settings_of_vllm(options: ServiceOptions, plan: Plan) -> Plan:
    """The plan with as many sequences and tokens in a step as the options say.

    Raises:
        InputError: an option for what vLLM decides itself.
    """
    if options.scheduler is not None:
        raise InputError("--scheduler: vLLM has its own, which is replayed; leave it out")
    if options.step_overhead is not None:
        raise InputError("--step-overhead: is part of what is known of vLLM; leave it out")
    given = {"max_num_seqs": options.max_running, "max_num_batched_tokens": options.budget}
    changed = {name: value for name, value in given.items() if value is not None}
    return plan.model_copy(update={"settings": plan.settings | changed})


def _caching(
    options: ServiceOptions, places: list[Place], setup: Setup, engine: Engine, trace: Trace, gpus: int, *, own: bool
) -> Caching | None:
    """The prefix cache: where it is asked for, or where the engine has one and the trace says what begins alike."""
    from stowplan.serving.kv_tiers import tiers_of
    from stowplan.serving.replay import Caching

    if not (options.prefix_cache or places or own):
        return None
    if trace.prefix is None:
        if not (options.prefix_cache or places):
            return None
        mend = "add --conversations to let each turn begin with the one before, or leave the cache out"
        raise InputError(
            f"trace '{trace.name}' does not say which prompts begin alike, so that a prefix cache would find nothing; "
            f"{mend}"
        )
    block = engine.token_bytes * engine.limits.block_tokens
    tiers = tiers_of(setup, places, block, engine.host, gpus) if places else ()
    return Caching(tiers, options.eviction)


def _migration(options: ServiceOptions, setup: Setup, engine: Engine) -> Migration | None:
    """Sequences are copied from host to host: through the GPU's link, the slower part of a fast network."""
    from stowplan.serving.fleet import Migration

    if not options.migrate:
        return None
    rate = setup.figures.value("gpu0.d2h.pinned") if setup.machine.gpus else setup.figures.value("host.dram")
    return Migration(s_per_block=engine.token_bytes * engine.limits.block_tokens / rate)


def _handover(options: ServiceOptions, engine: Engine, gpus: int) -> Handover:
    from stowplan.serving.disaggregated import Handover
    from stowplan.units import parse_quantity

    if options.handover is None:
        return Handover(0.0)
    rate = parse_quantity(options.handover, "bytes/s", where="--handover")
    if rate <= 0.0:
        raise InputError(f"--handover {options.handover}: nothing would arrive; give a rate above 0")
    return Handover(engine.token_bytes * gpus / rate)


def _planned(options: ServiceOptions, trace: Trace) -> tuple[Setup, Plan]:
    """The plan to serve: a file's, or the best one for eight median requests with room for the longest."""
    from pathlib import Path

    import numpy as np

    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.plan import checked_workload, read_plan
    from stowplan.planner.predict import make_setup
    from stowplan.systems import load_system

    model, on, quant, overrides, plan = options.model, options.on, options.quant, options.overrides, options.plan
    if plan is not None:
        if model is not None or on is not None or quant is not None:
            raise InputError(f"{plan} says model, mix and machine; leave out --model, --quant and --on")
        if options.engine is not None:
            raise InputError(f"{plan} says which engine runs it; leave out --engine")
        stored = read_plan(Path(plan))
        machine = load_machine(stored.machine, [*stored.set, *overrides])
        loaded = load_model(stored.model, stored.quant)
        return make_setup(machine, loaded, load_system(stored.system), stored.settings.get("engine")), stored
    if model is None or on is None:
        raise InputError("name what serves: --model MODEL --on MACHINE, or --plan PLAN.json")
    from stowplan.planner.dispatch import plan_for
    from stowplan.planner.result import Request

    system = options.engine or "llama.cpp"
    setup = make_setup(load_machine(on, overrides), load_model(model, quant), load_system(system))
    asked = {
        "prompt": max(1, int(np.median(trace.prompt_tokens))),
        "generate": max(1, int(np.median(trace.output_tokens))),
        "context": int((trace.prompt_tokens + trace.output_tokens).max()) + 1,
    }
    for together in (_TOGETHER, 1):  # room for the longest request several times, or at least once
        workload = checked_workload(asked | {"batch": together})
        try:
            return setup, plan_for(system, Request(setup, (model, quant), workload)).plan
        except DoesNotFit:
            if together == 1:
                raise
    raise AssertionError("the loop returns or raises")
