"""Planning for llama.cpp: micro-batch, cache place and load mode are enumerated, the placement is a programme each.

The programme adds the micro-batches of a prompt up. That several GPUs that hold all of a model work on one after the
other at once (`stowplan.systems.llama_cpp_run.LlamaCppRun.overlap`) is part of the prediction of a plan and not of the
search: the overlap depends on the whole placement, so it is no sum over layers. A placement that would gain from it is
therefore compared by its time without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from stowplan.errors import DoesNotFit
from stowplan.plan import Solver, Workload
from stowplan.planner.arrays import shadow_prices
from stowplan.planner.bench import Bench, BenchedLlamaCpp
from stowplan.planner.counts import GAP
from stowplan.planner.predict import predict_and_move
from stowplan.planner.programme import print_programme
from stowplan.planner.result import Alternative, Planned, Request
from stowplan.planner.serial_search import Found, SerialSearch, Weights
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp import LlamaCppRun
from stowplan.systems.llama_cpp_auto import automatic, experts_in_ram, layers_only
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_nodes import spread
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.units import format_bytes

_MICRO_BATCHES = (512, 1024, 2048, 4096)
_LARGEST_SPILL = 1 / 3
"""Share of the weights that a plan leaves to page faults of its own accord; more is for who asks for ``-lm mmap``."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One group of settings and the best placement under it."""

    settings: LlamaCppSettings
    workload: Workload
    found: Found


