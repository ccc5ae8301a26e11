"""Many comparisons on many cores: results in the order of the jobs, whatever finishes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Protocol

from stowplan.children import deaf_children, ignore_interrupts
from stowplan.validate.rows import Result

_CHUNK = 2  # what is queued cannot be taken back: large chunks would keep an interrupted run waiting


class Runnable(Protocol):
    """Something that gives a result and can be sent to another process."""

    def run(self) -> Result:
        """The result."""
        ...


Progress = Callable[[int, int], None]
"""Called with how many jobs are done and how many there are."""


def run_all(jobs: Sequence[Runnable], workers: int, progress: Progress | None = None) -> list[Result]:
    """Results of the jobs, in their order; the same for any number of workers.

    An interruption (Ctrl-C) ends the workers after what they are doing and is passed on.
    """
    workers = min(workers, max(1, len(jobs) // _CHUNK))
    if workers <= 1:
        return _collect(map(_run, jobs), len(jobs), progress)
    # Fresh interpreters: forking a process that has threads is unsafe, and is not to be had on every system.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=ignore_interrupts) as pool:
        try:
            with deaf_children():
                results = pool.map(_run, jobs, chunksize=_CHUNK)
            return _collect(results, len(jobs), progress)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run(job: Runnable) -> Result:
    return job.run()


def _collect(results: Iterable[Result], count: int, progress: Progress | None) -> list[Result]:
    found: list[Result] = []
    for result in results:
        found.append(result)
        if progress is not None:
            progress(len(found), count)
    return found
