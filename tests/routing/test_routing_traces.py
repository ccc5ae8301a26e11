"""Synthetic routing, recorded routing, caches over both, and how local a trace is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import BadFile, InputError
from stowplan.routing.caches import POLICIES, expected_hit_rate, hit_rate
from stowplan.routing.generate import UNIFORM, RoutingProfile, generate, profile_for
from stowplan.routing.metrics import segment_coverage
from stowplan.routing.reading import read_routing
from stowplan.routing.trace import RoutingTrace, popularity_classes

profiles = st.builds(RoutingProfile, st.floats(0, 0.9), st.floats(0, 0.9))


@settings(deadline=None, max_examples=20)
@given(profile=profiles, experts=st.integers(2, 24), tokens=st.integers(1, 60), data=st.data())
def test_a_trace_is_what_was_asked_for_and_repeats(
    profile: RoutingProfile, experts: int, tokens: int, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, experts))
    trace = generate(profile, experts, active, tokens, seed=5)
    assert trace.experts == experts and len(trace.tokens) == tokens and trace.active == active
    assert trace == generate(profile, experts, active, tokens, seed=5)
    assert sum(trace.popularity()) == pytest.approx(active)


def test_uniform_routing_hits_the_share_that_a_cache_holds() -> None:
    trace = generate(UNIFORM, 64, 6, 4000, seed=3)
    for policy in ("lru", "lfu", "static"):
        assert hit_rate(trace, 16, policy) == pytest.approx(0.25, abs=0.03)


@settings(deadline=None, max_examples=15)
@given(profile=profiles, experts=st.integers(4, 20), seed=st.integers(0, 50), data=st.data())
def test_no_cache_beats_the_one_that_knows_the_future(
    profile: RoutingProfile, experts: int, seed: int, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, experts // 2))
    capacity = data.draw(st.integers(active, experts))
    trace = generate(profile, experts, active, 200, seed)
    best = hit_rate(trace, capacity, "belady")
    # What it holds when counting begins may lack experts that another holds by then, each worth at most one miss.
    slack = capacity / (0.8 * 200 * active)
    # A fixed set is filled in advance, so only caches that start empty are bounded by it.
    for policy in ("lru", "lfu", "score"):
        assert hit_rate(trace, capacity, policy) <= best + slack + 1e-12


@pytest.mark.parametrize("policy", POLICIES)
def test_hit_rates_span_none_to_all_and_grow_with_room(policy: str) -> None:
    profile = RoutingProfile(0.5, 0.2)
    rates = [expected_hit_rate(profile, 16, 4, capacity, policy) for capacity in (0, 4, 6.5, 8, 12, 16)]
    assert rates[0] == 0.0 and rates[-1] == 1.0
    assert rates == sorted(rates)


def test_persistence_and_popularity_raise_the_hit_rate() -> None:
    base = expected_hit_rate(UNIFORM, 64, 8, 16)
    assert expected_hit_rate(RoutingProfile(0.6, 0.0), 64, 8, 16) > base + 0.1
    assert expected_hit_rate(RoutingProfile(0.0, 0.6), 64, 8, 16) > base + 0.1


def test_a_model_without_a_profile_gets_the_assumed_one() -> None:
    assert profile_for("no-such-model").kind == "assumed"
    assert profile_for("mixtral-8x7b").kind == "fitted"


def test_segments_of_one_token_are_covered_by_as_many_experts_as_it_uses() -> None:
    trace = generate(RoutingProfile(0.3, 0.4), 32, 4, 300)
    assert segment_coverage(trace, 1, 4) == 1.0
    assert segment_coverage(trace, 64, 4) < segment_coverage(trace, 8, 4) < 1.0
    assert segment_coverage(trace, 8, 32) == 1.0


def test_popularity_classes_keep_the_experts_and_what_they_serve() -> None:
    popularity = generate(RoutingProfile(0.8, 0.0), 60, 4, 2000).popularity()
    classes = popularity_classes(popularity, 16)
    assert len(classes) == 16 and sum(count for count, _ in classes) == 60
    assert sum(count * mean for count, mean in classes) == pytest.approx(4.0)
    assert [mean for _, mean in classes] == sorted((mean for _, mean in classes), reverse=True)
    with pytest.raises(InputError, match="at least one"):
        popularity_classes(popularity, 0)


def test_recorded_routing_is_read_by_layer(tmp_path: Path) -> None:
    records = [
        {"layer": 1, "experts": [3, 0], "scores": [0.5, 0.1, 0.1, 0.9]},
        {"layer": 0, "experts": [2]},
        {"layer": 1, "experts": [1, 2], "scores": [0, 1, 2, 0]},
    ]
    path = tmp_path / "routing.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    found = read_routing(path, experts=4)
    assert found[1].tokens == ((0, 3), (1, 2)) and found[0].tokens == ((2,),)
    assert found[1].scores is not None and found[0].scores is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no routing record"),
        ("nonsense", "line 1: is not JSON"),
        ('{"layer": 0}', "experts a list"),
        ('{"layer": true, "experts": [1]}', "layer must be a whole number"),
        ('{"layer": 0, "experts": [9]}', "from 0 to 3"),
        ('{"layer": 0, "experts": [1, 1]}', "distinct"),
        ('{"layer": 0, "experts": [1], "extra": 2}', "object of layer"),
        ('{"layer": 0, "experts": [1], "scores": [1, 2]}', "one row of 4"),
        ('{"layer": 0, "experts": [1]}\n{"layer": 0, "experts": [1], "scores": [1,1,1,1]}', "line 2"),
    ],
)
def test_a_bad_record_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "routing.jsonl"
    path.write_text(text)
    with pytest.raises(BadFile, match=told):
        read_routing(path, experts=4)


def test_what_cannot_be_simulated_is_refused() -> None:
    trace = RoutingTrace(4, ((0, 1),))
    with pytest.raises(InputError, match="no expert cache"):
        hit_rate(trace, 2, "fifo")
    with pytest.raises(InputError, match="router's scores"):
        hit_rate(trace, 2, "score")
    with pytest.raises(InputError, match="from 0 to below 1"):
        RoutingProfile(1.0, 0.0)
    with pytest.raises(InputError, match="cannot route"):
        generate(UNIFORM, 4, 5, 10)