class LlamaCppPlanner:
    """Searches settings and placements for one request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.bench = request.bench or Bench()
        self.system = BenchedLlamaCpp(self.bench)
        self.fixed = dict(request.settings)
        self.programmes = 0
        self.seconds = 0.0

    def plan(self) -> Planned:
        """The best plan.

        Raises:
            DoesNotFit: no placement satisfies the memory limits; says how much is missing.
        """
        request = self.request
        batches = request.batches or (request.workload.batch,)
        winners = [trial for batch in batches for trial in self._trials_of_batch(batch)]
        if not winners:
            raise DoesNotFit(*self._missing())
        best = min(winners, key=lambda trial: trial.found.cost)
        found = best.found
        if request.write_lp is not None:
            print_programme(found.programme, request.write_lp)
        plan = make_plan(
            request.setup.machine, request.model_reference, best.workload, best.settings, (found.layers, found.output)
        )
        prediction, moves = predict_and_move(request.setup, plan, self.system, self._solver(found))
        curve = {}
        for trial in sorted(winners, key=lambda t: -t.found.cost):
            evaluation, batch = trial.found.evaluation, trial.workload.batch
            curve[batch] = (batch, batch / evaluation.decode_s, evaluation.decode_s, evaluation.prefill_s)
        return Planned(
            plan=plan,
            prediction=prediction,
            cost=found.cost,
            alternatives=self._alternatives(best, winners) if request.alternatives else [],
            worth=shadow_prices(found.programme),
            batch_curve=[curve[batch] for batch in sorted(curve)],
            moves=moves,
            programme=found.programme,
        )

    def _run(self, settings: LlamaCppSettings, workload: Workload) -> LlamaCppRun:
        return self.bench.run(self.request.setup, workload, settings)

    def _solver(self, found: Found) -> Solver:
        """The winner's proof, with the objective of the evaluated placement instead of the programme's."""
        report = found.solved.solver
        bound = min(report.bound, found.cost)
        gap = (found.cost - bound) / found.cost if found.cost > 0 else 0.0
        return report.model_copy(
            update={
                "programmes": self.programmes,
                "seconds": self.seconds,
                "objective": found.cost,
                "bound": bound,
                "gap": gap,
                "status": "optimal" if gap <= GAP * 1.01 else "feasible",
            }
        )

    def _trials_of_batch(self, batch: int) -> list[_Trial]:
        """Best placements of one batch size: pinned host memory first, page faults only where nothing else fits."""
        workload = self.request.workload.model_copy(update={"batch": batch})
        modes = [str(self.fixed["load_mode"])] if "load_mode" in self.fixed else ["none", "mmap"]
        for mode in modes:
            trials = list(self._trials(workload, mode))
            if trials:
                return trials
        return []

    def _trials(self, workload: Workload, load_mode: str) -> Iterator[_Trial]:
        """Every micro-batch with the cache beside its layers; then the cache in host memory at the best of them."""
        best: _Trial | None = None
        for ubatch in self._micro_batches(workload):
            together = bool(self.fixed.get("kv_offload", True))
            trial = self._trial(workload, load_mode, ubatch, kv_offload=together, below=self._limit(best))
            if trial is not None:
                best = trial if best is None or trial.found.cost < best.found.cost else best
                yield trial
        if self.request.setup.machine.gpus and "kv_offload" not in self.fixed:
            ubatch = best.settings.ubatch if best else self._micro_batches(workload)[0]
            trial = self._trial(workload, load_mode, ubatch, kv_offload=False, below=self._limit(best))
            if trial is not None:
                yield trial

    def _limit(self, best: _Trial | None) -> float:
        """Cost from which nobody asks for a placement: the best one's, where only the best is wanted."""
        return inf if best is None or self.request.alternatives else best.found.cost

    def _micro_batches(self, workload: Workload) -> list[int]:
        if "ubatch" in self.fixed:
            return [int(str(self.fixed["ubatch"]))]
        prompt = workload.prompt * workload.batch
        return [size for size in _MICRO_BATCHES if size == _MICRO_BATCHES[0] or size < 2 * prompt]

    def _trial(
        self, workload: Workload, load_mode: str, ubatch: int, *, kv_offload: bool, below: float
    ) -> _Trial | None:
        chosen = {"load_mode": load_mode, "ubatch": ubatch, "batch": max(2048, ubatch), "kv_offload": kv_offload}
        settings = LlamaCppSettings.model_validate(chosen | spread(self.request.setup.machine, load_mode) | self.fixed)
        self.request.progress(
            f"batch {workload.batch}, micro-batch {ubatch}, cache {'with layers' if kv_offload else RAM}"
        )
        run = self._run(settings, workload)
        search = SerialSearch(run, Weights.of(self.request.objective, workload), self.bench.outside(run))
        found = search.best(solver=self.request.solver, below=below)
        if found is None:
            return None
        self.programmes += 1
        self.seconds += found.solved.solver.seconds
        host = found.evaluation.memory[RAM]
        if (
            "load_mode" not in self.fixed
            and host.used - host.capacity > _LARGEST_SPILL * self.request.setup.model.weight_bytes
        ):
            return None
        return _Trial(settings, workload, found)

    def _missing(self) -> tuple[str, float]:
        """Why nothing fits: bytes of the smallest demand against what there is."""
        setup = self.request.setup
        run = self._run(LlamaCppSettings.model_validate(self.fixed), self.request.workload)
        needed = setup.model.weight_bytes + sum(run.kv_bytes(layer) for layer in setup.model.layers)
        host = setup.machine.memory.capacity.value
        video = 0.0 if run.unified else sum(gpu.memory.value for gpu in setup.machine.gpus)
        free = host + video - setup.machine.reserved.value
        has = f"{format_bytes(host)} RAM" + (f" and {format_bytes(video)} VRAM" if video else "")
        return (
            f"{setup.machine.name} has {has}; {setup.model.name} in {setup.model.quant.upper()} needs "
            f"{format_bytes(needed)} for weights and cache, {format_bytes(max(needed - free, 0.0))} more than there is "
            "beside the system and buffers",
            max(needed - free, 0.0),
        )

    def _alternatives(self, best: _Trial, trials: list[_Trial]) -> list[Alternative]:
        """Best of every other group of settings, and llama.cpp's own placements under the winner's settings."""
        others = [
            Alternative(
                title=self._title(trial),
                decode_tokens_per_s=trial.workload.batch / trial.found.evaluation.decode_s,
                ttft_s=trial.found.evaluation.prefill_s,
                cost=trial.found.cost,
            )
            for trial in trials
            if trial is not best
        ]
        others += self._own_placements(best)
        return sorted(others, key=lambda each: each.cost)

    def _title(self, trial: _Trial) -> str:
        where = "" if trial.settings.kv_offload else ", cache in RAM"
        many = f"batch {trial.workload.batch}, " if len(self.request.batches) > 1 else ""
        return f"{many}micro-batch {trial.settings.ubatch}{where}"

    def _own_placements(self, best: _Trial) -> Iterator[Alternative]:
        setup, weights = self.request.setup, Weights.of(self.request.objective, best.workload)
        if not setup.machine.gpus:
            return
        count = len(setup.model.layers)
        run = self._run(best.settings, best.workload)
        defaults = best.settings.model_copy(update={"ubatch": 512, "batch": 2048, "load_mode": "mmap"})
        stock = self._run(defaults, best.workload)
        candidates = [("llama.cpp's own choice (--fit on, -ub 512)", stock, automatic(stock), True)]
        if any(layer.experts for layer in setup.model.layers):
            candidates.append(("all experts in RAM (--cpu-moe)", run, experts_in_ram(run, count), False))
        candidates.append(("all layers in RAM (-ngl 0)", run, layers_only(run, 0), False))
        for title, engine, (layers, output), default in candidates:
            try:
                evaluation = engine.evaluate(layers, RAM, output)
            except DoesNotFit:
                continue
            tiers = evaluation.memory.items()
            if any(use.used + engine.margin > use.capacity for tier, use in tiers if tier != RAM):
                continue
            rate = best.workload.batch / evaluation.decode_s
            yield Alternative(title, rate, evaluation.prefill_s, weights.cost(evaluation), default)


def plan_llama_cpp(request: Request) -> Planned:
    """The best llama.cpp plan for a request; raises as `LlamaCppPlanner.plan`."""
    return LlamaCppPlanner(request).plan()
