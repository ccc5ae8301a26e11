"""Memory nodes: which cores belong to which, and what one node's cores read from another's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.host.memory import stream_bytes
from stowplan_calibrate.measuring import Point, Surroundings
from stowplan_calibrate.sampling import Taken

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class Node:
    """One memory node: its number, its cores, and its memory in bytes."""

    number: int
    cores: tuple[int, ...]
    memory: float


def read_nodes(folder: Path = _NODES) -> tuple[Node, ...]:
    """Memory nodes from ``/sys`` (or a copy of it); empty where the system does not say."""
    found = []
    for path in sorted(folder.glob("node[0-9]*"), key=lambda each: int(each.name[4:])):
        try:
            cores = parse_cores((path / "cpulist").read_text(encoding="utf-8"))
            matched = re.search(r"MemTotal:\s*(\d{1,15}) kB", (path / "meminfo").read_text(encoding="utf-8"))
        except OSError:
            continue
        found.append(Node(int(path.name[4:]), cores, 1024.0 * int(matched[1]) if matched else 0.0))
    return tuple(found)


def parse_cores(text: str) -> tuple[int, ...]:
    """Core numbers of a list such as ``0-3,8``; ranges that make no sense are left out."""
    cores: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last.isdecimal() or not last):
            cores += range(int(first), min(int(last or first), 65535) + 1)
    return tuple(cores)


@contextmanager
def cross_reads(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Reads by one node's cores of memory that another node's cores touched first."""
    library, nodes = around.needs_library(), [node for node in read_nodes() if node.cores and node.memory]
    if len(nodes) < 2 or not hasattr(os, "sched_setaffinity"):
        raise CannotMeasure("there is one memory node only; nothing to compare")
    allowed, floats = os.sched_getaffinity(0), stream_bytes(around, len(nodes)) // 4
    try:
        arrays = {}
        for node in nodes:
            os.sched_setaffinity(0, node.cores)
            arrays[node.number] = np.full(floats, 1.0, dtype=np.float32)

        def run(reader: Node, owner: Node) -> Taken:
            os.sched_setaffinity(0, reader.cores)
            array = arrays[owner.number]
            return library.seconds("stow_read", array.ctypes.data, array.size, len(reader.cores))

        yield [
            Point(
                {"reader": reader.number, "memory": owner.number, "threads": len(reader.cores)},
                {"bytes": 4.0 * floats},
                partial(run, reader, owner),
            )
            for reader in nodes
            for owner in nodes
        ]
    finally:
        os.sched_setaffinity(0, allowed)
