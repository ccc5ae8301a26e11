"""The Python interface: what the commands do, under the same names.

Every function takes names and texts with units as the command line does and raises `stowplan.errors.StowplanError` with
the same sentences. Results are typed records; figures are SI.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stowplan.engine.run import Run
from stowplan.engine.simulate import simulate as simulate_graph
from stowplan.errors import InputError
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Plan, Prediction, checked_workload, read_plan
from stowplan.planner.commands import Hints, understand
from stowplan.planner.predict import make_setup
from stowplan.planner.predict import predict as predict_plan
from stowplan.planner.result import Planned
from stowplan.serving.answers import Answers, parse_objective, summarise
from stowplan.serving.from_plan import Serving, engine_of
from stowplan.serving.replay import replay as replay_requests
from stowplan.serving.requests import Requests
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.traces.reading import load_trace, read_trace
from stowplan.traces.trace import Trace
from stowplan.whatif.answer import WhatIf, what_if
from stowplan.whatif.axes import Axis, parse_axis, parse_set
from stowplan.whatif.paths import set_path
from stowplan.whatif.scenario import Scenario, checked_objective
from stowplan.whatif.sweep import Progress, Sweep, Workers, run_sweep
from stowplan.whatif.workshop import Workshop

_LONGEST_CONTEXT = 1024


def plan(
    model: str,
    *,
    on: str,
    quant: str | None = None,
    system: str = "llama.cpp",
    objective: str | None = None,
    set: Iterable[str] = (),
    **workload: int,
) -> Planned:
    """The best plan for a model on a machine, with its prediction and the runners-up.

    Args:
        model: a name, a .gguf, a config.json or a checkpoint folder.
        on: a machine's name, a TOML file, parts joined by ``+``, or ``auto``.
        quant: storage mix; None for the published one.
        system: who runs it.
        objective: ``request``, ``decode``, ``ttft`` or ``throughput``.
        set: changes such as ``gpu.memory=48GiB`` or ``kv=q8_0`` (see `stowplan.whatif.paths`).
        workload: ``context``, ``prompt``, ``generate``, ``depth``, ``batch`` in tokens and requests.

    Raises:
        StowplanError: a name or value that cannot be, or nothing fits (`DoesNotFit`).

    >>> import stowplan
    >>> found = stowplan.plan("llama-3.1-8b", quant="q4_k_m", on="rtx-3060-desktop-32", context=8192)
    >>> found.prediction.bottleneck.partition(".")[0]
    'gpu0'
    >>> 30 < found.prediction.decode_tokens_per_s < 90
    True
    >>> found.prediction.command.split()[0]
    'llama-server'
    """
    return Workshop().plan(
        scenario(model, on=on, quant=quant, system=system, objective=objective, set=set, **workload), alternatives=True
    )


def predict(
    what: Plan | str | Path | Sequence[str],
    *,
    on: str | None = None,
    model: str | None = None,
    quant: str | None = None,
    set: Iterable[str] = (),
    **workload: int,
) -> Prediction:
    """What a plan, a plan file or somebody's command line will do.

    Args:
        what: a `Plan`, the path of one, or a command as one text or as words.
        on: the machine; a plan has its own.
        model, quant: what a command's model file holds, where its name does not say.
        set: changes of the machine.
        workload: ``prompt``, ``generate``, ``depth`` where they differ.

    Raises:
        StowplanError: a flag or name that cannot be understood, or a placement that does not fit.

    >>> import stowplan
    >>> told = stowplan.predict("llama-server -m Qwen3-8B-Q4_K_M.gguf -ngl 99 -c 8192", on="rtx-3060-desktop-32")
    >>> told.model, told.quant
    ('Qwen3 8B', 'q4_k_m')
    >>> low, high = told.interval["decode_tokens_per_s"].low, told.interval["decode_tokens_per_s"].high
    >>> low < told.decode_tokens_per_s < high
    True
    """
    if isinstance(what, Plan) or (isinstance(what, str | Path) and str(what).endswith(".json")):
        stored = what if isinstance(what, Plan) else read_plan(Path(what))
        setup, changed = _setup_of(stored, on, set, workload)
        return predict_plan(setup, changed, load_system(changed.system))
    if on is None:
        raise InputError("a command does not say where it runs; name the machine with on=...")
    words = shlex.split(what) if isinstance(what, str) else [str(word) for word in _words(what)]
    hints = Hints(model=model, quant=quant, workload=checked_workload(workload))
    meant = understand(words, load_machine(on, list(set)), hints)
    told = predict_plan(meant.setup, meant.plan, load_system(meant.plan.system))
    return told.model_copy(update={"warnings": [*meant.warnings, *told.warnings]})


def simulate(plan: Plan, *, set: Iterable[str] = (), prompt: bool = False) -> Run:
    """One decode step of a plan in the simulator, or the first chunk of its prompt.

    Args:
        plan: a plan, such as ``stowplan.plan(...).plan``.
        set: further changes of its machine.
        prompt: the prompt's first chunk instead.

    Returns:
        Times of every task, and ``makespan`` in seconds.

    Raises:
        StowplanError: the plan does not fit its machine.

    >>> import stowplan
    >>> found = stowplan.plan("llama-3.1-8b", quant="q4_k_m", on="rtx-3060-desktop-32")
    >>> step = stowplan.simulate(found.plan)
    >>> abs(step.makespan / found.prediction.tpot_s - 1) < 0.05
    True
    """
    setup, changed = _setup_of(plan, None, set, {})
    system = load_system(changed.system)
    return simulate_graph(system.prefill_graph(setup, changed) if prompt else system.decode_graph(setup, changed))


def replay(
    trace: str | Path | Trace,
    *,
    plan: Plan,
    scheduler: str = "chunked",
    max_running: int = 128,
    budget: int = 2048,
    slo: str | None = None,
    head: int | None = None,
    set: Iterable[str] = (),
) -> Answers:
    """What users of a plan feel under a trace: latencies, throughput, goodput.

    Args:
        trace: a name of ``stowplan traces list``, a file, or a `Trace`.
        plan: what serves.
        scheduler: ``continuous``, ``chunked``, ``static``, ``shortest`` or ``shortest-chunked``.
        max_running: requests at a time; budget: tokens of one step.
        slo: objective that counts as good, such as ``ttft=1s,tpot=50ms``.
        head: only the first requests.
        set: further changes of the plan's machine.

    Raises:
        StowplanError: no such trace or scheduler, or a plan that cannot serve.

    >>> import stowplan
    >>> served = stowplan.plan("llama-3.1-8b", quant="q4_k_m", on="rtx-4090-desktop-128", context=8192).plan
    >>> answers = stowplan.replay("azure-2023-conversation-first-400", plan=served, head=50)
    >>> answers.counts["finished"]
    50
    """
    asked = trace if isinstance(trace, Trace) else _trace(trace)
    if head is not None:
        asked = asked.head(head)
    longest = int((asked.prompt_tokens + asked.output_tokens).max())
    setup, changed = _setup_of(plan, None, set, {})
    serving = Serving(max_running, max(budget, max_running), context=max(longest, _LONGEST_CONTEXT))
    engine = engine_of(setup, changed, serving)
    requests = Requests(asked.arrival_s, asked.prompt_tokens, asked.output_tokens)
    done = replay_requests(requests, engine.step_time, engine.limits, scheduler)
    return summarise(done, None if slo is None else parse_objective(slo))


def whatif(
    what: str | Plan,
    *,
    on: str | None = None,
    quant: str | None = None,
    system: str = "llama.cpp",
    objective: str | None = None,
    set: Iterable[str] = (),
    **workload: int,
) -> WhatIf:
    """What would help: the price of every resource, and single changes with the error bar of their gain.

    Args:
        what: a model, or a plan whose request is planned anew.
        on ... workload: as in `plan`.

    Raises:
        StowplanError: a name or value that cannot be, or nothing fits as it is.

    >>> import stowplan
    >>> answer = stowplan.whatif("qwen3-30b-a3b", quant="q8_0", on="rtx-3060-desktop-32")
    >>> best = answer.changes[0]
    >>> best.gain.low < best.gain.ratio < best.gain.high and best.gain.ratio > 1.2
    True
    >>> {price.resource.title: price.relaxed > 0 for price in answer.prices}["RAM"]
    False
    """
    return what_if(
        Workshop(), _asked(what, on=on, quant=quant, system=system, objective=objective, set=set, **workload)
    )


def sweep(
    what: str | Plan,
    axes: Mapping[str, str | Sequence[str | int]],
    *,
    on: str | None = None,
    quant: str | None = None,
    system: str = "llama.cpp",
    objective: str | None = None,
    set: Iterable[str] = (),
    paired: bool = False,
    workers: int = 1,
    cluster: str | None = None,
    store: str | Path | None = None,
    progress: Progress = lambda done, total: None,  # noqa: ARG005
    **workload: int,
) -> Sweep:
    """Plan every variant of a question.

    Args:
        what: a model, or a plan whose request is planned anew.
        axes: path to values: ``{"gpu.memory": "16GiB:48GiB:8GiB", "batch": [1, 4, 16]}``.
        on ... workload: as in `plan`.
        paired: first values together, then the second ones, instead of all combinations.
        workers: processes of this machine; cluster: ``dask://host:port`` or ``ray://host:port`` instead.
        store: SQLite file that keeps every outcome, so that a sweep goes on where it stopped.
        progress: told how many are done, of how many.

    Raises:
        StowplanError: a path, value, unit or cluster that does not exist.

    >>> import stowplan
    >>> memories = {"gpu.memory": "6GiB:10GiB:2GiB"}
    >>> found = stowplan.sweep("llama-3.1-8b", memories, on="rtx-3060-desktop-32", quant="q4_k_m")
    >>> [row.values for row in found.rows]
    [('6GiB',), ('8GiB',), ('10GiB',)]
    >>> rates = [row.outcome.figure("decode_tokens_per_s") for row in found.rows]
    >>> rates == sorted(rates)
    True
    """
    base = _asked(what, on=on, quant=quant, system=system, objective=objective, set=set, **workload)
    found = [_axis(path, values) for path, values in axes.items()]
    who = Workers(workers, cluster, None if store is None else Path(store))
    return run_sweep(base, found, "paired" if paired else "cartesian", who, progress)


def scenario(
    model: str,
    *,
    on: str,
    quant: str | None = None,
    system: str = "llama.cpp",
    objective: str | None = None,
    set: Iterable[str] = (),
    **workload: int,
) -> Scenario:
    """The scenario of a question; arguments as in `plan`. Raises InputError for a path or value that cannot be."""
    aim = objective or ("throughput" if system == "flexgen" else "request")
    base = Scenario(model=model, machine=on, quant=quant, system=system, objective=checked_objective(aim))
    for name, value in workload.items():
        base = set_path(base, name, str(value))
    for text in set:
        base = set_path(base, *parse_set(text))
    chosen = base.objective == "throughput" and base.engine == "llama.cpp" and "batch" not in dict(base.workload)
    return replace(base, any_batch=chosen)


def _asked(what: str | Plan, *, on: str | None, set: Iterable[str], **named: str | int | None) -> Scenario:
    if isinstance(what, Plan):
        base = Scenario.of_plan(what)
        for text in set:
            base = set_path(base, *parse_set(text))
        return base if on is None else replace(base, machine=on, changes=())
    if on is None:
        raise InputError("name the machine with on=...")
    return scenario(what, on=on, set=set, **named)  # type: ignore[arg-type]


def _axis(path: str, values: str | Sequence[str | int]) -> Axis:
    text = values if isinstance(values, str) else ",".join(str(value) for value in values)
    return parse_axis(f"{path}={text}")


def _setup_of(stored: Plan, on: str | None, changes: Iterable[str], workload: Mapping[str, int]) -> tuple[Setup, Plan]:
    """Setup of a plan on its machine, or on another."""
    told = [*([] if on else stored.set), *changes]
    machine = load_machine(on or stored.machine, told)
    asked = stored.workload.model_copy(
        update=checked_workload(workload).model_dump(include=dict.fromkeys(workload, True))
    )
    plan = stored.model_copy(update={"machine": machine.spec, "set": told, "workload": asked})
    variant = plan.settings.get("engine")
    return make_setup(machine, load_model(plan.model, plan.quant), load_system(plan.system), variant), plan


def _words(what: object) -> list[str]:
    return [str(word) for word in what] if isinstance(what, list | tuple) else [str(what)]


def _trace(name: str | Path) -> Trace:
    return read_trace(Path(name)) if Path(name).is_file() else load_trace(str(name))
