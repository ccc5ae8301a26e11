"""From vLLM's settings on a machine to an engine that serves: its step time in closed form, and room for its cache.

A step runs one pass over the weights for all tokens of the batch, then attention for each sequence. The kernel forms
price both; here they become the pieces that a replay sums. Attention of decoding sequences is fitted by straight lines
in their number and their cached tokens, by ranges of the mean context, and that of a prompt chunk by its query-key
pairs, cached tokens and tokens; the compiled step time says how far it is from the forms on steps of all kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from stowplan.errors import NotExpressible
from stowplan.models.model import Attention, LatentAttention, Layer
from stowplan.ops import cached_tokens, visible_pairs
from stowplan.plan import MemoryUse, Plan
from stowplan.serving.disaggregated import Handover, Stage, replay_disaggregated
from stowplan.serving.from_plan import Engine
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay
from stowplan.serving.policies import Caching
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import ChunkTerm, DecodePiece, StepTime
from stowplan.systems.base import RAM, Setup
from stowplan.systems.vllm import Vllm
from stowplan.systems.vllm_execution import VllmRun
from stowplan.systems.vllm_memory import memory_of, token_bytes
from stowplan.systems.vllm_settings import VllmSettings, settings_of

_CONTEXT_RANGES = (0.0, *(float(2**power) for power in range(6, 18)))


@dataclass(frozen=True, slots=True)
class VllmEngine:
    """vLLM as a replay takes it.

    Attributes:
        engine: step time, limits and cache.
        scheduler: name of the scheduler that this version has; ahead: whether it works one step ahead.
        prefix_caching: whether prompts that begin alike share their blocks.
        request_s: seconds that a request spends outside the scheduler: on its way in, and its tokens back.
    """

    engine: Engine
    scheduler: str
    ahead: bool
    prefix_caching: bool
    request_s: float


def vllm_engine(setup: Setup, settings: VllmSettings) -> VllmEngine:
    """The engine under given settings.

    Args:
        setup: model, machine, and figures of ``figures_for(machine, "vllm", settings.engine)``.
        settings: the engine's own.

    Raises:
        NotExpressible: see `VllmRun`.
        DoesNotFit: no room for a block of cache.
    """
    run, memory, traits = VllmRun(setup, settings), memory_of(setup, settings), settings.traits
    tokens = memory.cache_tokens(settings.block_tokens)
    context = min(settings.max_model_len or setup.model.max_context, tokens)
    limits = Limits(
        kv_blocks=tokens // settings.block_tokens,
        block_tokens=settings.block_tokens,
        max_running=settings.max_num_seqs,
        max_batched_tokens=max(settings.max_num_batched_tokens, settings.max_num_seqs),
        watermark=traits.watermark,
    )
    uses = memory.uses(setup, settings.tensor_parallel, tokens)
    host = uses[RAM]
    if setup.machine.gpus[0].unified:
        host = MemoryUse(used=host.used + uses["gpu0"].used, capacity=host.capacity)
    engine = Engine(compile_vllm(run, context, tokens), limits, tokens, token_bytes(setup.model, settings), host)
    return VllmEngine(
        engine,
        traits.scheduler,
        traits.ahead,
        settings.prefix_caching and traits.prefix_caching,
        setup.figures.value("vllm.host.request"),
    )


def engine_of_plan(setup: Setup, plan: Plan) -> VllmEngine:
    """The engine that a vLLM plan makes.

    Raises:
        NotExpressible: a plan of another system, or one that vLLM does not have; see also `vllm_engine`.
        DoesNotFit: no room for a block of cache.
    """
    if plan.system != Vllm.key:
        raise NotExpressible(f"this engine runs plans of vLLM, not of {plan.system}")
    return vllm_engine(setup, settings_of(plan))


def replay_vllm(requests: Requests, vllm: VllmEngine, patience_s: float | None = None) -> Replay:
    """Replay requests as clients see them: the time outside the scheduler is in the moments of the tokens.

    Args:
        requests: what is sent, in order.
        vllm: what serves it.
        patience_s: seconds after which a client gives up; None for never.

    Raises:
        InputError: see `stowplan.serving.replay.replay`.
    """
    limits = replace(vllm.engine.limits, patience_s=patience_s)
    caching = Caching() if vllm.prefix_caching else None
    done = replay(requests, vllm.engine.step_time, limits, vllm.scheduler, caching, ahead=vllm.ahead)
    return done.seen_by_clients(vllm.request_s)


def replay_pair(requests: Requests, prompts: VllmEngine, decodes: VllmEngine, handover: Handover) -> Replay:
    """Replay requests through an engine for prompts and one for decoding, as clients see them.

    Args:
        requests: what is sent, in order.
        prompts, decodes: what serves it.
        handover: how the cache gets from the one to the other.

    Raises:
        InputError: see `stowplan.serving.disaggregated.replay_disaggregated`.
    """
    first, second = (
        Stage(1, each.engine.step_time, each.engine.limits, ahead=each.ahead) for each in (prompts, decodes)
    )
    return replay_disaggregated(requests, first, second, handover).seen_by_clients(prompts.request_s)


def compile_vllm(run: VllmRun, context: int, cache_tokens: int) -> StepTime:
    """The step time of vLLM on a setup.

    Args:
        run: what it runs.
        context: longest sequence in tokens.
        cache_tokens: tokens of cache over all sequences; steps beyond them are not fitted.
    """
    settings = run.settings
    floor, host = run.attention_floor.seconds, run.host_s(0, 0)
    counts = _token_counts(settings, settings.max_num_batched_tokens)
    step_time = StepTime(
        body=tuple((count, run.body(count).seconds + floor + host) for count in counts),
        logits=((0, 0.0), *((rows, run.logits(rows).seconds) for rows in _doubling(settings.max_num_seqs))),
        decode=tuple(_decode_pieces(run, context, cache_tokens)),
        chunk=tuple(_chunk_terms(run, context)),
    )
    return replace(step_time, largest_error=max(_errors(run, step_time, context, cache_tokens), default=0.0))


def _token_counts(settings: VllmSettings, largest: int) -> list[int]:
    """Tokens at which the body is sampled: both ends of every captured graph, then in steps of an eighth."""
    edges = {1, largest}
    for low, high in zip((0, *settings.graph_sizes), settings.graph_sizes, strict=False):
        edges |= {low + 1, high}
    count = max(settings.graph_sizes, default=1) + 1
    while count < largest:
        edges.add(count)
        count += max(1, count // 8)
    return sorted(edge for edge in edges if edge <= largest) if largest > 1 else [1, 2]


def _doubling(last: int, first: int = 1) -> list[int]:
    """First, its doubles, and last; two numbers at least."""
    counts = [first]
    while counts[-1] * 2 < last:
        counts.append(counts[-1] * 2)
    return [*counts, max(last, counts[-1] + 1)]


def _decode_pieces(run: VllmRun, context: int, cache_tokens: int) -> Iterator[DecodePiece]:
    windows = {float(window) for _, window in map(_sight, _layers(run)) if window is not None}
    starts = sorted(start for start in {*_CONTEXT_RANGES, *windows} if start < context)
    for low, high in zip(starts, (*starts[1:], float(context)), strict=True):
        points = [
            (batch, mean)
            for mean in np.linspace(max(low, 1.0), high, 5).tolist()
            for batch in _doubling(run.settings.max_num_seqs)
            if batch == 1 or batch * mean <= cache_tokens
        ]
        yield DecodePiece(low, *_fit_decode(run, points))


def _fit_decode(run: VllmRun, points: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds per sequence and per cached token, none negative, by least squares of the steps' relative errors."""
    seconds = np.array([run.decode_attention(float(batch), mean).seconds for batch, mean in points])
    whole = seconds + np.array([run.body(batch).seconds for batch, _ in points])
    features = np.array([(float(batch), batch * mean) for batch, mean in points])
    per_sequence, per_token = _nonnegative(features, seconds, whole)
    return per_sequence, per_token


