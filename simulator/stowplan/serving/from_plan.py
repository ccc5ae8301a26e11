"""From a plan to an engine that serves: what a step costs under its placement, and how many tokens of cache it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.models import state_bytes
from stowplan.models.model import Recurrence
from stowplan.ops import CacheFormat
from stowplan.plan import MemoryUse, Plan
from stowplan.serving.compile_step_time import Range, compile_step_time
from stowplan.serving.limits import Limits, Preemption
from stowplan.serving.step_time import StepTime
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_settings import settings_of
from stowplan.systems.serial import LayerPlaces
from stowplan.units import format_bytes

_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that serves a plan.

    Attributes:
        step_time: seconds of a step by its batch, chunks and contexts.
        limits: paged cache and admission limits.
        cache_tokens: tokens of cache over all sequences.
        token_bytes: bytes of cache of one token over all layers; 0 where nobody asked.
        host: use of host memory by weights, buffers and the full cache, those of a GPU that shares it included; None
            where nobody asked.
    """

    step_time: StepTime
    limits: Limits
    cache_tokens: int
    token_bytes: float = 0.0
    host: MemoryUse | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """How a plan is served.

    Attributes:
        max_running: sequences at a time.
        budget: tokens of one step.
        preemption: what happens to a sequence without room to grow.
        context: longest context in tokens for which the step time is sampled.
        step_overhead_s: seconds of the serving engine's own host work per step.
    """

    max_running: int = 256
    budget: int = 2048
    preemption: Preemption = "recompute"
    context: int = 32768
    step_overhead_s: float = 0.0


def engine_of(setup: Setup, plan: Plan, serving: Serving) -> Engine:
    """The engine that a llama.cpp placement makes; memory beside weights and buffers is paged cache.

    Raises:
        NotExpressible: a plan of another system.
        DoesNotFit: no room for any cache.
    """
    if plan.system != LlamaCpp.key:
        raise NotExpressible(f"a replay runs plans of llama.cpp, not of {plan.system}")
    system = LlamaCpp()
    layers = system.placement(setup, plan)
    settings = settings_of(plan)
    alone = plan.workload.model_copy(update={"batch": 1, "context": 1, "depth": 0, "prompt": 0, "generate": 0})
    run = LlamaCppRun(setup, alone, settings)
    memory = run.memory(layers, plan.embedding, plan.output)
    run.overflow(memory, layers)
    tokens = cache_tokens(run, layers, memory, serving.max_running)
    blocks = tokens // _BLOCK_TOKENS
    if blocks < 1:
        raise DoesNotFit(f"{setup.machine.name} has no room for a cache beside {setup.model.name}")
    span = Range(tokens=serving.budget, context=serving.context, batch=serving.max_running)
    step_time = compile_step_time(run, layers, plan.output, span, step_overhead_s=serving.step_overhead_s)
    limits = Limits(
        kv_blocks=blocks,
        block_tokens=_BLOCK_TOKENS,
        max_running=serving.max_running,
        max_batched_tokens=max(serving.budget, serving.max_running),
        preemption=serving.preemption,
    )
    token_bytes = sum(
        run.cache.token_bytes(layer) for layer in setup.model.layers if not isinstance(layer.mixer, Recurrence)
    )
    return Engine(step_time, limits, tokens, token_bytes, _full_host(run, layers, memory, serving.max_running, tokens))


def cache_tokens(
    run: LlamaCppRun, layers: Sequence[LayerPlaces], memory: Mapping[str, MemoryUse], sequences: int
) -> int:
    """Tokens of cache that the tightest tier has room for, margins and recurrent states of `sequences` left out.

    Every layer keeps every token: a sliding window is not freed.

    Raises:
        DoesNotFit: recurrent states alone do not fit.
    """
    token, state = _cache_sizes(run, layers)
    room: list[float] = []
    for tier, size in token.items():
        use = memory[tier]
        margin = run.margin if tier != RAM else 0.0
        left = use.capacity - margin - (use.used - use.parts.get("cache", 0.0)) - sequences * state.get(tier, 0.0)
        room.append(_tokens(tier, left, size))
    if run.unified and room:
        host = _full_host(run, layers, memory, sequences, 0)
        room.append(_tokens(RAM, host.capacity - host.used, sum(token.values())))
    return int(min(room)) if room else 2**40


def _tokens(tier: str, left: float, size: float) -> float:
    if left < 0:
        raise DoesNotFit(f"{tier} lacks {format_bytes(-left)} before the first token of cache", -left)
    return left / size


def _cache_sizes(run: LlamaCppRun, layers: Sequence[LayerPlaces]) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes by tier of a cached token, and of the recurrent states of a sequence."""
    cache: CacheFormat = run.cache
    token: dict[str, float] = {}
    state: dict[str, float] = {}
    for layer, places in zip(run.setup.model.layers, layers, strict=True):
        if isinstance(layer.mixer, Recurrence):
            state[places.kv] = state.get(places.kv, 0.0) + state_bytes(layer.mixer)
        else:
            token[places.kv] = token.get(places.kv, 0.0) + cache.token_bytes(layer)
    return token, state


def _full_host(
    run: LlamaCppRun, layers: Sequence[LayerPlaces], memory: Mapping[str, MemoryUse], sequences: int, tokens: int
) -> MemoryUse:
    """Use of host memory with so many cached tokens; where a GPU shares it, all that the GPU holds counts as well."""
    token, state = _cache_sizes(run, layers)
    tiers = list(memory) if run.unified else [RAM]
    host = memory[RAM]
    before = sum(memory[tier].parts.get("cache", 0.0) for tier in tiers)
    after = sum(tokens * token.get(tier, 0.0) + sequences * state.get(tier, 0.0) for tier in tiers)
    return MemoryUse(used=host.used - before + after, capacity=host.capacity)
