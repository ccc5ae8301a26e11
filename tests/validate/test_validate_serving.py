"""Published serving runs: what was sent, and how near the replays come to what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.systems.vllm_settings import ENGINES, VllmSettings
from stowplan.validate.serving import Compared, compare, compare_all, median_error, report
from stowplan.validate.serving_runs import STATISTICS, Case, load_cases, statistics

CASES = {case.id: case for case in load_cases()}


def test_every_case_names_what_exists_and_says_where_it_was_read() -> None:
    assert len(CASES) == len(load_cases()) >= 22
    for case in CASES.values():
        assert "github.com/" in case.source
        settings = VllmSettings.model_validate(dict(case.settings))
        assert settings.engine in ENGINES
        assert len(load_machine(case.machine).gpus) >= settings.tensor_parallel
        assert load_model(case.model, case.quant).quant == case.quant
        for run in case.runs:
            assert set(run.ttft_s) == set(run.e2e_s) == set(STATISTICS)
            assert all(run.ttft_s[name] < run.e2e_s[name] for name in STATISTICS)


def test_no_engine_is_fitted_to_a_model_that_tests_it_on_the_same_hardware() -> None:
    fitted = {(case.settings["engine"], case.machine, case.model) for case in CASES.values() if case.part == "fit"}
    tested = {(case.settings["engine"], case.machine, case.model) for case in CASES.values() if case.part == "test"}
    assert {model for _, machine, model in fitted if machine == "hgx-h100-8"} == {"llama-2-7b", "mixtral-8x7b"}
    assert not {each for each in fitted & tested if each[1] == "hgx-h100-8"}


def test_a_load_generators_stages_are_spread_over_their_time_and_repeat_its_prompts() -> None:
    case = CASES["llama-2-7b-tp1-codegen"]
    requests = case.requests
    first, second = case.runs
    assert len(requests) == 9000
    assert (first.rows, second.rows) == (slice(0, 3000), slice(3000, 9000))
    assert requests.arrival_s[2999] <= 600.0 < requests.arrival_s[3000]
    prefix = requests.prefix
    assert prefix is not None
    assert prefix.of(0).tolist() == prefix.of(100).tolist() != prefix.of(1).tolist()
    kinds = {tuple(prefix.of(row).tolist()) for row in range(100)}
    assert len(kinds) == 100
    assert len({kind[:6] for kind in kinds}) == 10  # 100 tokens are six whole blocks
    assert len({kind[:7] for kind in kinds}) == 100
    assert set(prefix.counts().tolist()) == {592 // 16}


def test_statistics_leave_out_what_never_happened() -> None:
    assert statistics(np.array([np.nan])) == {}
    assert statistics(np.array([1.0, np.nan, 3.0]))["mean"] == 2.0


def test_a_log_is_replayed_request_by_request() -> None:
    case = CASES["opt-13b-vllm-1"]
    assert len(case.requests) == 100
    logged = case.runs[0].logged
    assert logged is not None
    assert logged.shape == (100, 2)
    assert case.runs[0].ttft_s["mean"] == pytest.approx(0.1612, abs=1e-4)  # as published


def test_errors_are_relative_and_medians_of_one_statistic() -> None:
    rows = [
        Compared("a", "group", "test", "e2e", "mean", 1.1, 1.0),
        Compared("b", "group", "test", "e2e", "mean", 0.7, 1.0),
        Compared("c", "group", "test", "e2e", "p50", 5.0, 1.0),
        Compared("d", "group", "test", "e2e", "mean", 1.0, 1.0),
    ]
    assert rows[1].error == pytest.approx(-0.3)
    assert median_error(rows, "e2e", "mean") == pytest.approx(0.1)
    assert np.isnan(median_error(rows, "ttft", "mean"))


def _errors(case: Case) -> dict[str, float]:
    return {f"{row.run} {row.measure} {row.statistic}": abs(row.error) for row in compare(case)}


def test_a_held_out_server_within_the_first_targets() -> None:
    errors = _errors(CASES["codellama-34b-tp2-codegen"])
    assert max(error for name, error in errors.items() if "e2e mean" in name) < 0.10
    assert max(error for name, error in errors.items() if "ttft mean" in name) < 0.20


def test_a_report_has_a_line_for_every_run_and_the_medians() -> None:
    lines = list(report(list(compare(CASES["opt-13b-vllm-1"]))))
    assert lines[1].startswith("opt-13b-vllm-1")
    assert any(line.startswith("opt-13b vllm-v0, median of 1 runs") for line in lines)
    assert not any(line.startswith("all, median") and " fit " in line for line in lines)


@pytest.mark.slow
def test_held_out_runs_keep_their_accuracy() -> None:
    rows = [row for row in compare_all() if row.part == "test"]
    assert median_error(rows, "e2e", "mean") <= 0.07
    assert median_error(rows, "ttft", "mean") <= 0.15
