"""Batch costs from a plan: its step price, sampled at every number of running requests, and what its cache holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.ops import Step
from stowplan.plan import Plan
from stowplan.planner.batching_costs import Limits, Requests, StaticCost, batch_time
from stowplan.planner.batching_methods import first_fit, longest_outputs_first
from stowplan.planner.dispatch import plan_for
from stowplan.planner.result import Planned, Request
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.serial import LayerPlaces, SerialRun

_SAMPLED_PASS = 4096
_NO_BETTER = 1.05
"""Makespan over the least so far from which more slots are not tried: memory for them slows every step."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A cost and how far it is from the plan's own step prices.

    Attributes:
        cost: coefficients.
        decode_error: largest relative deviation of a decode step, over contexts from none to twice the mean.
        prefill_error: largest relative deviation of a micro-batch of a quarter, half or all of its tokens.
    """

    cost: StaticCost
    decode_error: float
    prefill_error: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan for a set of requests, its cost, and what its batches may hold."""

    planned: Planned
    fitted: Fitted
    limits: Limits


def static_cost(setup: Setup, plan: Plan, max_batch: int, context: int) -> Fitted:
    """Coefficients of a plan whose tasks run one after another.

    A step is a sum of tasks, of which only attention depends on the contexts, and in proportion to their sum as long as
    one resource limits it; what is left is taken as it is for every number of running requests.

    Args:
        setup, plan: what runs.
        max_batch: running requests that the cost covers.
        context: mean cached tokens of a request while it runs; prices are exact there.

    Raises:
        NotExpressible: a system that pads or overlaps, or a placement that the system does not have.
    """
    run, layers = _serial(setup, plan)
    run.overflow(run.memory(layers, plan.embedding, plan.output), layers)

    def price(step: Step) -> float:
        return run.step_price(layers, plan.output, step).seconds

    middle = max(1, context)
    half = -(-max_batch // 2)
    context_s = (price(Step.decode(half, 2 * middle)) - price(Step.decode(half, middle))) / (half * middle)
    counts = range(1, max_batch + 1)
    steps = tuple(max(0.0, price(Step.decode(n, middle)) - context_s * n * middle) for n in counts)
    decode_error = max(
        abs((steps[n - 1] + context_s * n * tokens) / price(Step.decode(n, tokens)) - 1.0)
        for n in sorted({1, half, max_batch})
        for tokens in (0, middle // 2, 2 * middle)
    )
    full = max(4, min(run.chunk, plan.workload.capacity * plan.workload.batch, _SAMPLED_PASS))
    samples = [(tokens, price(Step.prefill(tokens))) for tokens in (full // 4, full // 2, full)]
    pair_s = max(0.0, (price(Step.prefill(full, full)) - samples[-1][1]) / full**2)
    (few, short), (many, long) = ((n, seconds - pair_s * n * (n + 1) / 2) for n, seconds in samples[1:])
    token_s = max(0.0, (long - short) / (many - few))
    pass_s = max(0.0, long - token_s * many)
    prefill_error = max(abs((pass_s + token_s * n + pair_s * n * (n + 1) / 2) / seconds - 1) for n, seconds in samples)
    cost = StaticCost(steps, max(0.0, context_s), pass_s, token_s, pair_s, max(1, run.chunk))
    return Fitted(cost, decode_error, prefill_error)


def plan_for_requests(request: Request, requests: Requests, max_batch: int) -> Chosen:
    """The llama.cpp plan under which first-fit batches of the requests finish soonest.

    Slots are powers of two, and the cache holds as many mean requests (of half the length, where that is better). A
    batch keeps to the plan's slots and to its cache, whose tokens the slots share.

    Args:
        request: setup, settings and solver; its workload's lengths are replaced by those of the requests.
        requests: what is to be run.
        max_batch: slots at most.

    Raises:
        DoesNotFit: no slots fit the machine beside the weights.
    """
    best = _growing(request, requests, max_batch)
    slots = best.planned.plan.workload.batch
    if 2 * slots <= max_batch and slots < len(requests):  # the same cache in more slots, where requests are short
        try:
            halved = _planned(request, requests, 2 * slots, best.limits.cache_tokens)
        except DoesNotFit:
            return best
        best = min(best, halved, key=lambda chosen: _first_fit_seconds(chosen, requests))
    return best


def _growing(request: Request, requests: Requests, max_batch: int) -> Chosen:
    """Ever more slots, each with the cache of a mean request, until batches no longer finish sooner."""
    longest, mean = int(requests.reserved.max()), float(requests.reserved.mean())
    best = _planned(request, requests, 1, longest)
    least, slots = _first_fit_seconds(best, requests), 2
    while slots <= max_batch and slots < 2 * len(requests):
        try:
            chosen = _planned(request, requests, slots, max(longest, math.ceil(slots * mean)))
        except DoesNotFit:
            break
        makespan = _first_fit_seconds(chosen, requests)
        if makespan < least:
            best, least = chosen, makespan
        elif makespan > _NO_BETTER * least:
            break
        slots *= 2
    return best


def _planned(request: Request, requests: Requests, slots: int, cache_tokens: int) -> Chosen:
    """Plan for slots of mean requests that share a cache of at least so many tokens.

    The planner reserves cache per slot, so the mean request is cut in proportion where that is less.
    """
    prompt, output = float(requests.prompt.mean()), float(requests.output.mean())
    context = -(-cache_tokens // slots)
    fitting = min(1.0, context / (prompt + output))
    workload = request.workload.model_copy(
        update={
            "prompt": max(1, int(prompt * fitting)),
            "generate": int(output * fitting),
            "depth": 0,
            "context": max(context, 1 + int(output * fitting)),
            "batch": slots,
        }
    )
    planned = plan_for(LlamaCpp.key, replace(request, workload=workload, objective="throughput"))
    limits = Limits(cache_tokens=workload.capacity * slots, max_batch=min(slots, len(requests)))
    mean_context = round(prompt + output / 2)
    return Chosen(planned, static_cost(request.setup, planned.plan, limits.max_batch, mean_context), limits)


def _first_fit_seconds(chosen: Chosen, requests: Requests) -> float:
    limits, cost = chosen.limits, chosen.fitted.cost
    batches = first_fit(longest_outputs_first(requests), requests, limits, most=limits.max_batch)
    return sum(batch_time(cost, requests.prompt[members], requests.output[members]).seconds for members in batches)


def _serial(setup: Setup, plan: Plan) -> tuple[SerialRun, list[LayerPlaces]]:
    if plan.system != LlamaCpp.key:
        raise NotExpressible(
            f"{plan.system} pads batches or overlaps tasks; batches without padding are formed for {LlamaCpp.key}"
        )
    system = LlamaCpp()
    return system.run(setup, plan), system.placement(setup, plan)
