"""Synthetic routing of the shipped profiles against published measures; those that no fit has seen are named apart."""

from __future__ import annotations

from functools import lru_cache
from statistics import fmean, median

import pytest

from stowplan.models import load_model
from stowplan.routing.caches import expected_hit_rate, hit_rate
from stowplan.routing.fitting import TEXT, fitted
from stowplan.routing.generate import UNIFORM, RoutingProfile, generate, profile_for
from stowplan.routing.metrics import segment_cache, segment_routing
from stowplan.routing.published import published_routing
from stowplan.routing.trace import RoutingTrace

MEASURED = published_routing()
PROFILED = [name for name, each in MEASURED.items() if not each.held_out]
HELD_OUT = [name for name, each in MEASURED.items() if each.held_out]
AGREED = [name for name in PROFILED if MEASURED[name].lru and not MEASURED[name].caches]
LAYERS = 8


@lru_cache(maxsize=32)
def texts(name: str, profile: RoutingProfile) -> list[RoutingTrace]:
    """Texts with seeds that no fit has used."""
    measured = MEASURED[name]
    return [generate(profile, measured.experts, measured.active, TEXT, 500 + each) for each in range(16)]


def test_the_shipped_measures_fit_the_models_that_they_are_of() -> None:
    assert len(PROFILED) == 7 and len(HELD_OUT) == 4
    known = {"mixtral-8x7b", "deepseek-v2-lite", "qwen2-57b-a14b", "qwen1.5-moe-a2.7b", "qwen3-30b-a3b"}
    assert known <= set(PROFILED)
    for name in known:
        routed = next(layer.experts for layer in load_model(name).layers if layer.experts)
        assert (routed.total, routed.active) == (MEASURED[name].experts, MEASURED[name].active)
    for measured in MEASURED.values():
        rates = [measured.srp[segment] for segment in (4, 16, 64, 256)]
        assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", PROFILED)
def test_segments_are_as_consistent_as_published(name: str) -> None:
    measured, found = MEASURED[name], texts(name, profile_for(name))
    assert segment_routing(found, 16).f1 == pytest.approx(measured.srp[16], abs=0.025)
    assert segment_routing(found, 256).f1 == pytest.approx(measured.srp[256], abs=0.025)
    # Not fitted to:
    assert segment_routing(found, 64).f1 == pytest.approx(measured.srp[64], abs=0.025)
    uniform = texts(name, UNIFORM)
    assert segment_routing(uniform, 16).f1 < segment_routing(found, 16).f1 - 0.02


def test_models_are_as_far_apart_as_published() -> None:
    def order(rates: dict[str, float]) -> list[str]:
        return sorted(rates, key=lambda name: rates[name])

    found = {name: segment_routing(texts(name, profile_for(name)), 16).f1 for name in PROFILED}
    # Qwen2 and DeepSeek-V2-Lite are published 1.2 points apart.
    close = {"qwen2-57b-a14b", "deepseek-v2-lite"}
    published = order({name: MEASURED[name].srp[16] for name in PROFILED})
    assert [name for name in order(found) if name not in close] == [name for name in published if name not in close]


@pytest.mark.parametrize("name", PROFILED)
def test_segment_caches_hit_what_is_published_though_no_fit_used_it(name: str) -> None:
    measured = MEASURED[name]
    for segment, published in measured.sch.items():
        found = segment_cache(texts(name, profile_for(name))[:LAYERS], segment, 2 * measured.active * LAYERS)
        assert found == pytest.approx(published, abs=0.09), segment


@pytest.mark.parametrize("name", AGREED)
def test_lru_caches_hit_what_is_published_though_no_fit_used_it(name: str) -> None:
    measured = MEASURED[name]
    for times, published in measured.lru.items():
        found = fmean(hit_rate(trace, times * measured.active) for trace in texts(name, profile_for(name)))
        assert found == pytest.approx(published, abs=0.04), times


@pytest.mark.parametrize("name", [name for name in PROFILED if MEASURED[name].caches])
def test_profiles_give_the_hit_rates_of_the_second_source(name: str) -> None:
    measured = MEASURED[name]
    for each in measured.caches:
        room = each.share * measured.experts
        found = expected_hit_rate(profile_for(name), measured.experts, measured.active, room, each.policy)
        # The sources contradict each other on Qwen2: an LRU cache of a quarter hits 45.0 % in the one, 37.5 % in the
        # other, and the profile lies between what their other figures ask for.
        contradicted = name == "qwen2-57b-a14b" and each.policy == "score"
        assert found == pytest.approx(each.rate, abs=0.055 if contradicted else 0.03), each


def test_the_default_profile_is_the_median_of_the_fitted_and_tells_what_it_is_worth() -> None:
    default = profile_for("no-such-model")
    assert default.kind == "assumed"
    profiles = [profile_for(name) for name in PROFILED]
    assert default.popularity == pytest.approx(median(each.popularity for each in profiles), abs=0.005)
    assert default.persistence == pytest.approx(median(each.persistence for each in profiles), abs=0.005)
    off = [abs(segment_routing(texts(name, default), 16).f1 / MEASURED[name].srp[16] - 1.0) for name in HELD_OUT]
    assert median(off) < 0.2 and max(off) < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen1.5-moe-a2.7b", "phi-3.5-moe"])
def test_stored_profiles_are_what_the_fit_finds(name: str) -> None:
    found, stored = fitted(MEASURED[name]), profile_for(name)
    assert found.popularity == pytest.approx(stored.popularity, abs=0.005)
    assert found.persistence == pytest.approx(stored.persistence, abs=0.005)
