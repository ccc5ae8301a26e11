"""The neighbours of a FlexGen policy, simulated: the closed form of the programme does not know how tasks wait."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

from stowplan.systems.flexgen_policy import FlexgenSettings

_ALL = 100
_STEPS = (16, 4, 1)
_MOST = 30
_NOTICEABLE = 1e-3
"""The programme is solved to this gap: a smaller gain is none."""

Percent = tuple[int, int, int, int, int, int]


def polished(
    settings: FlexgenSettings,
    splits: Sequence[tuple[int, int]],
    tokens_per_s: Callable[[FlexgenSettings], float | None],
) -> FlexgenSettings:
    """The best policy that single moves reach, by simulated speed; the given one where none is faster.

    A move puts the next matrix on another tier, some per cent of the cache, or the hidden states. The first that gains
    is taken and the search goes on from there, for 30 simulations at most.

    Args:
        settings: where to start.
        splits: percentages (GPU, host) of every distinct rounding of the weights, ascending.
        tokens_per_s: of a policy, None where it does not fit.
    """
    best = tokens_per_s(settings)
    if best is None:
        return settings
    tried = {settings.percent}
    while len(tried) < _MOST:
        for percent in _moves(settings, splits):
            if percent in tried or len(tried) >= _MOST:
                continue
            tried.add(percent)
            moved = settings.model_copy(update={"percent": percent})
            speed = tokens_per_s(moved)
            if speed is not None and speed > best * (1 + _NOTICEABLE):
                settings, best = moved, speed
                break
        else:
            break
    return settings


def _moves(settings: FlexgenSettings, splits: Sequence[tuple[int, int]]) -> Iterator[Percent]:
    """Percentages that one move leads to, those of the weights first."""
    gpu, host, cache_gpu, cache_host, hidden_gpu, hidden_host = settings.percent
    cache, hidden = (cache_gpu, cache_host), (hidden_gpu, hidden_host)
    tiers = 3 if any(sum(split) < _ALL for split in splits) else 2
    for split in _next_splits((gpu, host), splits):
        yield (*split, *cache, *hidden)
    for step in (_ALL,) if settings.compress_cache else _STEPS:
        for pair in _shifted(cache, step, tiers):
            if not (settings.cpu_cache_compute and pair[0] == _ALL):
                yield (gpu, host, *pair, *hidden)
    for pair in _shifted(hidden, _ALL, tiers):
        yield (gpu, host, *cache, *pair)


def _next_splits(split: tuple[int, int], splits: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The nearest roundings with as much on the GPU, as much on the disk, or as much in host memory."""
    lines = (
        [each for each in splits if each[0] == split[0]],
        [each for each in splits if sum(each) == sum(split)],
        [each for each in splits if each[1] == split[1]],
    )
    for line in lines:
        at = bisect_left(line, split)
        yield from line[max(0, at - 1) : at]
        yield from line[at + 1 : at + 2]


def _shifted(pair: tuple[int, int], step: int, tiers: int) -> Iterator[tuple[int, int]]:
    """Per cent on the GPU and the host after `step` of them went from one tier to another."""
    held = (*pair, _ALL - sum(pair))
    for source, target in permutations(range(tiers), 2):
        if held[source] >= step:
            after = list(held)
            after[source] -= step
            after[target] += step
            yield after[0], after[1]
