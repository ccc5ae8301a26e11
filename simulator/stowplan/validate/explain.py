"""Why a prediction may be off: what limits it, what that would have to be, and what its source leaves open."""

from __future__ import annotations

from collections.abc import Sequence

from stowplan.validate.rows import Row

_NAMES = {
    "host.dram": "host memory",
    "host.cores": "CPU cores",
    "host.copier": "one core's copies",
    "host.link": "links between sockets",
    "disk.faults": "page faults",
    "disk.read": "disk reads",
    "disk.write": "disk writes",
    "overhead": "launches and waits",
    "peer": "copies between GPUs",
}
_OF_GPU = {"hbm": "memory", "compute": "kernels", "h2d": "copies in", "d2h": "copies out"}
_SHOWN = 0.05


def resource_name(name: str) -> str:
    """A resource in words."""
    device, _, what = name.partition(".")
    if name in _NAMES:
        return _NAMES[name]
    return f"{device.upper()} {_OF_GPU[what]}" if what in _OF_GPU else name


def dominant_term(row: Row) -> str:
    """What takes the predicted time, and how far off the largest share would have to be to explain the measurement.

    With a share s of the predicted time and a measured time r times the predicted one, the rest being right, the
    largest term would have to take ``(r - 1 + s) / s`` of its time.
    """
    if not row.shares:
        return ""
    shown = ", ".join(f"{resource_name(name)} {share:.0%}" for name, share in row.shares if share >= _SHOWN)
    name, share = row.shares[0]
    slower = row.ratio if not row.smaller_is_better else 1.0 / row.ratio
    needed = (slower - 1.0 + share) / share
    if needed <= 0:
        return f"{shown}; no speed of {resource_name(name)} alone explains it"
    factor = 1.0 / needed
    word = "faster" if factor > 1 else "slower"
    amount = factor if factor > 1 else needed
    return f"{shown}; {resource_name(name)} {amount:.2f}x {word} alone would explain it"


def open_points(row: Row) -> str:
    """Oddities that the source tells of, and facts that it does not state."""
    parts = [row.note.rstrip(".")] if row.note else []
    if row.assumed:
        parts.append("assumed: " + "; ".join(row.assumed))
    return ". ".join(parts)


def worst(rows: Sequence[Row], count: int = 20) -> list[Row]:
    """The largest errors by |log(predicted / measured)|, one row for each record and figure."""
    chosen: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda r: (-max(r.ratio, 1.0 / r.ratio), r.id, r.figure)):
        chosen.setdefault((row.record, row.figure), row)
    return list(chosen.values())[:count]
