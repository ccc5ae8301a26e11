"""Plain sentences about what would help, from the numbers of a what-if answer."""

from __future__ import annotations

from collections.abc import Sequence

from stowplan.report.words import resource
from stowplan.whatif.answer import WhatIf

_MOST_NAMED = 3
_LOSES = 0.995


def times(ratio: float) -> str:
    """How many times faster: '1.7x', or a percentage below a fifth."""
    if ratio >= 1.2:
        return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"
    return f"{100 * (ratio - 1):.0f} %"


def summary(answer: WhatIf) -> list[str]:
    """What limits, what helps most, what helps nothing."""
    gpus = len(answer.setup.gpus)
    outcome = answer.outcome
    share = (outcome.shares or {}).get(outcome.bottleneck, 0.0)
    limit = f"Decode is limited by {resource(outcome.bottleneck, gpus)} ({100 * share:.0f} % of every step)"
    prompt = f", the prompt by {resource(outcome.prefill_bottleneck, gpus)}" if outcome.prefill_bottleneck else ""
    said = [f"{limit}{prompt}."]
    hardware = [change for change in answer.changes if not change.quality]
    sure = [change for change in hardware if change.helps and change.gain.certain]
    if sure:
        named = [f"{change.title} gives {times(change.gain.ratio)}" for change in sure[:_MOST_NAMED]]
        said.append(f"{_upper('; '.join(named))}.")
    doubtful = [change for change in hardware if change.helps and not change.gain.certain]
    if doubtful:
        named = [f"{change.title} ({times(change.gain.ratio)})" for change in doubtful[:_MOST_NAMED]]
        said.append(f"Within the error bar: {', '.join(named)}.")
    useless = [change.title for change in hardware if not change.helps and change.gain.ratio > _LOSES]
    if useless:
        said.append(f"{_upper(_listed(useless))} {'gives' if len(useless) == 1 else 'give'} nothing.")
    return said


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
