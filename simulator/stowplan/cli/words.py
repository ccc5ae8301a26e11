"""Plain words for resources, parts and numbers, and the sentences that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stowplan.report.words import WHOLE, doing, place, unseen
from stowplan.units import format_bytes

if TYPE_CHECKING:
    from stowplan.plan import Interval, MemoryUse, Prediction

_GIB = 2.0**30
_KINDS = ("measured", "fitted", "datasheet", "assumed")
_DEVICE = {
    "hbm": "memory",
    "compute": "arithmetic",
    "h2d": "link from host",
    "d2h": "link to host",
}


def resource(name: str, gpus: int = 1) -> str:
    """A resource in plain words: ``host.dram`` is 'host DRAM', ``gpu1.hbm`` 'GPU 1 memory'."""
    if name in WHOLE:
        return WHOLE[name]
    device, _, what = name.partition(".")
    return f"{place(device, gpus)} {_DEVICE[what]}" if what in _DEVICE else name


def limit(prediction: Prediction, rates: Mapping[str, float], held_in_ram: str, gpus: int) -> str:
    """What limits a decode step, in a sentence.

    Args:
        prediction: whose bottleneck is told.
        rates: what each resource gives per second.
        held_in_ram: what is read from host memory: weights, experts, the cache.
        gpus: number of GPUs of the machine.
    """
    name = prediction.bottleneck
    share = f"{100 * prediction.time_shares.get(name, 0.0):.0f} % of every step"
    return f"{resource(name, gpus)}: {share} {doing(name, rates, held_in_ram, gpus)}"


def rate(value: float) -> str:
    """Tokens per second with three digits."""
    return _three(value)


def _three(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def seconds(value: float) -> str:
    """A wait in seconds, or milliseconds below a tenth."""
    return f"{_three(value)} s" if value >= 0.1 else f"{_three(1e3 * value)} ms"


def interval(found: Interval, *, first: bool = False) -> str:
    """An 80 % interval in the unit of the value before it."""
    return f"({'80 %: ' if first else ''}{_three(found.low)} - {_three(found.high)})"


def tokens(count: int) -> str:
    """A number of tokens: 512, 2k, 32k."""
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else f"{count}"


def gib(value: float) -> str:
    """GiB without the unit."""
    return _three(value / _GIB)


def memory(tiers: Mapping[str, MemoryUse], *, margin: bool = True) -> str:
    """Use of every tier on one line; many alike GPUs share an entry, spilled pages are named as such."""
    gpus = [use for tier, use in tiers.items() if tier.startswith("gpu")]
    entries = []
    if len(gpus) > 3:
        most = max(gpus, key=lambda use: use.used / use.capacity)
        entries.append(f"{len(gpus)} GPUs, the fullest {gib(most.used)} / {gib(most.capacity)} GiB")
    else:
        for tier, use in tiers.items():
            if tier.startswith("gpu"):
                left = f" (margin {gib(max(0.0, use.capacity - use.used))})" if margin else ""
                entries.append(f"{place(tier, len(gpus))} {gib(use.used)} / {gib(use.capacity)} GiB{left}")
    for tier, use in tiers.items():
        if tier.startswith("gpu") or (tier == "disk" and not use.used):
            continue
        spilled = max(0.0, use.used - use.capacity)
        entries.append(f"{place(tier)} {gib(use.used - spilled)} / {gib(use.capacity)} GiB")
        if spilled:
            entries.append(f"SSD {format_bytes(spilled)} read on demand")
    return "   ".join(entries)


def provenance(prediction: Prediction) -> str:
    """How well the figures behind a prediction are known, and what was never measured.

    '3 of 14 figures measured, 2 fitted, 9 assumed'
    """
    kinds = [figure.kind for figure in prediction.rests_on]
    counts = {kind: kinds.count(kind) for kind in _KINDS}
    others = "".join(f", {count} {kind}" for kind, count in counts.items() if kind != "measured" and count)
    new = unseen(prediction.unseen)
    return f"{counts['measured']} of {len(kinds)} figures measured{others}{f'; {new}' if new else ''}"


def times(ratio: float) -> str:
    """A ratio as people say it: '2.0x', '18 %'."""
    return f"{ratio:.1f}x" if ratio >= 1.5 else f"{100 * (ratio - 1):.0f} %"
