"""Plans for several memory nodes: the command leads with numactl, and what cannot hold it says so."""

from __future__ import annotations

import pytest
from tests.strategies import machine_of, model_of

from stowplan.exports import load_exporter
from stowplan.exports.base import Names
from stowplan.exports.llama_cpp import PRESET
from stowplan.plan import Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_settings import settings_of

SERVER = "2x xeon-platinum-8480 + ddr5-4800x16:1TiB"
DESKTOP = "ryzen-9-7950x + ddr5-5200x2:64GiB"
MODEL = "llama-3.1-8b"


@pytest.mark.parametrize(("spec", "policy"), [(SERVER, "interleave"), (DESKTOP, None)])
def test_a_plan_for_several_nodes_spreads_its_pages(spec: str, policy: str | None) -> None:
    setup = make_setup(machine_of(spec), model_of(MODEL, "q8_0"), LlamaCpp())
    plan = plan_for("llama.cpp", Request(setup, (MODEL, "q8_0"), Workload())).plan
    assert settings_of(plan).numactl == policy
    exporter = load_exporter("llama.cpp")
    files = exporter.files(setup, exporter.nearest(setup, plan))
    assert ("numactl" in files.command) == (policy is not None)
    assert files.check[:3] == ["llama-fit-params", "-m", files.command[files.command.index("-m") + 1]]
    assert "numactl" not in files.contents[PRESET] and "interleave" not in files.contents[PRESET]
    assert any("numactl --interleave=all" in note for note in files.notes) == (policy is not None)
    again = exporter.read(list(files.command), setup, Names.of(plan))
    assert settings_of(again).numactl == policy
