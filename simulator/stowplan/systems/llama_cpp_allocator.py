"""How llama.cpp places the tensors of a compute graph on devices and packs them into one buffer of each device.

Follows ggml's scheduler (``ggml-backend.cpp``: devices of operations, splits, copies of inputs) and its graph allocator
(``ggml-alloc.c``: best fit, results in place of operands, tensors freed after their last reader). What a device needs
is where the allocator's highest block ends, holes included, so both are replayed.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from stowplan.systems.base import RAM

_ENDLESS = 2**62
_ALIGNMENT = 128  # of a tensor in a CUDA buffer; in host memory it is less


@dataclass(slots=True, eq=False)
class Value:
    """A tensor of a graph; views count as what they show.

    Attributes:
        size: bytes; 0 for writes into the cache.
        sources: operands.
        place: device that computes or holds it; None for wherever its neighbours are.
        in_place: whether the result may overwrite an operand of its size.
        resident: whether it is there before the graph runs: weights and caches.
        weight: whether it is a weight.
    """

    size: int
    sources: tuple[Value, ...] = ()
    place: str | None = None
    in_place: bool = False
    resident: bool = False
    weight: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """Inputs from the host (all in host memory) and operations in order."""

    inputs: Sequence[Value]
    operations: Sequence[Value]


@dataclass(slots=True)
class _Split:
    """Operations that one device computes in a row; `copies` are made before the first."""

    place: str
    operations: list[tuple[Value, tuple[Value, ...]]] = field(default_factory=list)
    copies: list[tuple[Value, Value]] = field(default_factory=list)


class _Heap:
    """Free blocks of one buffer, sorted; the last has no end."""

    def __init__(self) -> None:
        self._free = [(0, _ENDLESS)]
        self.top = 0

    def take(self, size: int) -> int:
        """Offset of a new block: the smallest hole that holds it (the last of equals), else the end."""
        holes = [(room, -index) for index, (_, room) in enumerate(self._free[:-1]) if room >= size]
        best = -min(holes)[1] if holes else len(self._free) - 1
        offset, room = self._free[best]
        if room == size:
            del self._free[best]
        else:
            self._free[best] = (offset + size, room - size)
        self.top = max(self.top, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a block and join it with free neighbours."""
        after = bisect(self._free, offset, key=lambda block: block[0])
        start, room = self._free[after]
        if start == offset + size:
            size = room + size
            del self._free[after]
        if after:
            start, room = self._free[after - 1]
            if start + room == offset:
                after, offset, size = after - 1, start, room + size
                del self._free[after]
        self._free.insert(after, (offset, size))


def buffers(graph: Graph, devices: Sequence[str], copies: int = 1) -> dict[str, int]:
    """Bytes of the compute buffer of every device.

    Args:
        graph: what runs; operations with weights have their place, the others get it here.
        devices: in the engine's order, host memory last.
        copies: of each input, 1 without pipelining.
    """
    return _pack(graph, _split(graph, _assigned(graph.operations)), devices, copies)


def _assigned(operations: Sequence[Value]) -> list[str]:
    """Devices of all operations: GPUs spread down, then up, as far as the next operation that has a place; then all."""
    places = [operation.place for operation in operations]
    forward = range(len(places))
    for only_gpus in (True, False):
        for order in (forward, reversed(forward)):
            current: str | None = None
            for index in order:
                if places[index] is None:
                    places[index] = current
                elif only_gpus and places[index] == RAM:
                    current = None
                else:
                    current = places[index]
    return [place or RAM for place in places]


def _split(graph: Graph, places: Sequence[str]) -> list[_Split]:
    """Runs of operations on one device, and the operands that each run brings from elsewhere.

    A weight that has to be brought begins a new run, so that it can take the place of the weight before it.
    """
    where = dict(zip(graph.operations, places, strict=True))
    brought: dict[tuple[Value, str], Value] = {}
    splits: list[_Split] = []
    for operation, place in zip(graph.operations, places, strict=True):
        foreign = any(each.weight and each.place != place for each in operation.sources)
        if not splits or splits[-1].place != place or (foreign and splits[-1].copies):
            splits.append(_Split(place))
        sources = []
        for each in operation.sources:
            home = where.get(each, each.place or RAM)
            if home != place and (each, place) not in brought:
                brought[each, place] = Value(each.size)
                splits[-1].copies.append((each, brought[each, place]))
            sources.append(each if home == place else brought[each, place])
        splits[-1].operations.append((operation, tuple(sources)))
    return splits


def _pack(graph: Graph, splits: Sequence[_Split], devices: Sequence[str], copies: int) -> dict[str, int]:
    heaps = {device: _Heap() for device in devices}
    held: dict[Value, tuple[str, int, int]] = {}
    kept: set[Value] = set()

    def allocate(value: Value, place: str) -> None:
        if not value.resident and value.size and value not in held:
            size = -(-value.size // _ALIGNMENT) * _ALIGNMENT
            held[value] = (place, heaps[place].take(size), size)

    if copies > 1:
        read = {each for split in splits for _, sources in split.operations for each in sources}
        read |= {source for split in splits for source, _ in split.copies}
        fixed = [(each, RAM) for each in graph.inputs if each in read]
        fixed += [(copy, split.place) for split in splits for _, copy in split.copies]
        for value, place in fixed:
            kept.add(value)
            for other in [value, *(Value(value.size) for _ in range(copies - 1))]:
                allocate(other, place)
    for value in graph.inputs:
        allocate(value, RAM)
    steps: list[tuple[Value | None, tuple[Value, ...], str]] = []
    for split in splits:
        for source, copy in split.copies:
            steps += [(None, (source,), split.place), (copy, (), split.place)]
        steps += [(operation, sources, split.place) for operation, sources in split.operations]
    readers: dict[Value, int] = {}
    for _, sources, _ in steps:
        for each in sources:
            readers[each] = readers.get(each, 0) + 1
    for result, sources, place in steps:
        if result is not None:
            reused = None
            if result.in_place:
                same = (each for each in sources if each in held and each not in kept and each.size == result.size)
                reused = next((each for each in same if readers[each] == 1), None)
            if reused is None:
                allocate(result, place)
            else:
                held[result] = held.pop(reused)
        for each in sources:
            readers[each] -= 1
            if readers[each] == 0 and each in held and each not in kept:
                home, offset, size = held.pop(each)
                heaps[home].give(offset, size)
    return {device: heap.top for device, heap in heaps.items()}
