"""Predictions with less knowledge: datasheets alone are never slower than everything, and hold nothing fitted."""

from __future__ import annotations

import pytest

from stowplan.figures import engine_constants
from stowplan.validate.ablation import AblationJob, Level, ablated, datasheet_figures, rule_for
from stowplan.validate.case_rows import cases_by_id
from stowplan.validate.fitted import constants
from stowplan.validate.run import understood

SLACK = 1e-6
CASES = ("cb001", "cb243/512", "cb034/d0", "cb074/d0", "flexgen-011", "flexgen-020", "cb139", "flexgen-lia-logs-045")
"""Experts in RAM, all on the GPU, on the CPU, streamed with disk and without, moved synchronously, pageable copies."""


@pytest.mark.parametrize("name", CASES)
def test_the_less_it_costs_the_faster_it_is(name: str) -> None:
    found = {level: AblationJob(name, level).run() for level in Level}
    assert all(result.refused is None for result in found.values()), found
    for sheet, kernels, everything in zip(*(found[level].rows for level in Level), strict=True):
        assert sheet.figure == kernels.figure == everything.figure
        if everything.figure == "memory":
            assert sheet.predicted == pytest.approx(everything.predicted, rel=1e-3)
            continue
        assert kernels.predicted >= everything.predicted * (1 - SLACK), (name, everything.figure)
        assert sheet.predicted >= kernels.predicted * (1 - SLACK), (name, everything.figure)


def test_datasheets_alone_hold_no_fitted_rate_and_no_duration() -> None:
    meant = understood(cases_by_id()["cb034/d0"])
    figures = ablated(meant.setup.figures, meant.setup.machine, "llama.cpp", Level.DATASHEET)
    for name, number in figures.items():
        if name.endswith(("_share", "_gap", "latency", ".step")) and name.startswith("llama.cpp."):
            assert number.value == pytest.approx(1.0) or number.value < 1e-9, name
    gpu = meant.setup.machine.gpus[0]
    assert figures.value("gpu0.hbm") == gpu.bandwidth.value
    assert figures.value("host.dram") >= meant.setup.figures.value("host.dram") * (1 - SLACK)


def test_datasheet_figures_have_the_names_of_the_machine_s_own() -> None:
    meant = understood(cases_by_id()["flexgen-020"])
    found = datasheet_figures(meant.setup.machine, meant.setup.figures)
    assert {"host.dram", "gpu0.hbm", "gpu0.h2d.pinned", "disk.faults"} <= set(found) <= set(meant.setup.figures)


@pytest.mark.parametrize("engine", ["llama.cpp", "flexgen", "accelerate"])
def test_every_constant_that_is_no_duration_has_a_neutral_value(engine: str) -> None:
    known = {f"{engine} {constant.name}": constant for constant in constants() if constant.file == f"{engine}.toml"}
    for name in engine_constants(engine):
        value = known[f"{engine} {name}"].value
        duration = value.endswith(("us", "ms", " s"))
        assert duration or rule_for(name) is not None, f"{engine}: name '{name}' in ablation.toml"


def test_every_constant_says_what_it_rests_on() -> None:
    found = constants()
    assert {"llama.cpp.toml", "rates.toml"} <= {each.file for each in found}
    for each in found:
        assert each.kind in ("measured", "fitted", "datasheet", "assumed"), each
        assert each.where.strip(), each
