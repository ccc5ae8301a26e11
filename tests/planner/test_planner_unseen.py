"""Parts that no fitted record had widen an interval by their share of the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from stowplan.errors import BadFile
from stowplan.machines import load_machine
from stowplan.machines.machine import Number, SourceKind
from stowplan.models import load_model
from stowplan.plan import UnseenPart, Workload
from stowplan.planner import unseen as module
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup, predict, predict_and_move
from stowplan.planner.result import Planned, Request
from stowplan.planner.unseen import PARTS, PHASES, Seen, gpu_generation, seen, share_of, unseen
from stowplan.systems import load_system
from stowplan.systems.base import Evaluation, Setup
from stowplan.validate.spread import fitted_groups
from stowplan.whatif.differences import difference
from stowplan.whatif.outcome import Outcome, outcome_of
from stowplan.whatif.workshop import spread_of

SYSTEM = load_system("llama.cpp")
SPEC = "rtx-3060 + ryzen-9-7950x + ddr5-5600x2:64GiB"
_Z80 = 1.2815515655446004
SPREAD = {(part, phase): 0.3 for part in PARTS for phase in PHASES}
EVERY: Mapping[UnseenPart, frozenset[str]] = {
    "architecture": frozenset({"llama"}),
    "gpu": frozenset({gpu_generation(load_machine(SPEC).gpus[0])}),
}
ALL_SEEN = Seen(EVERY, SPREAD)


def with_groups(part: UnseenPart, *groups: str) -> Seen:
    return Seen({**EVERY, part: frozenset(groups)}, SPREAD)


@cache
def planned(spec: str = SPEC, model: str = "llama-3.1-8b", prompt: int = 512) -> tuple[Setup, Planned]:
    setup = make_setup(load_machine(spec), load_model(model, "q8_0"), SYSTEM)
    workload = Workload(prompt=prompt, generate=64)
    return setup, plan_for("llama.cpp", Request(setup=setup, model_reference=(model, "q8_0"), workload=workload))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seen", lambda _: ALL_SEEN)


def spread(setup: Setup, found: Planned, phase: str) -> float:
    interval = predict(setup, found.plan, SYSTEM).interval[{"decode": "tpot_s", "prefill": "ttft_s"}[phase]]
    return math.log(interval.high / interval.low) / (2 * _Z80)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("phase", PHASES)
def test_an_unseen_part_widens_by_its_share_of_the_time(
    part: UnseenPart, phase: str, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, found = planned()
    narrow = spread(setup, found, phase)
    told = predict(setup, found.plan, SYSTEM)
    assert told.unseen == []
    shares = told.time_shares if phase == "decode" else told.prefill_shares
    monkeypatch.setattr(module, "seen", lambda _: with_groups(part))
    added = 0.3 * share_of(part, shares)
    assert spread(setup, found, phase) == pytest.approx(math.hypot(narrow, added), rel=1e-6)
    told = predict(setup, found.plan, SYSTEM)
    named = [(each.part, getattr(each, f"{phase}_sd")) for each in told.unseen]
    assert named in ([], [(part, pytest.approx(added))])
    assert bool(named) == (max(0.3 * share_of(part, s) for s in (told.time_shares, told.prefill_shares)) > 0.02)
    assert not any(rest.name.startswith("unseen") for rest in told.rests_on)


def test_shares_of_the_parts() -> None:
    shares = {"gpu0.hbm": 3.0, "gpu0.h2d": 1.0, "host.dram": 4.0, "overhead": 2.0}
    assert share_of("architecture", shares) == 1.0
    assert share_of("gpu", shares) == pytest.approx(0.5)
    assert share_of("gpu", {"host.cores": 1.0, "overhead": 1.0}) == 0.0
    assert [share_of(part, {}) for part in PARTS] == [0.0, 0.0]


def evaluation(setup: Setup, found: Planned) -> Evaluation:
    return SYSTEM.evaluate(setup, found.plan)


def test_what_was_measured_on_this_machine_is_not_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seen", lambda _: with_groups("gpu"))
    setup, found = planned()
    assert [each.part for each in unseen(setup, "llama.cpp", evaluation(setup, found))] == ["gpu"]
    own = {"llama.cpp.gpu.kernel_gap": Number(1e-6, SourceKind.MEASURED, "here")}
    measured = replace(setup, machine=replace(setup.machine, constants=own))
    assert unseen(measured, "llama.cpp", evaluation(setup, found)) == []


def test_an_idle_gpu_is_not_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seen", lambda _: with_groups("gpu"))
    setup, found = planned()
    idle = replace(evaluation(setup, found), decode_shares={"host.dram": 1.0}, prefill_shares={"host.cores": 1.0})
    assert unseen(setup, "llama.cpp", idle) == []


def test_an_engine_that_nobody_worked_out_has_nothing_unseen() -> None:
    setup, found = planned()
    assert seen("pytorch") is None
    assert unseen(setup, "pytorch", evaluation(setup, found)) == []


def outcome(setup: Setup, found: Planned) -> Outcome:
    """The same plan predicted again, with what is known now."""
    prediction, moves = predict_and_move(setup, found.plan, SYSTEM)
    again = replace(found, prediction=prediction, moves=moves)
    return outcome_of(again, setup.machine, spread_of("llama.cpp", setup, prediction))


def deviation(a: tuple[Setup, Planned], b: tuple[Setup, Planned]) -> float:
    found = difference(outcome(*a), outcome(*b), "decode_tokens_per_s")
    assert found is not None
    return math.log(found.high / found.ratio) / _Z80


@pytest.mark.usefixtures("known")
def test_what_two_options_share_cancels_and_what_they_do_not_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same new architecture is off alike on both machines; two new ones on one machine are not."""
    here, there = planned(), planned("rtx-3090 + ryzen-9-7950x + ddr5-5600x2:64GiB")
    other = planned(model="qwen3-8b")
    monkeypatch.setattr(module, "seen", lambda _: with_groups("architecture", "llama", "qwen3"))
    shared, strange = deviation(here, there), deviation(here, other)
    monkeypatch.setattr(module, "seen", lambda _: with_groups("architecture"))
    assert deviation(here, there) == pytest.approx(shared, rel=1e-6)
    assert deviation(here, other) == pytest.approx(math.sqrt(strange**2 + 2 * 0.3**2), rel=0.05)


