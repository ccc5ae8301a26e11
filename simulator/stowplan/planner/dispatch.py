"""One door to the planners of all systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from stowplan.errors import DoesNotFit, NotExpressible, UnknownName
from stowplan.planner.result import Alternative, Planned, Request
from stowplan.systems import list_systems
from stowplan.systems.published import load_published, published_keys

if TYPE_CHECKING:
    from stowplan.planner.flexgen import RankedPolicy
    from stowplan.systems.flexgen_policy import FlexgenSettings


def plan_for(system_key: str, request: Request) -> Planned:
    """The best plan that a system can express.

    FlexGen is planned for throughput only, and chooses its batch where the workload's is 1.

    Raises:
        UnknownName: no such system.
        DoesNotFit: no placement satisfies the memory limits.
        NotExpressible: a setting or an objective that the system does not have.
    """
    if system_key in _PLANNERS:
        return _PLANNERS[system_key](request)
    if system_key in published_keys():
        from stowplan.planner.published import plan_published

        return plan_published(load_published(system_key), request)
    raise UnknownName("system", system_key[:60], [*list_systems(), *published_keys()])


def _llama_cpp(request: Request) -> Planned:
    from stowplan.planner.llama_cpp import plan_llama_cpp

    return plan_llama_cpp(request)


def _accelerate(request: Request) -> Planned:
    from stowplan.planner.accelerate import plan_accelerate

    return plan_accelerate(request)


def _vllm(request: Request) -> Planned:
    from stowplan.planner.vllm import plan_vllm

    return plan_vllm(request)


def _flexgen(request: Request) -> Planned:
    from pydantic import ValidationError

    from stowplan.planner.flexgen import polish
    from stowplan.planner.predict import predict
    from stowplan.systems.flexgen import Flexgen
    from stowplan.systems.flexgen_policy import FlexgenSettings

    if request.objective != "throughput":
        raise NotExpressible(f"FlexGen is planned for throughput, not for {request.objective}; leave the objective out")
    try:
        base = FlexgenSettings.model_validate(dict(request.settings))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotExpressible(f"FlexGen: {field}: {first['msg']}") from error
    names: dict[str, Any] = {
        "model": request.model_reference[0],
        "quant": request.model_reference[1],
        "set": request.setup.machine.settings,
    }
    policies = _policies(request, base, names)
    best = polish(request.setup, request.workload, policies[0], **names)
    prompts = best.plan.workload
    tokens = max(1, prompts.batch * prompts.generate)
    per_token = {"objective": best.solver.objective / tokens, "bound": best.solver.bound / tokens}
    return Planned(
        plan=best.plan,
        prediction=predict(request.setup, best.plan, Flexgen(), best.solver.model_copy(update=per_token)),
        cost=1.0 / best.tokens_per_s,
        alternatives=[_policy_alternative(policy) for policy in policies[1:]],
        worth={},
        batch_curve=[],
    )


def _policies(request: Request, base: FlexgenSettings, names: dict[str, Any]) -> list[RankedPolicy]:
    """Policies for the workload's batch, or for any batch where it is 1, best first."""
    from stowplan.planner.flexgen import NUM_GPU_BATCHES, plan_flexgen

    setup, batch = request.setup, request.workload.batch
    if batch == 1:
        return plan_flexgen(setup, request.workload, base, progress=request.progress, **names)

    def each_shape() -> Iterator[RankedPolicy]:
        for count in NUM_GPU_BATCHES:
            if batch % count == 0:
                try:
                    yield from plan_flexgen(
                        setup,
                        request.workload,
                        base,
                        gpu_batch_sizes=(batch // count,),
                        num_gpu_batches=(count,),
                        progress=request.progress,
                        **names,
                    )
                except DoesNotFit:  # another shape of the same batch may
                    continue

    found = sorted(each_shape(), key=lambda policy: -policy.tokens_per_s)
    if not found:
        raise DoesNotFit(f"no FlexGen policy with a batch of {batch} fits {setup.model.name} on {setup.machine.name}")
    return found


def _policy_alternative(policy: RankedPolicy) -> Alternative:
    settings = policy.plan.settings
    batch = policy.plan.workload.batch
    attention = ", attention on the CPU" if settings["cpu_cache_compute"] else ""
    return Alternative(
        title=f"{settings['num_gpu_batches']} x {settings['gpu_batch_size']} requests{attention}",
        decode_tokens_per_s=batch / policy.evaluation.decode_s,
        ttft_s=policy.evaluation.prefill_s,
        cost=1.0 / policy.tokens_per_s,
    )


_PLANNERS: dict[str, Callable[[Request], Planned]] = {
    "llama.cpp": _llama_cpp,
    "accelerate": _accelerate,
    "flexgen": _flexgen,
    "vllm": _vllm,
}
