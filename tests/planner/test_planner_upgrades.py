"""What would help: single changes are plans of their own, better hardware never makes the best plan slower."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stowplan.cli.app import app
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Planned, Request
from stowplan.planner.upgrades import Upgrade, upgrades
from stowplan.systems import load_system

_GAP = 2e-3  # twice the programme's gap: both plans may be that far from their optimum


def helped(machine: str, model: str, quant: str, *overrides: str) -> tuple[Planned, dict[str, Upgrade]]:
    """The plan of a request and its upgrades by title."""
    setup = make_setup(load_machine(machine, overrides), load_model(model, quant), load_system("llama.cpp"))
    request = Request(setup, (model, quant), Workload(prompt=512, generate=64))
    planned = plan_for("llama.cpp", request)
    return planned, {each.title: each for each in upgrades("llama.cpp", request, planned)}


@pytest.mark.parametrize(
    ("machine", "model", "quant"),
    [
        ("rtx-4090-desktop-128", "llama-3.3-70b", "q4_k_m"),
        ("rtx-3060-desktop-32", "qwen3-30b-a3b", "q4_k_m"),
        ("cpu-laptop-32", "llama-3.1-8b", "q8_0"),
    ],
)
def test_better_hardware_is_never_slower_and_the_list_is_sorted(machine: str, model: str, quant: str) -> None:
    planned, found = helped(machine, model, quant)
    assert found
    hardware = [each for each in found.values() if not each.quality]
    assert all(each.cost <= planned.cost * (1 + _GAP) for each in hardware)
    costs = [each.cost for each in found.values()]
    assert costs == sorted(costs)
    assert [each.quality for each in found.values()].count(True) == 1


def test_an_upgrade_is_the_plan_of_the_changed_machine() -> None:
    _, found = helped("rtx-4090-desktop-128", "llama-3.3-70b", "q4_k_m")
    wider, _ = helped("rtx-4090-desktop-128", "llama-3.3-70b", "q4_k_m", "gpu.pcie.generation=5")
    assert found["PCIe 5.0 on GPU and board"].cost == pytest.approx(wider.cost, rel=1e-12)


def test_what_a_machine_cannot_have_is_not_offered() -> None:
    _, unified = helped("strix-halo-128", "llama-3.1-8b", "q8_0")
    assert set(unified) == {"Q6_K instead of Q8_0"}
    _, laptop = helped("cpu-laptop-32", "llama-3.1-8b", "q4_k_m")
    assert not any("GPU" in title for title in laptop)


def test_the_command_prints_and_publishes_them() -> None:
    words = ["plan", "llama-3.1-8b", "--quant", "q8_0", "--on", "rtx-3060-desktop-32", "--upgrades"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    assert "what would help" in shown.output
    assert "(the answers change)" in shown.output
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["upgrades"]
    assert {each["title"] for each in told} >= {"Q6_K instead of Q8_0"}
    refused = CliRunner().invoke(app, ["plan", "opt-13b", "--on", "t4-16", "--system", "accelerate", "--upgrades"])
    assert refused.exit_code == 2
    assert "--upgrades" in refused.output
