"""Published runs of real serving engines: what was sent, under which settings, and what the clients measured.

A case is one experiment. Its requests come from a log (arrival, lengths and latencies by request), or from the load
generator's description: stages of given rate over a set of prompts in turn, with statistics by stage.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile
from stowplan.serving.requests import Requests
from stowplan.traces.trace import Blocks

STATISTICS = ("mean", "p50", "p90", "p99")
_SEED = 2026
_PAUSE_S = 60.0
"""Seconds between two stages: the generator waits for the last answer."""

Part = Literal["fit", "test"]


@dataclass(frozen=True, slots=True)
class Run:
    """One measured stretch of a case.

    Attributes:
        name: case, and rate where a case has several stages.
        rows: which of the case's requests belong to it.
        ttft_s, e2e_s: measured statistics by name, of requests that were answered.
        failed: requests that the client gave up.
        logged: float64[n, 2], time to first token and latency of every request in seconds; None where only statistics
            were published.
    """

    name: str
    rows: slice
    ttft_s: Mapping[str, float]
    e2e_s: Mapping[str, float]
    failed: int = 0
    logged: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One experiment.

    Attributes:
        id, source: name, and where it was read; group: cases of one engine on one kind of hardware.
        part: whether the engine's constants were fitted to it.
        model, quant, machine: references as users write them.
        settings: the engine's settings.
        prefill: settings of the engine that only processes prompts, where that is one of its own.
        requests: what was sent, with the blocks of prompts that repeat.
        from_scheduler: whether times were taken at the engine's scheduler, not by a client.
        patience_s: seconds after which clients give up; None for never.
        runs: what was measured.
    """

    id: str
    source: str
    group: str
    part: Part
    model: str
    quant: str
    machine: str
    settings: Mapping[str, Any]
    prefill: Mapping[str, Any] | None
    requests: Requests
    from_scheduler: bool
    patience_s: float | None
    runs: tuple[Run, ...]


def statistics(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean and percentiles of the values that are numbers; empty where none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {}
    ranks = np.percentile(known, [50, 90, 99])
    return dict(zip(STATISTICS, (float(known.mean()), *ranks.tolist()), strict=True))


def load_cases() -> list[Case]:
    """All shipped cases, in the order of the files.

    Raises:
        BadFile: a file that is not readable, or misses a field.
    """
    folder = Path(str(files("stowplan.validate"))) / "serving_cases"
    return [case for path in sorted(folder.glob("*.toml")) for case in _read(path)]


def _read(path: Path) -> Iterator[Case]:
    data = read_toml(path)
    for entry in data["case"]:
        where = f"{path.name}: {entry.get('id', 'a case without id')}"
        try:
            yield _case(path, data, entry)
        except KeyError as error:
            raise BadFile(f"{where}: lacks {error}") from error


def _case(path: Path, data: Mapping[str, Any], entry: Mapping[str, Any]) -> Case:
    if "log" in entry:
        requests, runs = _logged(path.with_name(entry["log"]), entry["id"])
    else:
        requests, runs = _staged(entry)
    return Case(
        id=entry["id"],
        source=entry.get("source", data["source"]),
        group=entry.get("group", path.stem),
        part=entry["part"],
        model=entry["model"],
        quant=entry["quant"],
        machine=entry["machine"],
        settings=entry["settings"],
        prefill=entry.get("prefill"),
        requests=requests,
        from_scheduler=entry.get("from_scheduler", False),
        patience_s=entry.get("patience_s"),
        runs=runs,
    )


def _logged(path: Path, name: str) -> tuple[Requests, tuple[Run, ...]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def column(key: str) -> NDArray[np.float64]:
        return np.array([float(row[key]) for row in rows])

    requests = Requests.of(column("arrival_s"), column("prompt_tokens"), column("output_tokens"))
    ttft, e2e = column("ttft_s"), column("e2e_s")
    run = Run(name, slice(0, len(rows)), statistics(ttft), statistics(e2e), logged=np.column_stack([ttft, e2e]))
    return requests, (run,)


def _staged(entry: Mapping[str, Any]) -> tuple[Requests, tuple[Run, ...]]:
    """Requests of a load generator: arrivals spread at random over every stage, prompts in turn."""
    random = np.random.default_rng(_SEED)
    arrivals: list[NDArray[np.float64]] = []
    runs: list[Run] = []
    start, first = 0.0, 0
    for stage in entry["stage"]:
        count = round(stage["rate"] * stage["duration_s"])
        arrivals.append(start + np.sort(random.uniform(0.0, stage["duration_s"], count)))
        name = entry["id"] if len(entry["stage"]) == 1 else f"{entry['id']} {stage['rate']:g}/s"
        rows = slice(first, first + count)
        runs.append(Run(name, rows, stage["ttft_s"], stage["e2e_s"], stage.get("failed", 0)))
        start += stage["duration_s"] + _PAUSE_S
        first += count
    prompts = entry["prompts"]
    everything = np.concatenate(arrivals)
    lengths = np.full(len(everything), prompts["prompt_tokens"], dtype=np.int64)
    outputs = np.full(len(everything), prompts["output_tokens"], dtype=np.int64)
    return Requests.of(everything, lengths, outputs, prefix=_repeated(prompts, len(everything))), tuple(runs)


def _repeated(prompts: Mapping[str, int], requests: int) -> Blocks:
    """Blocks of prompts that come in turn: a group's first blocks are shared, the others are a question's own."""
    size, kinds = 16, prompts["groups"] * prompts["questions"]
    blocks, shared = prompts["prompt_tokens"] // size, prompts["shared_tokens"] // size
    kind = np.random.default_rng(_SEED).permutation(kinds)[:, None]  # the generator shuffles its prompts
    block = np.arange(blocks)[None, :]
    hashes = np.where(block < shared, (kind // prompts["questions"] + 1) * 10**6, (kind + 1) * 10**9) + block
    turn = np.arange(requests) % kinds
    return Blocks(np.arange(requests + 1) * blocks, hashes[turn].reshape(-1), size)
