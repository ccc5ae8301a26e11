"""What is promised is data: it is well formed, finds its rows, and says honestly what was reached."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.validate import examples

from stowplan.systems import list_systems
from stowplan.validate.cases import LLAMA_CPP
from stowplan.validate.sources import jobs
from stowplan.validate.targets import Target, load_targets, reached

ROW = replace(examples.ROW, id="a/1")


def test_the_shipped_targets_are_what_was_promised() -> None:
    targets = load_targets()
    assert (targets.winners, targets.coverage) == (0.9, (0.75, 0.9))
    limits = {target.name: (target.median, target.p90) for target in targets.groups}
    assert limits["llama.cpp family, decode with partial offload"] == (0.12, 0.35)
    assert limits["llama.cpp family, decode fully on GPU"][0] == 0.10
    assert limits["llama.cpp family, prefill"][0] == 0.25
    assert limits["memory"][0] == 0.05
    named = {"FlexGen", "ZeRO-Inference", "Accelerate", "HeadInfer", "KTransformers", "MoE-Lightning"}
    assert {name for name, (median, _) in limits.items() if median == 0.20} == named


def test_every_target_of_an_engine_that_exists_finds_cases() -> None:
    units = [job.unit for job in jobs()]
    existing = {*LLAMA_CPP, *list_systems()}
    for target in load_targets().groups:
        if not set(target.systems) & existing:
            continue
        found = [
            unit
            for unit in units
            if unit.system in target.systems
            and (not target.kinds or set(unit.kinds) & set(target.kinds))
            and set(unit.figures) & set(target.figures)
        ]
        assert found, target.name


@pytest.mark.parametrize(
    ("changes", "about"),
    [({}, True), ({"system": "ik_llama.cpp"}, True), ({"kind": "disk"}, False), ({"figure": "prefill"}, False)],
)
def test_a_target_is_about_its_rows(changes: dict[str, str], about: bool) -> None:
    target = load_targets().groups[0]
    assert target.about(replace(ROW, **changes)) is about  # type: ignore[arg-type]


@pytest.mark.parametrize(("predicted", "p90", "met"), [(11.0, 0.35, True), (13.0, 0.35, False), (11.0, 0.05, False)])
def test_a_target_is_met_when_both_limits_hold(predicted: float, p90: float, met: bool) -> None:
    target = Target("some", ("llama.cpp",), (), ("decode",), 0.12, p90)
    targets = replace(load_targets(), groups=(target,))
    (found,) = reached(targets, [replace(ROW, predicted=predicted)])
    assert found.met is met


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    target = Target("some", ("nobody",), (), ("decode",), 0.12, None)
    (found,) = reached(replace(load_targets(), groups=(target,)), [ROW])
    assert (found.errors, found.met) == (None, None)
