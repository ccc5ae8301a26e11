"""Parameter files: what ships is complete and sourced, what is wrong is refused with one sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from stowplan.datafiles import data_folder
from stowplan.errors import BadFile
from stowplan.kernel_forms import forms_for
from stowplan.kernel_forms.parameters import FOLDER, parameter_file, read_fitted
from stowplan.machines.library import PROFILES_VARIABLE, load_gpu

SHIPPED = sorted(path for path in (data_folder("hwprofiles") / FOLDER).glob("*.toml") if path.stem != "unmeasured")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_parameters_say_where_they_come_from(path: Path) -> None:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    assert content["source"] == "fitted"
    assert "aiconfigurator" in content["where"]
    assert content["gpu"] == path.stem == load_gpu(path.stem).key
    for kernel_class, types in content.items():
        if not isinstance(types, dict):
            continue
        for table in types.values():
            assert table["fitted_on"] > 10 and table["held_out"] > 10, kernel_class
            assert 0.0 < table["spread"] < 0.6
            assert table["residuals"]["0.1"] <= table["residuals"]["0.5"] <= table["residuals"]["0.9"]
            for number in table["parameters"].values():
                assert number.get("source") == "assumed" or number["sd"] >= 0.0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_fits_meet_their_bounds_outside_the_fit(path: Path) -> None:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    for kernel_class in ("gemm", "prefill", "decode", "moe"):
        tables = [table for table in content[kernel_class].values() if table["held_out"] >= 300]
        total = sum(table["held_out"] for table in tables)
        median = sum(table["held_out"] * table["held_out_error"]["median"] for table in tables) / total
        assert median <= 0.08, kernel_class


def test_all_shipped_files_read() -> None:
    for path in SHIPPED:
        fitted = read_fitted(path)
        assert {name for name, _ in fitted.forms} >= {"gemm", "prefill", "decode", "moe", "ring", "all_reduce"}


def test_own_parameters_replace_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = parameter_file("l40s")
    assert shipped is not None
    text = shipped.read_text(encoding="utf-8")
    own = tmp_path / FOLDER / "rtx-4090.toml"
    own.parent.mkdir()
    own.write_text(text.replace('gpu = "l40s"', 'gpu = "rtx-4090"'), encoding="utf-8")
    assert not forms_for(load_gpu("rtx-4090")).measured
    monkeypatch.setenv(PROFILES_VARIABLE, str(tmp_path))
    assert forms_for(load_gpu("rtx-4090")).measured


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("latency = {", "latencies = {"),
        ('gpu = "l40s"', ""),
        ("spread = ", "spread_of_it = "),
        ("[gemm.bf16.parameters]", "[gemm.bf16.numbers]"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, old: str, new: str) -> None:
    shipped = parameter_file("l40s")
    assert shipped is not None
    wrong = tmp_path / "l40s.toml"
    wrong.write_text(shipped.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadFile, match="not a file of kernel parameters"):
        read_fitted(wrong)