def _nonnegative(features: np.ndarray, seconds: np.ndarray, whole: np.ndarray) -> list[float]:
    from scipy.optimize import nnls

    weighted = features / whole[:, None]
    scale = np.maximum(np.abs(weighted).max(axis=0), 1e-300)
    found, _ = nnls(weighted / scale, seconds / whole)
    return [float(value) for value in (found / scale).tolist()]


def _layers(run: VllmRun) -> list[Layer]:
    return [alike.members.layer for alike in run.alike]


def _chunk_terms(run: VllmRun, context: int) -> Iterator[ChunkTerm]:
    """One term for all layers that see equally far."""
    sights: dict[tuple[int | None, int | None], list[tuple[Layer, int]]] = {}
    for alike in run.alike:
        layer = alike.members.layer
        sights.setdefault(_sight(layer), []).append((layer, alike.count))
    for (sight, window), members in sights.items():
        yield _chunk_term(run, members, sight, window, context)
    per_prompt = run.host_s(1, 0) - run.host_s(0, 0)
    per_token = run.host_s(0, 1) - run.host_s(0, 0)
    if per_prompt or per_token:
        yield ChunkTerm(None, None, ((0.0, 0.0, per_token, per_prompt),))


def _sight(layer: Layer) -> tuple[int | None, int | None]:
    mixer = layer.mixer
    if isinstance(mixer, LatentAttention):
        return mixer.selected, None
    assert isinstance(mixer, Attention)
    return mixer.window, mixer.window


def _chunk_term(
    run: VllmRun,
    members: list[tuple[Layer, int]],
    sight: int | None,
    window: int | None,
    context: int,
) -> ChunkTerm:
    budget = run.settings.max_num_batched_tokens
    points = [
        (new, past)
        for new in _doubling(min(budget, context), 4)
        for past in (0, *_doubling(context, 64))
        if past + new <= max(context, 128)
    ]
    count = sum(number for _, number in members)
    seconds = np.array([sum(n * run.layer_chunk(layer, new, past) for layer, n in members) for new, past in points])
    whole = seconds + np.array([run.body(new).seconds for new, _ in points]) * count / len(run.weights)
    features = np.array(
        [(visible_pairs(new, past, sight), cached_tokens(past, new, window), float(new)) for new, past in points]
    )
    pairs, cached, tokens = _nonnegative(features, seconds, whole)
    return ChunkTerm(sight, window, ((pairs, cached, tokens, 0.0),))


def _errors(run: VllmRun, step_time: StepTime, context: int, cache_tokens: int) -> Iterator[float]:
    """Relative errors on decode steps, lone chunks, and chunks that ride along with decodes."""
    for batch in (1, 3, 24, 100, run.settings.max_num_seqs):
        for mean in (100, 700, 3000, context - 1):
            if not 1 <= mean < context or batch > run.settings.max_num_seqs or batch * mean > cache_tokens:
                continue
            for chunk in (0, 13, 300, 1500):
                tokens = batch + chunk
                if tokens > run.settings.max_num_batched_tokens or mean + chunk > context:
                    continue
                chunks = [(chunk, mean)] if chunk else []
                exact = run.body(tokens).seconds + run.attention_floor.seconds + run.host_s(len(chunks), chunk)
                exact += run.logits(batch + len(chunks)).seconds + run.decode_attention(batch, mean).seconds
                exact += sum(run.chunk_attention(float(new), float(past)).seconds for new, past in chunks)
                yield abs(step_time.seconds(batch, batch * mean, chunks) / exact - 1.0) if exact else inf
