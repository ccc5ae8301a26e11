"""A sweep: every variant of a scenario planned once, on as many workers as wanted, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from stowplan.whatif.axes import Axis, Variant, variants
from stowplan.whatif.outcome import Outcome
from stowplan.whatif.pool import Job, WorkerLost, run_jobs
from stowplan.whatif.scenario import Combination, Scenario
from stowplan.whatif.store import Store
from stowplan.whatif.workshop import Fingerprints, workshop

Progress = Callable[[int, int], None]
"""Told how many scenarios are done, of how many."""

_PRICELESS = ("gpu.memory", "memory.capacity", "reserved", "gpu.price", "disk.capacity")
"""Machine paths that move no layer's price, so that variants which differ only in them are planned by one worker."""

_LARGEST_BATCH = 32
_LARGEST_CLUSTER_BATCH = 8  # a cluster's outcomes are kept when a batch comes back
_BATCHES_PER_WORKER = 4
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One variant: its values as texts in the order of the axes, its scenario, and what it came to."""

    values: tuple[str, ...]
    scenario: Scenario
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was varied and what came of it.

    Attributes:
        base: the scenario without changes, and what it comes to.
        axes: paths and values; rows: every variant in order.
        planned: scenarios that were planned now; the others were known already or are the same.
    """

    base: Row
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    planned: int


@dataclass(frozen=True, slots=True)
class Workers:
    """Who works.

    Attributes:
        count: processes of this machine.
        cluster: address of a cluster instead, see `stowplan.whatif.pool.run_jobs`.
        store: file that keeps outcomes; None for one that is thrown away.
    """

    count: int = 1
    cluster: str | None = None
    store: Path | None = None


def run_sweep(
    base: Scenario,
    axes: Sequence[Axis],
    combination: Combination = "cartesian",
    workers: Workers = Workers(),
    progress: Progress = lambda done, total: None,  # noqa: ARG005
) -> Sweep:
    """Plan every variant of a scenario.

    The outcomes do not depend on who works, in what order, or on what was known before.

    Raises:
        InputError: see `stowplan.whatif.axes.variants` and `stowplan.whatif.pool.run_jobs`.
        StowplanError: the base scenario names something that does not exist.
    """
    found = variants(base, axes, combination)
    shop = workshop()
    shop.request(base)  # a name that does not exist is told before anything is planned
    every = [Variant((), base), *found]
    outcomes, planned = outcomes_of([variant.scenario for variant in every], workers, progress)
    rows = [Row(variant.values, variant.scenario, outcome) for variant, outcome in zip(every, outcomes, strict=True)]
    return Sweep(rows[0], tuple(axes), tuple(rows[1:]), planned)


def outcomes_of(scenarios: Sequence[Scenario], workers: Workers, progress: Progress) -> tuple[list[Outcome], int]:
    """Outcome of every scenario in order, and how many had to be planned; raises as `sweep`."""
    fingerprints = Fingerprints(workshop())
    keys = [fingerprints.key(scenario) for scenario in scenarios]
    texts = dict(zip(keys, (scenario.text for scenario in scenarios), strict=True))
    kin = dict(zip(keys, map(_kin, scenarios), strict=True))
    with TemporaryDirectory(prefix="stowplan-") as folder:
        path = workers.store or Path(folder) / "outcomes.sqlite"
        store = Store(path)
        known = store.get(list(texts))
        planned = len(texts) - len(known)
        progress(len(known), len(texts))
        for attempt in range(_ATTEMPTS):
            missing = [key for key in texts if key not in known]
            batches = in_batches([(key, texts[key]) for key in missing], kin, workers)
            try:
                for done in run_jobs(batches, workers=workers.count, cluster=workers.cluster, store=path):
                    known |= {key: outcome for key, _, outcome in done}
                    progress(len(known), len(texts))
                break
            except WorkerLost:
                if attempt == _ATTEMPTS - 1:
                    raise
                known |= store.get(missing)
    parsed = {key: Outcome.parse(text) for key, text in known.items() if key in texts}
    return [parsed[key] for key in keys], planned


def _kin(scenario: Scenario) -> tuple[object, ...]:
    """What scenarios have in common that share prices."""
    rates = tuple(change for change in scenario.changes if change.partition("=")[0] not in _PRICELESS)
    return (scenario.model, scenario.quant, scenario.system, scenario.machine, rates, scenario.settings)


def in_batches(jobs: Sequence[Job], kin: dict[str, tuple[object, ...]], workers: Workers) -> list[list[Job]]:
    """Jobs in batches of relatives that become smaller towards the end, so that the workers finish together."""
    relatives: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        relatives.setdefault(kin[job[0]], []).append(job)
    largest = _LARGEST_BATCH if workers.cluster is None else _LARGEST_CLUSTER_BATCH
    found, left = [], len(jobs)
    for group in relatives.values():
        start = 0
        while start < len(group):
            size = max(1, min(largest, left // (_BATCHES_PER_WORKER * max(1, workers.count))))
            found.append(group[start : start + size])
            left -= len(found[-1])
            start += size
    return found
