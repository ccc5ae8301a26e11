"""Planning for Accelerate: which decoder layers live on which GPU, in host memory or on disk."""

from __future__ import annotations

from stowplan.errors import DoesNotFit
from stowplan.plan import Workload
from stowplan.planner.arrays import shadow_prices
from stowplan.planner.predict import predict
from stowplan.planner.programme import print_programme
from stowplan.planner.result import Alternative, Planned, Request
from stowplan.planner.serial_search import Found, SerialSearch, Weights
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.accelerate_execution import AccelerateRun, AccelerateSettings
from stowplan.systems.accelerate_map import ModulePlaces, fill
from stowplan.units import format_bytes


def plan_accelerate(request: Request) -> Planned:
    """The best device map for a request.

    Raises:
        DoesNotFit: no map satisfies the memory limits.
        NotExpressible: no GPU, or weights that PyTorch does not compute with.
    """
    settings = AccelerateSettings.model_validate(dict(request.settings))
    found = {batch: _search(request, settings, batch) for batch in request.batches or (request.workload.batch,)}
    fitting = {batch: each for batch, each in found.items() if each is not None}
    if not fitting:
        raise DoesNotFit(
            f"{request.setup.machine.name} has no room for {request.setup.model.name} in "
            f"{request.setup.model.quant.upper()} ({format_bytes(request.setup.model.weight_bytes)}) with Accelerate"
        )
    batch = min(fitting, key=lambda each: fitting[each].cost)
    workload, winner = _workload(request, batch), fitting[batch]
    places = ModulePlaces(embedding="gpu0", layers=tuple(each.mixer for each in winner.layers), output=winner.output)
    names = {
        "model": request.model_reference[0],
        "quant": request.model_reference[1],
        "set": request.setup.machine.settings,
    }
    plan = Accelerate().plan(request.setup, workload, places, **names)
    if request.write_lp is not None:
        print_programme(winner.programme, request.write_lp)
    solver = winner.solved.solver.model_copy(update={"programmes": len(found)})
    return Planned(
        plan=plan,
        prediction=predict(request.setup, plan, Accelerate(), solver),
        cost=winner.cost,
        alternatives=_alternatives(request, settings, batch, winner),
        worth=shadow_prices(winner.programme),
        batch_curve=[_point(size, each) for size, each in sorted(fitting.items())],
    )


def _workload(request: Request, batch: int) -> Workload:
    return request.workload.model_copy(update={"batch": batch})


def _search(request: Request, settings: AccelerateSettings, batch: int) -> Found | None:
    workload = _workload(request, batch)
    request.progress(f"batch {batch}")
    run = AccelerateRun(request.setup, workload, settings)
    search = SerialSearch(run, Weights.of(request.objective, workload))
    return search.best(solver=request.solver)


def _point(batch: int, found: Found) -> tuple[int, float, float, float]:
    evaluation = found.evaluation
    return (batch, batch / evaluation.decode_s, evaluation.decode_s, evaluation.prefill_s)


def _alternatives(request: Request, settings: AccelerateSettings, batch: int, winner: Found) -> list[Alternative]:
    """What ``device_map="auto"`` does: GPUs filled in order, each to nine tenths."""
    setup, workload = request.setup, _workload(request, batch)
    run = AccelerateRun(setup, workload, settings)
    amounts = {f"gpu{i}": f"{int(0.9 * gpu.memory.value)}B" for i, gpu in enumerate(setup.machine.gpus)}
    places = fill(setup.model, amounts | {"cpu": "rest"})
    layers = [run.layer_at(layer, place) for layer, place in zip(setup.model.layers, places.layers, strict=True)]
    try:
        evaluation = run.evaluate(layers, places.embedding, places.output)
    except DoesNotFit:
        return []
    if any(use.used > use.capacity for use in evaluation.memory.values()):
        return []
    weights = Weights.of(request.objective, workload)
    title = 'device_map="auto"'
    default = Alternative(
        title, batch / evaluation.decode_s, evaluation.prefill_s, weights.cost(evaluation), default=True
    )
    return [default] if default.cost >= winner.cost * (1 - 1e-9) else []
