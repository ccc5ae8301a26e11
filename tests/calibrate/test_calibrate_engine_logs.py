"""Benchmark files of engines: recorded ones are read, other versions and broken ones are named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import BadFile, InputError, StowplanError
from stowplan_calibrate.engine_logs import ServingRun, kind_of_log, read_llama_bench, read_serving
from stowplan_calibrate.serving_fit import fit_steps

RECORDED = Path(__file__).parent / "recorded"

VLLM: dict[str, Any] = {
    "date": "20261120-101500",
    "endpoint_type": "vllm",
    "backend": "vllm",
    "model_id": "meta-llama/Llama-3.1-8B",
    "num_prompts": 200,
    "request_rate": 4.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 52.0,
    "completed": 200,
    "total_input_tokens": 204800,
    "total_output_tokens": 25600,
    "request_throughput": 3.8,
    "output_throughput": 492.3,
    "mean_ttft_ms": 61.0,
    "median_ttft_ms": 58.0,
    "p99_ttft_ms": 110.0,
    "mean_tpot_ms": 9.1,
    "median_tpot_ms": 9.0,
    "p99_tpot_ms": 11.0,
}
SGLANG = VLLM | {"backend": "sglang", "model_id": None, "model": "qwen", "request_rate": "inf", "max_concurrency": 32}


def write(folder: Path, content: Any, name: str = "log.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def bench_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((RECORDED / "llama-bench-epyc.jsonl").read_text().splitlines()[0])
    return row | changes


def test_recorded_llama_bench_is_read_as_lines_and_as_a_list(tmp_path: Path) -> None:
    lines = read_llama_bench(RECORDED / "llama-bench-epyc.jsonl")
    rows = [json.loads(line) for line in (RECORDED / "llama-bench-epyc.jsonl").read_text().splitlines()]
    listed = read_llama_bench(write(tmp_path, rows))
    assert [run.seconds for run in lines] == [run.seconds for run in listed]
    first = lines[0]
    assert (first.prompt, first.generate, first.depth, first.threads) == (128, 0, 0, 1)
    assert first.seconds[0] == pytest.approx(1e-9 * rows[0]["samples_ns"][0])
    assert first.label == f"{Path(first.model).name} pp128 t1"
    assert first.command()[:4] == ["llama-bench", "-m", first.model, "-p"]
    assert kind_of_log(RECORDED / "llama-bench-epyc.jsonl") == "llama-bench"


def test_an_average_stands_for_samples_and_an_old_build_has_no_depth(tmp_path: Path) -> None:
    row = bench_row()
    for name in ("samples_ns", "n_depth"):
        del row[name]
    (run,) = read_llama_bench(write(tmp_path, [row]))
    assert list(run.seconds) == pytest.approx([1e-9 * row["avg_ns"]])
    assert run.depth == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("[]", "holds no rows"),
        ("| model | size |\n| --- | --- |", "is not JSON"),
        ("[1]", "no JSON object"),
        ("[{}]", "'n_prompt' is missing|is missing"),
        (json.dumps([{"avg_ns": 5, "t/s": 9}]), "another version"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(BadFile, match=words) as caught:
        read_llama_bench(write(tmp_path, content))
    assert "log.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_threads": 0}, "n_threads"),
        ({"n_prompt": 0, "n_gen": 0}, "both 0"),
        ({"samples_ns": [5, -1]}, "samples_ns"),
        ({"n_prompt": 1.5}, "n_prompt"),
        ({"type_k": 3}, "type_k"),
        ({"model_size": "big"}, "model_size"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadFile, match=words):
        read_llama_bench(write(tmp_path, [bench_row(**changes)]))


def test_serving_benchmarks_of_both_engines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, f"{json.dumps(VLLM)}\n{json.dumps(SGLANG)}\n", "log.jsonl")
    vllm, sglang = read_serving(path)
    assert (vllm.engine, vllm.rate, vllm.concurrency) == ("vllm", 4.0, None)
    assert (sglang.engine, sglang.rate, sglang.concurrency, sglang.model) == ("sglang", math.inf, 32, "qwen")
    assert vllm.prompt == 1024
    assert vllm.generate == 128
    assert vllm.running == pytest.approx(25600 / 52 * 9.1e-3)
    assert kind_of_log(path) == "serving"


@pytest.mark.parametrize("name", ["completed", "median_tpot_ms", "duration", "total_output_tokens"])
def test_a_serving_file_of_another_version_is_named(tmp_path: Path, name: str) -> None:
    row = {key: value for key, value in VLLM.items() if key != name}
    with pytest.raises(BadFile, match=f"'{name}' is missing"):
        read_serving(write(tmp_path, row))


def test_a_log_of_nothing_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no row of llama-bench"):
        kind_of_log(write(tmp_path, {"tokens": 5}))
    with pytest.raises(BadFile, match="cannot be read"):
        kind_of_log(tmp_path / "absent.json")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_named(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("logs") / "log.json"
    path.write_bytes(content)
    for reader in (read_llama_bench, read_serving, kind_of_log):
        with pytest.raises(StowplanError):
            reader(path)


def serving(running: float, prompt: int, step: float, sequence: float, first: float, token: float) -> ServingRun:
    tpot, requests, generate = step + sequence * running, 100, 100
    ttft = first + token * prompt
    return ServingRun(
        engine="vllm",
        model="m",
        date="",
        requests=requests,
        duration=requests * generate * tpot / running,
        rate=1.0,
        concurrency=None,
        input_tokens=requests * prompt,
        output_tokens=requests * generate,
        ttft=ttft,
        ttft_p99=2 * ttft,
        tpot=tpot,
        tpot_mean=tpot,
        where="x",
    )


def test_planted_costs_of_a_server_come_back() -> None:
    runs = [serving(r, p, 7e-3, 0.12e-3, 15e-3, 30e-6) for r in (1, 4, 16, 64) for p in (128, 512, 2048)]
    found = fit_steps(runs)
    assert found.parameters == pytest.approx(
        {"step": 7e-3, "sequence": 0.12e-3, "request": 15e-3, "prompt_token": 30e-6}, rel=0.02
    )
    assert found.worst_error < 0.02
    assert found.meanings.keys() == found.parameters.keys()


def test_queued_runs_say_nothing_of_the_first_token() -> None:
    runs = [serving(r, 512, 7e-3, 1e-4, 15e-3, 0.0) for r in (1, 8, 32)]
    late = replace(runs[0], ttft=0.5, ttft_p99=9.0)
    assert fit_steps([*runs, late]).parameters["request"] == pytest.approx(15e-3)


def test_what_cannot_be_fitted_is_said() -> None:
    run = serving(8, 512, 7e-3, 1e-4, 15e-3, 0.0)
    with pytest.raises(InputError, match="at least 3 runs"):
        fit_steps([run])
    with pytest.raises(InputError, match="several request rates"):
        fit_steps([run] * 4)
