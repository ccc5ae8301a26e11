"""What no fitted record had: architectures and generations of GPUs that are new to the constants.

``hwprofiles/seen/{engine}.toml`` says what an engine's constants were fitted on, and how much further off predictions
are beyond it; ``python -m stowplan.validate.spread`` prints that file. An unseen part is an error of its own in its
share of the time, with one sign for everything that runs on it: two options that share it are off alike. Processors
are not among the parts: a spread for those that the fit lacks made intervals of held-out records score worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile
from stowplan.machines.machine import Gpu
from stowplan.plan import Unseen, UnseenPart
from stowplan.systems.base import Evaluation, Setup

PARTS: tuple[UnseenPart, ...] = ("architecture", "gpu")
PHASES = ("decode", "prefill")

_NEGLIGIBLE = 0.02  # a spread that hardly shows in an interval


@dataclass(frozen=True, slots=True)
class Seen:
    """What an engine's constants were fitted on.

    Attributes:
        groups: names of the groups that had a fitted record, by part.
        spread: standard deviation of the logarithm of times by part and phase where a group had none.
    """

    groups: Mapping[UnseenPart, frozenset[str]]
    spread: Mapping[tuple[UnseenPart, str], float]


@lru_cache(maxsize=8)
def seen(engine: str) -> Seen | None:
    """What an engine's constants were fitted on; None where nobody worked it out.

    Raises:
        BadFile: a file that lacks a part, or whose spread is no number from zero.
    """
    path = data_folder("hwprofiles") / "seen" / f"{engine}.toml"
    if not path.is_file():
        return None
    data = read_toml(path)
    groups: dict[UnseenPart, frozenset[str]] = {}
    spread: dict[tuple[UnseenPart, str], float] = {}
    for part in PARTS:
        table = data.get(part)
        if not isinstance(table, Mapping) or not isinstance(table.get("groups"), list):
            raise BadFile(f"{path}: {part} must be a table with groups, decode and prefill")
        groups[part] = frozenset(str(each) for each in table["groups"])
        for phase in PHASES:
            entry = table.get(phase)
            value = entry.get("value") if isinstance(entry, Mapping) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10:
                raise BadFile(f"{path}: {part}.{phase}: value must be a number from 0 to 10")
            spread[part, phase] = float(value)
    return Seen(groups, spread)


def gpu_generation(gpu: Gpu) -> str:
    """GPUs of one generation: of one vendor and process, with the same arithmetic."""
    place = "unified" if gpu.unified else gpu.process
    return " ".join([gpu.vendor, *([place] if place else []), *sorted(gpu.peaks)])


def groups_of(setup: Setup) -> dict[UnseenPart, dict[str, str]]:
    """Group of every part of a setup, with a name for people."""
    return {
        "architecture": {setup.model.architecture: setup.model.architecture},
        "gpu": {gpu_generation(gpu): gpu.name for gpu in setup.machine.gpus},
    }


def share_of(part: UnseenPart, shares: Mapping[str, float]) -> float:
    """Share of a phase's time that a part answers for; GPUs for memory, arithmetic and launches, not for copies."""
    total = sum(shares.values())
    if not total:
        return 0.0
    if part == "architecture":
        return 1.0
    gpus = sum(s for name, s in shares.items() if name.startswith("gpu") and not name.endswith(("h2d", "d2h")))
    return (gpus + shares.get("overhead", 0.0)) / total if gpus else 0.0


def unseen(setup: Setup, engine: str, evaluation: Evaluation) -> list[Unseen]:
    """Parts of a setup that no fitted record had, with what that adds to the spread of the log times.

    A part whose constants were measured on this very machine is not one of them.
    """
    known = seen(engine)
    if known is None:
        return []
    shares = {"decode": evaluation.decode_shares, "prefill": evaluation.prefill_shares}
    found: list[Unseen] = []
    for part, groups in groups_of(setup).items():
        new = [(group, name) for group, name in groups.items() if group not in known.groups[part]]
        if not new or any(name.startswith(f"{engine}.{part}.") for name in setup.machine.constants):
            continue
        decode, prefill = (known.spread[part, phase] * share_of(part, shares[phase]) for phase in PHASES)
        if max(decode, prefill) > _NEGLIGIBLE:
            group, name = new[0]
            found.append(Unseen(part=part, group=group, name=name, decode_sd=decode, prefill_sd=prefill))
    return found
