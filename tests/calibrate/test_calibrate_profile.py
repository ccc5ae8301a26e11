"""Profiles come back as they were written, for every shipped machine; merges and comparisons follow their rules."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import BadFile, InputError, StowplanError
from stowplan.figures import figures_for
from stowplan.machines import list_keys, load_machine
from stowplan.machines.machine import Machine, Number, SourceKind
from stowplan_calibrate.profile import (
    Document,
    constants_document,
    machine_document,
    read_profile,
    toml_text,
    write_profile,
)
from stowplan_calibrate.profile_pairs import differences, merged, numbers_of, plain_value

SHIPPED = [key for key in list_keys("machine") if load_machine(key).peer is None or load_machine(key).gpus]


def figures(machine: Machine) -> dict[str, float]:
    return {name: number.value for name, number in figures_for(machine, "llama.cpp").items()}


@pytest.mark.parametrize("key", SHIPPED)
def test_a_profile_of_a_machine_predicts_as_the_machine(key: str, tmp_path: Path) -> None:
    machine = load_machine(key)
    again = write_profile(tmp_path / "profile.toml", machine_document(machine))
    assert again.spec == str(tmp_path / "profile.toml")
    assert (again.cores, again.sockets, len(again.gpus)) == (machine.cores, machine.sockets, len(machine.gpus))
    assert figures(again) == pytest.approx(figures(machine), rel=1e-6)
    assert [gpu.name for gpu in again.gpus] == [gpu.name for gpu in machine.gpus]
    assert again.memory.capacity.value == machine.memory.capacity.value


def measured(machine: Machine) -> Machine:
    clock = Number(3.21e9, SourceKind.MEASURED, "a test, 2026-11-21", 0.012)
    bandwidth = Number(41.5e9, SourceKind.MEASURED, 'sum over an array; "quoted" \\ and\nlines', 0.02)
    cpu = replace(machine.cpu, clock=clock, measured={"read_bandwidth": bandwidth})
    gemv = Number(2.5, SourceKind.FITTED, "llama-bench 0c1e570", 0.05)
    gap = Number(3e-6, SourceKind.FITTED, "llama-bench 0c1e570")
    constants = {"llama.cpp.cpu.gemv.q4_k": gemv, "llama.cpp.cpu.operator_gap": gap}
    return replace(machine, cpu=cpu, constants=constants)


def test_measured_numbers_reach_predictions_with_their_source(tmp_path: Path) -> None:
    document = machine_document(measured(load_machine("cpu-laptop-32")), {"llama.cpp.cpu.operator_gap": "seconds"})
    machine = write_profile(tmp_path / "p.toml", document)
    found = figures_for(machine, "llama.cpp")
    assert (found["host.clock"].value, found["host.clock"].kind) == (3.21e9, SourceKind.MEASURED)
    assert (found["host.dram"].value, found["host.dram"].kind, found["host.dram"].sd) == (
        41.5e9,
        SourceKind.MEASURED,
        0.02,
    )
    assert found["llama.cpp.cpu.gemv.q4_k"].value == 2.5
    assert found["llama.cpp.cpu.operator_gap"].value == pytest.approx(3e-6)
    assert found["llama.cpp.cpu.gemv.q4_k"].kind is SourceKind.FITTED
    assert "llama.cpp.cpu.gemv.q4_k" not in figures_for(machine, "flexgen")
    assert figures_for(machine, "llama.cpp", "ik_llama.cpp").get_value("llama.cpp.cpu.gemv.q4_k") != 2.5


def test_probed_machine_becomes_a_profile(tmp_path: Path) -> None:
    machine = load_machine("auto")
    again = write_profile(tmp_path / "auto.toml", machine_document(machine))
    assert again.cpu.name == machine.cpu.name
    assert again.memory.capacity.value == machine.memory.capacity.value


def test_a_wrong_profile_leaves_nothing_behind(tmp_path: Path) -> None:
    document = machine_document(load_machine("cpu-laptop-32"))
    document["cpu"] = "#no-such-part"
    path = tmp_path / "p.toml"
    with pytest.raises(BadFile, match="no-such-part"):
        write_profile(path, document)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadFile, match=r"\.toml"):
        write_profile(tmp_path / "p.json", machine_document(load_machine("cpu-laptop-32")))
    with pytest.raises(BadFile, match="cannot be written"):
        write_profile(tmp_path / "absent" / "p.toml", machine_document(load_machine("cpu-laptop-32")))


def test_a_wrong_profile_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    write_profile(path, machine_document(load_machine("cpu-laptop-32")))
    before = path.read_bytes()
    document = machine_document(load_machine("cpu-laptop-32"))
    document["parts"] = {}
    with pytest.raises(BadFile):
        write_profile(path, document)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["p.toml"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"value": 2.0, "dimension": "furlongs", "source": "fitted", "where": "x"}, "furlongs"),
        ({"value": 2.0, "dimension": "count", "source": "guessed", "where": "x"}, "guessed"),
        ({"value": 2.0, "dimension": "count", "source": "fitted"}, "where"),
        ({"value": -2.0, "dimension": "count", "source": "fitted", "where": "x"}, "negative"),
        (7, "table of numbers"),
    ],
)
def test_wrong_constants_are_named(tmp_path: Path, entry: Any, words: str) -> None:
    document = machine_document(load_machine("cpu-laptop-32")) | {"constants": {"llama.cpp": {"cpu": {"gap": entry}}}}
    with pytest.raises(StowplanError, match=words) as caught:
        write_profile(tmp_path / "p.toml", document)
    assert "constants" in str(caught.value)
    assert not list(tmp_path.iterdir())


def number(value: Any, source: str, sd: float | None = None) -> Document:
    return {"value": value, "source": source, "where": "x"} | ({} if sd is None else {"sd": sd})


def test_merging_takes_what_is_known_better_and_later() -> None:
    first = {
        "name": "a",
        "x": number("1 GB/s", "measured"),
        "y": number("2 GB/s", "datasheet"),
        "t": {"z": number(1, "fitted")},
    }
    second = {
        "name": "b",
        "x": number("3 GB/s", "datasheet"),
        "y": number("4 GB/s", "datasheet"),
        "t": {"z": number(2, "measured")},
    }
    both = merged(first, second | {"new": number(5, "assumed")})
    assert both["x"]["value"] == "1 GB/s"
    assert both["y"]["value"] == "4 GB/s"
    assert both["t"]["z"]["value"] == 2
    assert both["new"]["value"] == 5
    assert both["name"] == "a"


SOURCES = st.sampled_from(["measured", "fitted", "datasheet", "assumed"])
DOCUMENTS = st.dictionaries(st.sampled_from("abcd"), st.builds(number, st.integers(1, 9), SOURCES), max_size=4)


@given(DOCUMENTS, DOCUMENTS)
def test_merging_is_idempotent_and_loses_no_number(first: Document, second: Document) -> None:
    both = merged(first, second)
    assert both.keys() == first.keys() | second.keys()
    assert merged(both, second) == both
    assert merged(first, first) == first
    ranks = ["measured", "fitted", "datasheet", "assumed"]
    for key, entry in both.items():
        sources = [each[key]["source"] for each in (first, second) if key in each]
        assert ranks.index(entry["source"]) == min(map(ranks.index, sources))


def test_differences_tell_noise_from_change() -> None:
    first = {
        "a": number("10 GB/s", "measured", 0.05),
        "b": number("10 us", "measured", 0.01),
        "c": number(3, "assumed"),
    }
    second = {
        "a": number("10.4 GB/s", "measured", 0.05),
        "b": number("12 us", "measured", 0.01),
        "d": number(4, "fitted"),
    }
    found = {each.path: each for each in differences(first, second)}
    assert not found["a"].beyond_noise
    assert found["b"].beyond_noise
    assert found["b"].ratio == pytest.approx(1.2)
    assert (found["c"].second, found["d"].first) == (None, None)
    assert differences(first, first) == []


def test_values_are_read_in_their_units() -> None:
    assert plain_value("2.5 GB/s") == 2.5e9
    assert plain_value("3 us") == pytest.approx(3e-6)
    assert plain_value(4) == 4.0
    assert plain_value("fast") is None


@given(
    st.recursive(
        st.text(max_size=12)
        | st.integers(-(2**40), 2**40)
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
        max_leaves=9,
    ).filter(lambda value: isinstance(value, dict))
)
def test_toml_is_read_back_as_it_was(document: Document) -> None:
    assert tomllib.loads(toml_text(document)) == document


def test_reading_a_profile_checks_it(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(InputError, match="is missing"):
        read_profile(path)


def test_constants_keep_an_engine_with_a_dot_together() -> None:
    known = Number(1.0, SourceKind.FITTED, "x")
    found = constants_document(
        {"llama.cpp.cpu.gemv.k": known, "accelerate.step": known}, {"accelerate.step": "seconds"}
    )
    assert set(found) == {"llama.cpp", "accelerate"}
    assert numbers_of(found).keys() == {"llama.cpp.cpu.gemv.k", "accelerate.step"}


def test_constants_beyond_a_ratio_and_without_bounds_are_written(tmp_path: Path) -> None:
    share = Number(1.3, SourceKind.FITTED, "a share of more than all", 10.0)
    machine = replace(load_machine("cpu-laptop-32"), constants={"llama.cpp.cpu.dram_share": share})
    document = machine_document(machine, {"llama.cpp.cpu.dram_share": "ratio"})
    again = write_profile(tmp_path / "p.toml", document)
    assert again.constants["llama.cpp.cpu.dram_share"].value == 1.3
