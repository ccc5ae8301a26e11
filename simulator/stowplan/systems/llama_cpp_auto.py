"""What llama.cpp does by itself: the placements of its own options, to compare a plan with and to fill unset flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stowplan.errors import DoesNotFit
from stowplan.ops import EXPERT_PARTS
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp import LlamaCppRun
from stowplan.systems.serial import LayerPlaces

FIT_TARGET = 1024 * 2**20
"""Bytes that ``--fit`` leaves free on every GPU by default (``-fitt``)."""

_Candidate = tuple[list[LayerPlaces], str]


def layers_only(run: LlamaCppRun, on_gpu: int) -> _Candidate:
    """``-ngl``: the last `on_gpu` layers whole on the GPUs in equal runs, the rest whole in host memory."""
    model, gpus = run.setup.model, len(run.setup.machine.gpus)
    first = len(model.layers) - on_gpu
    placed = []
    for members in run.classes:
        for index in members.indices:
            home = RAM if index < first else f"gpu{(index - first) * gpus // max(1, on_gpu)}"
            placed.append((index, _whole(run, members.layer.index, home)))
    layers = [places for _, places in sorted(placed, key=lambda pair: pair[0])]
    return layers, layers[-1].mixer


def experts_in_ram(run: LlamaCppRun, first: int) -> _Candidate:
    """``--n-cpu-moe``: everything on the GPUs but the routed experts of the first `first` layers."""
    layers, output = layers_only(run, len(run.setup.model.layers))
    moved = []
    for index, places in enumerate(layers):
        parts = tuple((part, RAM if part in EXPERT_PARTS and index < first else place) for part, place in places.ffn)
        moved.append(LayerPlaces(places.mixer, places.kv, parts))
    return moved, output


def automatic(run: LlamaCppRun) -> _Candidate:
    """``--fit``: all on the GPUs if that fits, else experts of the first layers in host memory, else fewer layers."""
    count = len(run.setup.model.layers)
    if not run.setup.machine.gpus:
        return layers_only(run, 0)
    if any(layer.experts for layer in run.setup.model.layers):
        found = _first_that_fits(run, lambda spilled: experts_in_ram(run, spilled), range(count + 1))
        if found is not None:
            return found
    found = _first_that_fits(run, lambda spilled: layers_only(run, count - spilled), range(count + 1))
    return found or layers_only(run, 0)


def _whole(run: LlamaCppRun, index: int, home: str) -> LayerPlaces:
    parts = {part for part, _ in run.patterns(run.classes[run.class_of(index)])[0].ffn}
    kv = home if run.settings.kv_offload else RAM
    return LayerPlaces(home, kv, tuple(sorted((part, home) for part in parts)))


def _first_that_fits(
    run: LlamaCppRun, candidate: Callable[[int], _Candidate], order: Sequence[int]
) -> _Candidate | None:
    """First candidate that fits, by bisection: fitting is monotone in what is spilled."""
    low, high = 0, len(order) - 1
    if not _fits(run, candidate(order[high])):
        return None
    while low < high:
        middle = (low + high) // 2
        if _fits(run, candidate(order[middle])):
            high = middle
        else:
            low = middle + 1
    return candidate(order[low])


def _fits(run: LlamaCppRun, placement: _Candidate) -> bool:
    layers, output = placement
    memory = run.memory(layers, RAM, output)
    try:
        run.overflow(memory, layers)
    except DoesNotFit:
        return False
    return all(use.used + FIT_TARGET <= use.capacity for tier, use in memory.items() if tier != RAM)
