"""Routing profiles fitted to published measures, and how well they give those that are set aside.

``python -m stowplan.routing.fitting [MODEL ...]`` prints them for ``traces/routing.toml``; nothing is written. The
two parameters of a profile are fitted to the segment routing best performance of segments of 4, 16 and 256 tokens
and, where another source gives hit rates of caches, to those, both sources weighing the same. Segments of 64 tokens,
size ratios, segment caches and the first source's own LRU caches are only reported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import exp, log
from statistics import fmean, median

from scipy.optimize import minimize

from stowplan.routing.caches import expected_hit_rate, hit_rate
from stowplan.routing.generate import RoutingProfile, generate
from stowplan.routing.metrics import segment_cache, segment_routing
from stowplan.routing.published import Published, published_routing
from stowplan.routing.trace import RoutingTrace

FITTED_SEGMENTS = (4, 16, 256)
TEXT = 512  # tokens of one text of arXiv:2505.16056
_START = (0.4, 0.3)
_FIRST_STEP = 1.0  # in log odds
_MOST_TRIALS = 50
_CACHED = 32  # texts, at most, on which a cache is tried
_LAYERS = 8  # that share a segment cache; from 4 to 16 of them its hit rate changes by about a point


def texts(profile: RoutingProfile, measured: Published, seed: int = 0) -> list[RoutingTrace]:
    """Synthetic texts: at least twelve, more where there are few experts."""
    count = max(12, 512 // measured.experts)
    return [
        generate(profile, measured.experts, measured.active, TEXT, seed=1000 * seed + number) for number in range(count)
    ]


def fitted(measured: Published) -> RoutingProfile:
    """The profile nearest to what is published of a model."""

    def loss(odds: Sequence[float]) -> float:
        traces = texts(_profile(odds), measured)
        off = [segment_routing(traces, segment).f1 - measured.srp[segment] for segment in FITTED_SEGMENTS]
        caches = [
            fmean(hit_rate(trace, round(each.share * measured.experts), each.policy) for trace in traces[:_CACHED])
            - each.rate
            for each in measured.caches
        ]
        return 1e4 * (fmean(each * each for each in off) + (fmean(each * each for each in caches) if caches else 0.0))

    start = [log(each / (1.0 - each)) for each in _START]
    corners = [start, [start[0] + _FIRST_STEP, start[1]], [start[0], start[1] + _FIRST_STEP]]
    found = minimize(
        loss,
        start,
        method="Nelder-Mead",
        options={"maxfev": _MOST_TRIALS, "xatol": 0.02, "fatol": 0.01, "initial_simplex": corners},
    )
    return _profile(found.x)


def _profile(odds: Sequence[float]) -> RoutingProfile:
    popularity, persistence = (min(0.999, round(1.0 / (1.0 + exp(-each)), 3)) for each in odds)
    return RoutingProfile(popularity, persistence)


def residuals(profile: RoutingProfile, measured: Published, seed: int = 1) -> Iterator[tuple[str, float, float, bool]]:
    """Published measures: (name, published, synthetic, whether the fit used it); on texts that the fit has not seen."""
    traces = texts(profile, measured, seed)
    for segment, published in measured.srp.items():
        found = segment_routing(traces, segment)
        yield f"SRP of {segment}", published, found.f1, segment in FITTED_SEGMENTS and not measured.held_out
        if segment in measured.size_ratio:
            yield f"size ratio of {segment}", measured.size_ratio[segment], found.size, False
    for segment, published in measured.sch.items():
        room = 2 * measured.active * _LAYERS
        yield f"SCH of {segment}", published, segment_cache(traces[:_LAYERS], segment, room), False
    for times, published in measured.lru.items():
        found_rate = fmean(hit_rate(trace, times * measured.active) for trace in traces[:_CACHED])
        yield f"LRU of {times} x active", published, found_rate, False
    for each in measured.caches:
        rate = expected_hit_rate(profile, measured.experts, measured.active, each.share * measured.experts, each.policy)
        yield f"{each.policy} cache of {each.share:.0%}", each.rate, rate, True


def main(names: Sequence[str]) -> None:
    """Print the fit of each model, the median profile, and what profiles make of what they were not fitted to."""
    measures = published_routing()
    profiles: dict[str, RoutingProfile] = {}
    for name in names or [each for each, measured in measures.items() if not measured.held_out]:
        profiles[name] = fitted(measures[name])
        _print(name, profiles[name], measures[name])
    if not names:
        middle = RoutingProfile(
            median(each.popularity for each in profiles.values()),
            median(each.persistence for each in profiles.values()),
        )
        for name, measured in measures.items():
            _print(f"default as {name}", middle, measured)


def _print(name: str, profile: RoutingProfile, measured: Published) -> None:
    print(f"{name}: popularity {profile.popularity}, persistence {profile.persistence}")
    for told, published, found, used in residuals(profile, measured):
        print(f"  {told:22} {published:8.3f} {found:8.3f} {found - published:+8.3f}  {'fit' if used else 'test'}")


if __name__ == "__main__":
    main(sys.argv[1:])
