"""How far apart small kernels start while a token is decoded, by build and chip."""

from __future__ import annotations

import pytest
from tests.strategies import machine_of, setup_of

from stowplan.figures import figures_for
from stowplan.plan import Workload
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram, layers_only
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_launches import graph_gap
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

HOST = "epyc-7742 + ddr4-3200x8:512GiB"
MODEL = ("qwen3-30b-a3b", "q4_k_m")


def gap(gpu: str, built: str | None, engine: str = "llama.cpp") -> float | None:
    machine = machine_of(f"{gpu} + {HOST}")
    settings = LlamaCppSettings.model_validate({"engine": engine, "built": built})
    return graph_gap(settings, machine.gpus[0], figures_for(machine, "llama.cpp"))


def test_chips_decide_once_mixtures_are_captured() -> None:
    assert gap("rtx-4090", "2025-08-28") is None
    assert gap("rtx-4090", "2025-08-14", "ik_llama.cpp") is None
    fast, slow = gap("rtx-4090", "2025-09-01"), gap("rtx-3090", "2025-09-01")
    assert fast is not None and slow is not None
    assert fast < slow
    assert fast == gap("rtx-4090", "2025-09-01", "ik_llama.cpp")
    assert gap("rx-7900-xtx", None) is None


def test_never_slower_than_without_a_graph() -> None:
    limit = figures_for(machine_of(f"rtx-3090 + {HOST}"), "llama.cpp").value("llama.cpp.gpu.kernel_gap")
    for gpu in ("p100-pcie", "t4", "rtx-3060", "a100-80gb-sxm"):
        found = gap(gpu, None)
        assert found is not None
        assert found <= limit


@pytest.mark.parametrize(
    ("gpu", "overlaps"),
    [("rtx-5090", True), ("h100-sxm", True), ("b200", True), ("rtx-4090", False), ("a100-80gb-sxm", False)],
)
def test_chips_from_hopper_on_launch_early_since_may_2026(gpu: str, overlaps: bool) -> None:
    before, after = gap(gpu, "2026-05-20"), gap(gpu, "2026-06")
    assert before is not None and after is not None
    assert (after < before) is overlaps
    assert gap(gpu, "2026-06", "ik_llama.cpp") == before


def decode(built: str, *, spilled: int) -> float:
    setup = setup_of(f"rtx-4090 + {HOST}", (), *MODEL)
    settings, workload = LlamaCppSettings(built=built), Workload(prompt=0, generate=1)
    run = LlamaCppRun(setup, workload, settings)
    layers = len(setup.model.layers)
    placement = experts_in_ram(run, spilled) if spilled else layers_only(run, layers)
    plan = make_plan(setup.machine, MODEL, workload, settings, placement)
    return LlamaCpp().evaluate(setup, plan).decode_s


def test_only_layers_that_are_whole_on_a_gpu_are_captured() -> None:
    whole = decode("2025-08", spilled=0), decode("2025-10", spilled=0)
    spilled = decode("2025-07", spilled=48), decode("2025-10", spilled=48)
    assert whole[1] < 0.9 * decode("2025-07", spilled=0)
    assert whole[0] == whole[1]  # of a build that names no day, the month counts
    assert spilled[0] == pytest.approx(spilled[1])
