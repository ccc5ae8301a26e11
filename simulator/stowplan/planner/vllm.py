"""Planning for vLLM: over how many GPUs a model is split, and how much of it stays in host memory.

There are few choices, so all are tried: every number of GPUs that divides the heads, each with the least offloaded
weights that leave room for the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.plan import Plan, Workload
from stowplan.planner.predict import predict
from stowplan.planner.result import Alternative, Planned, Request
from stowplan.planner.serial_search import Weights
from stowplan.systems.base import Evaluation, Setup
from stowplan.systems.vllm import Vllm
from stowplan.systems.vllm_memory import GIB, memory_of
from stowplan.systems.vllm_settings import VllmSettings
from stowplan.units import format_bytes


@dataclass(frozen=True, slots=True)
class _Choice:
    settings: VllmSettings
    plan: Plan
    evaluation: Evaluation
    cost: float

    @property
    def title(self) -> str:
        """The choice in the engine's own words."""
        words = f"--tensor-parallel-size {self.settings.tensor_parallel}"
        return f"{words} --cpu-offload-gb {self.settings.cpu_offload_gib:g}" if self.settings.cpu_offload_gib else words


def plan_vllm(request: Request) -> Planned:
    """The best split for a request.

    Raises:
        DoesNotFit: weights and cache fit no way of splitting them.
        NotExpressible: an unknown setting, no GPU, or layers and formats whose kernels are not known.
    """
    try:
        base = VllmSettings.model_validate(dict(request.settings))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotExpressible(f"vLLM: {field}: {first['msg']}") from error
    setup = request.setup
    if not setup.machine.gpus:
        raise NotExpressible(f"vLLM needs a GPU here; {setup.machine.name} has none")
    batches = request.batches or (request.workload.batch,)
    found = {batch: list(_choices(request, base, batch)) for batch in batches}
    best = {batch: min(choices, key=lambda each: each.cost) for batch, choices in found.items() if choices}
    if not best:
        raise DoesNotFit(
            f"{setup.machine.name} has no room for {setup.model.name} in {setup.model.quant.upper()} "
            f"({format_bytes(setup.model.weight_bytes)}) and its cache with vLLM"
        )
    batch = min(best, key=lambda each: best[each].cost)
    winner = best[batch]
    others = sorted((each for each in found[batch] if each is not winner), key=lambda each: each.cost)
    return Planned(
        plan=winner.plan,
        prediction=predict(setup, winner.plan, Vllm()),
        cost=winner.cost,
        alternatives=[_alternative(each, batch) for each in others],
        worth={},
        batch_curve=[
            (size, size / each.evaluation.decode_s, each.evaluation.decode_s, each.evaluation.prefill_s)
            for size, each in sorted(best.items())
        ],
    )


def _choices(request: Request, base: VllmSettings, batch: int) -> Iterator[_Choice]:
    """Every number of GPUs that works, with the least offloaded weights."""
    setup, system = request.setup, Vllm()
    workload = request.workload.model_copy(update={"batch": batch})
    names = {"model": request.model_reference[0], "quant": request.model_reference[1]}
    fixed = "tensor_parallel" in request.settings
    reasons: list[NotExpressible] = []
    for gpus in (base.tensor_parallel,) if fixed else _powers(len(setup.machine.gpus)):
        request.progress(f"batch {batch}, {gpus} GPUs")
        settings = base.model_copy(update={"tensor_parallel": gpus, "max_num_seqs": max(base.max_num_seqs, batch)})
        try:
            if "cpu_offload_gib" not in request.settings:
                settings = settings.model_copy(update={"cpu_offload_gib": _offloaded(setup, settings, workload)})
            plan = system.plan(setup, workload, settings, **names)
            evaluation = system.evaluate(setup, plan)
        except DoesNotFit:
            continue
        except NotExpressible as error:  # heads that this number does not divide
            reasons.append(error)
            continue
        cost = Weights.of(request.objective, workload).cost(evaluation)
        yield _Choice(settings, plan, evaluation, cost)
    if reasons and len(reasons) == (1 if fixed else len(_powers(len(setup.machine.gpus)))):
        raise reasons[0]


def _powers(most: int) -> list[int]:
    return [2**k for k in range(most.bit_length()) if 2**k <= most]


def _offloaded(setup: Setup, settings: VllmSettings, workload: Workload) -> float:
    """The fewest whole GiB per GPU in host memory that leave room for the cache."""
    blocks = -(-workload.batch * workload.capacity // settings.block_tokens)
    low, high = -1, int(setup.model.weight_bytes / settings.tensor_parallel / GIB) + 1
    if not _fits(setup, settings, blocks, high):
        raise DoesNotFit(f"no room for a cache of {blocks * settings.block_tokens:,} tokens")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(setup, settings, blocks, middle) else (middle, high)
    return float(high)


def _fits(setup: Setup, settings: VllmSettings, blocks: int, offloaded: int) -> bool:
    memory = memory_of(setup, settings.model_copy(update={"cpu_offload_gib": float(offloaded)}))
    return memory.room >= blocks * settings.block_tokens * memory.token


def _alternative(choice: _Choice, batch: int) -> Alternative:
    evaluation = choice.evaluation
    return Alternative(choice.title, batch / evaluation.decode_s, evaluation.prefill_s, choice.cost)
