"""Who plans the scenarios: this process, processes of this machine, or a Dask or Ray cluster; all run one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stowplan.errors import InputError
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.store import Store
from stowplan.whatif.workshop import workshop

Job = tuple[str, str]
"""Key and text of a scenario."""

Done = tuple[str, str, str]
"""Key and text of a scenario, and the text of its outcome."""

_CONNECT_S = 10.0


class WorkerLost(InputError):
    """A worker was killed before it had finished; what it had finished is kept."""


def plan_jobs(jobs: Sequence[Job], store: str | None = None) -> list[Done]:
    """Outcomes of scenarios; each is put into the store, where there is one, as soon as it is known."""
    shop, kept = workshop(), None if store is None else Store(Path(store))
    done: list[Done] = []
    for key, text in jobs:
        row = (key, text, shop.outcome(Scenario.parse(text)).text)
        if kept is not None:
            kept.put([row])
        done.append(row)
    return done


def run_jobs(
    batches: Sequence[Sequence[Job]], *, workers: int, cluster: str | None, store: Path
) -> Iterator[list[Done]]:
    """Outcomes of batches of scenarios, in the order in which they are finished.

    Args:
        batches: scenarios that one worker plans in turn.
        workers: processes of this machine; 1 for this very process.
        cluster: ``dask://host:port`` or ``ray://host:port`` (``ray`` for a cluster of this machine) instead.
        store: where local workers keep each outcome; a cluster's outcomes come back here and are kept then.

    Raises:
        InputError: no such cluster, or the package that talks to it is missing.
        WorkerLost: a worker was killed.
    """
    if cluster is not None:
        connect, address = _cluster(cluster)
        kept = Store(store)
        for done in connect(address, batches):
            kept.put(done)
            yield done
    elif workers == 1:
        for jobs in batches:
            yield plan_jobs(jobs, str(store))
    else:
        yield from _by_processes(batches, workers, store)


def _by_processes(batches: Sequence[Sequence[Job]], workers: int, store: Path) -> Iterator[list[Done]]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    pool = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
    try:
        yield from pool(delayed(plan_jobs)(jobs, str(store)) for jobs in batches)
    except TerminatedWorkerError as error:
        raise WorkerLost(
            "a worker process was killed, perhaps for want of memory; take fewer with --workers"
        ) from error


def _cluster(text: str) -> tuple[Callable[[str, Sequence[Sequence[Job]]], Iterator[list[Done]]], str]:
    """How to use a cluster, and its address.

    Raises:
        InputError: the text names none.
    """
    if text == "ray":
        return _by_ray, ""
    parts = urlsplit(text)
    known = {"dask": _by_dask, "ray": _by_ray}
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in known or not parts.hostname or port is None:
        raise InputError(f"--cluster {text[:80]}: give dask://host:port, ray://host:port, or ray for this machine")
    return known[parts.scheme], f"{parts.hostname}:{port}"


def _module(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"--cluster needs the package {name.partition('.')[0]}: pip install 'stowplan[{extra}]'"
        ) from error


def _by_dask(address: str, batches: Sequence[Sequence[Job]]) -> Iterator[list[Done]]:
    distributed = _module("distributed", "dask")
    try:
        client = distributed.Client(f"tcp://{address}", timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise InputError(
            f"--cluster dask://{address}: nobody answers there ({error}); is the scheduler running?"
        ) from error
    with client, client.as_current():
        futures = [client.submit(plan_jobs, list(jobs), pure=False) for jobs in batches]
        for future in distributed.as_completed(futures):
            try:
                yield future.result()
            except distributed.scheduler.KilledWorker as error:
                raise WorkerLost(f"workers of dask://{address} were killed, perhaps for want of memory") from error


def _by_ray(address: str, batches: Sequence[Sequence[Job]]) -> Iterator[list[Done]]:
    ray = _module("ray", "ray")
    try:
        ray.init(address=f"ray://{address}" if address else None, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, OSError, ValueError) as error:
        raise InputError(
            f"--cluster ray://{address}: nobody answers there ({error}); is the head node running?"
        ) from error
    try:
        remote = ray.remote(plan_jobs)
        waiting = [remote.remote(list(jobs)) for jobs in batches]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(ready)
    finally:
        ray.shutdown()
