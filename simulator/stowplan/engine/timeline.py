"""A run as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Format: the JSON object form of the Trace Event Format. One lane per stream; tasks without a stream fill as few
further lanes as keep them from overlapping; one counter per memory tier.
"""

from __future__ import annotations

import gzip
import heapq
import json
import os
from pathlib import Path
from typing import Any

from stowplan.engine.run import Run, lasting_phases
from stowplan.errors import InputError

_PROCESS = 1


def timeline(run: Run, *, title: str = "step") -> dict[str, Any]:
    """The trace as plain dictionaries and lists, ready for JSON.

    Times are microseconds, rounded to the nanosecond at both ends of a task so that neighbours in a lane never overlap.
    """
    lanes = _lanes(run)
    names = list(dict.fromkeys(lanes))
    number = {lane: position for position, lane in enumerate(names, start=1)}
    events: list[dict[str, Any]] = [_label("process_name", 0, title)]
    for lane in names:
        events.append(_label("thread_name", number[lane], lane))
        events.append(
            {
                "ph": "M",
                "pid": _PROCESS,
                "tid": number[lane],
                "name": "thread_sort_index",
                "args": {"sort_index": number[lane]},
            }
        )
    by_start = sorted(range(len(run.end)), key=lambda index: (run.start[index], index))
    events += [_task_event(run, index, number[lanes[index]]) for index in by_start]
    for tier, curve in run.memory_curve.items():
        # Several changes at one moment show as the last of them.
        held_at = {_nanoseconds(at): held for at, held in curve}
        events += [
            {
                "ph": "C",
                "pid": _PROCESS,
                "tid": 0,
                "name": f"memory {tier}",
                "ts": moment / 1000,
                "args": {"bytes": held},
            }
            for moment, held in held_at.items()
        ]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def write_timeline(run: Run, path: Path, *, title: str = "step") -> None:
    """Write the trace as JSON, compressed when the name ends in ``.gz``.

    The same run gives the same bytes. The file appears whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(timeline(run, title=title), separators=(",", ":"), allow_nan=False) + "\n"
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: the timeline cannot be written ({error.strerror or error})") from error


def _lanes(run: Run) -> list[str]:
    """Lane of each task: its stream, or the lowest free lane among those for tasks without one."""
    tasks = run.graph.tasks
    lanes = [task.stream if task.stream is not None else "" for task in tasks]
    loose = [index for index, task in enumerate(tasks) if task.stream is None]
    loose.sort(key=lambda index: (run.start[index], run.end[index], index))
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    opened = 0
    for index in loose:
        while busy and busy[0][0] <= run.start[index]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            opened += 1
            lane = opened
        heapq.heappush(busy, (run.end[index], lane))
        lanes[index] = f"(no stream) {lane}"
    return lanes


def _task_event(run: Run, index: int, lane: int) -> dict[str, Any]:
    task = run.graph.tasks[index]
    begins, ends = _nanoseconds(run.start[index]), _nanoseconds(run.end[index])
    args: dict[str, Any] = {"amounts": dict(task.work.amounts)}
    if task.work.overhead_s:
        args["overhead_us"] = task.work.overhead_s * 1e6
    phases = lasting_phases(run.phases[index], run.end[index])
    flowed = run.end[index] - run.overhead_end[index]
    if phases and flowed > 0.0:
        args["speed"] = sum(phase.speed * lasted for phase, lasted in phases) / flowed
        args["limited_by"] = list(dict.fromkeys(phase.limiter for phase, _ in phases))
    if run.start[index] > run.ready[index]:
        args["memory_wait_us"] = (run.start[index] - run.ready[index]) * 1e6
    return {
        "ph": "X",
        "pid": _PROCESS,
        "tid": lane,
        "name": task.name,
        "cat": task.kind or "task",
        "ts": begins / 1000,
        "dur": (ends - begins) / 1000,
        "args": args,
    }


def _label(what: str, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": lane, "name": what, "args": {"name": name}}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