def test_the_shipped_groups_are_those_of_the_fit() -> None:
    shipped = seen("llama.cpp")
    assert shipped is not None
    assert dict(shipped.groups) == fitted_groups()
    assert {part for part, _ in shipped.spread} == set(PARTS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "architecture must be a table with groups"),
        ("[architecture]\ngroups = 3\n", "architecture must be a table with groups"),
        ('[architecture]\ngroups = ["llama"]\n', "architecture.decode: value"),
        ('[architecture]\ngroups = ["llama"]\ndecode = { value = -1 }\n', "architecture.decode: value"),
        ('[architecture]\ngroups = ["llama"]\ndecode = { value = true }\n', "architecture.decode: value"),
    ],
)
def test_a_bad_file_is_one_sentence(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "made-up.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(module, "data_folder", lambda _: tmp_path)
    with pytest.raises(BadFile, match=told):
        seen("made-up")


def test_generations_and_families() -> None:
    generation = {
        key: gpu_generation(load_machine(f"{key} + ryzen-9-7950x + ddr5-5600x2:64GiB").gpus[0])
        for key in ("rtx-3090", "rtx-a6000", "rtx-4090", "rtx-5090", "h100-pcie", "rx-6800", "rx-7900-xtx")
    }
    assert generation["rtx-3090"] == generation["rtx-a6000"]
    assert len(set(generation.values())) == 6
