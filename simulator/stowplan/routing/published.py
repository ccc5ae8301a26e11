"""Published measures of routing: what profiles are fitted to and compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile


@dataclass(frozen=True, slots=True)
class CacheRate:
    """Hit rate of a cache that holds a share of a layer's experts."""

    share: float
    policy: str
    rate: float


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of one model's routing; all rates from 0 to 1, segments in tokens.

    Attributes:
        experts, active: routed experts of a layer, and of one token.
        held_out: no profile may be fitted to this model.
        srp, size_ratio: segment routing best performance and its size ratio, by segment.
        sch: segment cache best hit rate of a cache of twice the active experts, by segment.
        lru: hit rate of an LRU cache of so many times the active experts.
        caches: hit rates from another source.
    """

    experts: int
    active: int
    held_out: bool = False
    srp: Mapping[int, float] = field(default_factory=dict)
    size_ratio: Mapping[int, float] = field(default_factory=dict)
    sch: Mapping[int, float] = field(default_factory=dict)
    lru: Mapping[int, float] = field(default_factory=dict)
    caches: tuple[CacheRate, ...] = ()


def published_routing() -> dict[str, Published]:
    """The shipped measures, by model.

    Raises:
        BadFile: the shipped table lacks a field.
    """
    path = data_folder("traces") / "routing-published.toml"

    def rates(entry: dict[str, Any], name: str, whole: float = 100.0) -> dict[int, float]:
        return {int(key): float(value) / whole for key, value in entry.get(name, {}).items()}

    found: dict[str, Published] = {}
    for model, entry in read_toml(path)["models"].items():
        try:
            found[model] = Published(
                int(entry["experts"]),
                int(entry["active"]),
                bool(entry.get("held_out", False)),
                rates(entry, "srp"),
                rates(entry, "size_ratio", 1.0),
                rates(entry, "sch"),
                rates(entry, "lru"),
                tuple(
                    CacheRate(float(each["share"]), str(each["policy"]), float(each["rate"]) / 100.0)
                    for each in entry.get("caches", ())
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{path}: [models.{model}] is not a published measure ({error})") from error
    return found
