"""From options to what is replayed: the trace, and the service that a plan makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stowplan.cli.serving_conflicts import Asked, check_together
from stowplan.cli.serving_options import EngineChoice, Router
from stowplan.errors import DoesNotFit, InputError

if TYPE_CHECKING:
    from stowplan.cli.serving_options import ServiceOptions, TraceOptions
    from stowplan.plan import Plan
    from stowplan.serving.disaggregated import Handover
    from stowplan.serving.fleet import Migration
    from stowplan.serving.from_plan import Engine
    from stowplan.serving.kv_tiers import Place
    from stowplan.serving.policies import Caching
    from stowplan.serving.service import Service
    from stowplan.systems.base import Setup
    from stowplan.systems.vllm_settings import VllmSettings
    from stowplan.traces.trace import Trace

_TOGETHER = 8
_SCHEDULER = "chunked"
_MAX_RUNNING = 128
_BUDGET = 2048


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
        """Whether an engine schedules a step while the one before it runs."""
        return self.service.ahead


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
    found = load_trace(options.trace, reading)
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


def served_by(options: ServiceOptions, traced: TraceOptions, trace: Trace, *, counted: bool = False) -> Served:
    """The service that is asked for.

    Args:
        options: what serves.
        traced, trace: what is replayed, as it was asked for and as it is.
        counted: whether the number of engines is what is looked for.

    Raises:
        StowplanError: the plan cannot be read, found or served, or an option contradicts another.
    """
    from dataclasses import replace

    from stowplan.serving.kv_tiers import parse_place
    from stowplan.serving.service import Service

    stored = _stored(options)
    engines = options.engines or 1
    check_together(Asked(traced, options, counted or engines > 1, _vllm(options, stored)))
    patience, places = _patience(options), [parse_place(text) for text in options.kv_tier or []]
    setup, plan = _planned(options, trace) if stored is None else _loaded(options, stored)
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
            engines=engines,
            prompt_engines=options.prompt_engines,
            router=options.router.value if options.router else "least-loaded",
            migration=_migration(options, setup, engine),
            handover=_handover(options, engine, gpus),
            ahead=ahead,
            request_s=request_s,
        ),
        setup,
        plan,
    )


def _stored(options: ServiceOptions) -> Plan | None:
    """The plan of a file, if one is to be served.

    Raises:
        InputError: nothing is to be served, or what a plan says itself is asked for as well.
        BadFile: it is no plan.
    """
    from pathlib import Path

    from stowplan.plan import read_plan

    model, on, quant, plan = options.model, options.on, options.quant, options.plan
    if plan is None:
        if model is None or on is None:
            raise InputError("name what serves: --model MODEL --on MACHINE, or --plan PLAN.json")
        return None
    if model is not None or on is not None or quant is not None:
        raise InputError(f"{plan} says model, mix and machine; leave out --model, --quant and --on")
    if options.engine is not None:
        raise InputError(f"{plan} says which engine runs it; leave out --engine")
    return read_plan(Path(plan))


def _vllm(options: ServiceOptions, stored: Plan | None) -> VllmSettings | None:
    """Settings of the vLLM that will serve, as far as they are known before it is planned; None for llama.cpp."""
    from stowplan.systems.vllm_settings import VllmSettings, settings_of

    if stored is not None:
        return settings_of(stored) if stored.system == "vllm" else None
    return VllmSettings() if options.engine is EngineChoice.VLLM else None


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
    _check_budget(budget, running)
    return engine_of(setup, plan, Serving(running, budget, "recompute", longest, overhead))


def _with_settings_of_vllm(options: ServiceOptions, plan: Plan) -> Plan:
    """The plan with as many sequences and tokens in a step, and in a block, as the options say.

    Raises:
        InputError: blocks of a size that vLLM does not have, or a step that cannot hold all sequences.
    """
    from stowplan.systems.vllm_settings import settings_of

    given = {
        "max_num_seqs": options.max_running,
        "max_num_batched_tokens": options.budget,
        "block_tokens": options.block_size,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    plan = plan.model_copy(update={"settings": plan.settings | changed})
    settings = settings_of(plan)
    sizes = settings.traits.block_sizes
    if options.block_size is not None and options.block_size not in sizes:
        shown = f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"
        raise InputError(f"--block-size {options.block_size}: {settings.traits.name} has blocks of {shown} tokens")
    if options.budget is not None:
        _check_budget(options.budget, settings.max_num_seqs)
    return plan


def _check_budget(budget: int, running: int) -> None:
    if budget < running:
        raise InputError(
            f"--budget {budget}: a step holds a token of each of {running} running requests; give a larger budget or "
            f"a smaller --max-running"
        )


def _caching(
    options: ServiceOptions, places: list[Place], setup: Setup, engine: Engine, trace: Trace, gpus: int, *, own: bool
) -> Caching | None:
    """The prefix cache: where it is asked for, or where the engine has one and the trace says what begins alike."""
    from stowplan.serving.kv_tiers import tiers_of
    from stowplan.serving.policies import Caching

    if not (options.prefix_cache or places or own):
        return None
    if trace.prefix is None:
        if not (options.prefix_cache or places or options.eviction or options.router is Router.PREFIX):
            return None
        raise InputError(
            f"trace '{trace.name}' does not say which prompts begin alike, so that a prefix cache would find nothing; "
            f"add --conversations to let each turn begin with the one before, or leave out what is asked of the cache"
        )
    block = engine.token_bytes * engine.limits.block_tokens
    tiers = tiers_of(setup, places, block, engine.host, gpus) if places else ()
    return Caching(tiers, options.eviction.value if options.eviction else "lru")


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


def _loaded(options: ServiceOptions, stored: Plan) -> tuple[Setup, Plan]:
    """A file's plan, and what it runs on."""
    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.planner.predict import make_setup
    from stowplan.systems import load_system

    machine = load_machine(stored.machine, [*stored.set, *(options.set_ or [])])
    loaded = load_model(stored.model, stored.quant)
    return make_setup(machine, loaded, load_system(stored.system), stored.settings.get("engine")), stored


def _planned(options: ServiceOptions, trace: Trace) -> tuple[Setup, Plan]:
    """The best plan for eight median requests with room for the longest."""
    import numpy as np

    from stowplan.machines import load_machine
    from stowplan.models import load_model
    from stowplan.plan import checked_workload
    from stowplan.planner.dispatch import plan_for
    from stowplan.planner.predict import make_setup
    from stowplan.planner.result import Request
    from stowplan.systems import load_system

    model, on, quant = options.model, options.on, options.quant
    assert model is not None
    assert on is not None
    system = options.engine.value if options.engine else "llama.cpp"
    setup = make_setup(load_machine(on, options.set_ or []), load_model(model, quant), load_system(system))
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
