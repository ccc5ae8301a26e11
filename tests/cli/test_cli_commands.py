"""Commands from the outside: documents, files, errors and exit codes."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stowplan.cli.app import app
from stowplan.cli.tables import WIDTH

pytestmark = pytest.mark.filterwarnings("ignore:.*PuLP 4:DeprecationWarning")

MODEL, MACHINE = "llama-3.1-8b", "rtx-3060-laptop-16"
PLAN = ["plan", MODEL, "--quant", "q4_k_m", "--on", MACHINE, "--context", "4096"]
COMMAND = ["llama-server", "-m", "Llama-3.1-8B-Q4_K_M.gguf", "-ngl", "12", "-c", "4096"]
BARE = "rtx-4090 + ryzen-9-7950x + ddr5-5600x2:128GiB"


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def answered(*words: str) -> str:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    return out


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    answered(*PLAN, "-o", str(path))
    return path


def test_plan_answers_on_one_screen() -> None:
    text = answered(*PLAN)
    lines = text.splitlines()
    assert len(lines) <= 45
    assert "\x1b" not in text
    assert "80 %" in lines[3]
    command = next(line for line in lines if line.startswith("llama-server "))
    assert "--fit off" in text
    assert all(len(line) <= WIDTH for line in lines[: lines.index(command)])


ANSWER_KEYS = {
    "schema_version",
    "decode_tokens_per_s",
    "per_request_tokens_per_s",
    "prefill_tokens_per_s",
    "ttft_s",
    "tpot_s",
    "memory_bytes",
    "bottleneck",
    "interval",
    "solver",
    "command",
    "objective",
    "cost_s",
    "simulated_step_s",
    "prediction",
    "plan",
    "alternatives",
    "worth",
    "batch_curve",
    "upgrades",
}


def test_plan_prints_one_json_document() -> None:
    document = json.loads(answered(*PLAN, "--json"))
    assert document.keys() == ANSWER_KEYS
    assert document["solver"].keys() >= {"status", "objective", "bound", "gap", "seconds"}
    assert document["memory_bytes"]["gpu0"].keys() == {"used", "capacity", "parts"}
    assert document["decode_tokens_per_s"] == document["prediction"]["decode_tokens_per_s"]
    assert document["simulated_step_s"] == pytest.approx(document["tpot_s"], rel=0.01)


def test_same_plan_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        answered(*PLAN, "-o", str(tmp_path / name), "--trace", str(tmp_path / f"{name}.gz.json.gz"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    traces = sorted(tmp_path.glob("*.gz"))
    assert traces[0].read_bytes() == traces[1].read_bytes()
    assert json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]


def test_predicting_a_plan_repeats_its_prediction(plan_file: Path) -> None:
    planned = json.loads(answered(*PLAN, "--json"))
    predicted = json.loads(answered("predict", str(plan_file), "--json"))
    assert predicted["schema_version"] == "stowplan.prediction/1"
    assert predicted["decode_tokens_per_s"] == pytest.approx(planned["decode_tokens_per_s"])
    assert predicted["solver"] is None


def test_another_machine_overrides_the_plans_own(plan_file: Path) -> None:
    text = answered("predict", str(plan_file), "--on", "rtx-4090-desktop-128", "--no-compare")
    assert "RTX 4090" in text


def test_exported_command_is_what_the_plan_printed(plan_file: Path, tmp_path: Path) -> None:
    command = json.loads(answered(*PLAN, "--json"))["command"]
    assert answered("export", str(plan_file)) == command + "\n"
    folder = tmp_path / "run"
    answered("export", str(plan_file), "-o", str(folder))
    words = shlex.split(command.replace("\\\n", " "))
    assert shlex.split((folder / "run.sh").read_text(), comments=True) == ["exec", *words, "$@"]


def test_exported_command_reads_back_as_the_same_plan(plan_file: Path) -> None:
    command = answered("export", str(plan_file)).strip().replace("\\\n", " ")
    from_file = json.loads(answered("predict", str(plan_file), "--json"))
    from_command = json.loads(answered("predict", "--on", MACHINE, "--json", "--", command))
    assert from_command["decode_tokens_per_s"] == pytest.approx(from_file["decode_tokens_per_s"], rel=1e-6)


def test_predict_says_what_is_left_on_the_table() -> None:
    text = answered("predict", "--on", MACHINE, "--", *COMMAND)
    assert "You leave" in text
    assert f"stowplan plan {MODEL} --quant q4_k_m --on {MACHINE} --context 4096" in text
    assert "an empty cache" in text
    assert "You leave" not in answered("predict", "--on", MACHINE, "--no-compare", "--", *COMMAND)


def test_cbc_agrees_with_highs() -> None:
    costs = [json.loads(answered(*PLAN, "--json", "--solver", name))["cost_s"] for name in ("highs", "cbc")]
    assert costs[0] == pytest.approx(costs[1], rel=2e-3)


def test_throughput_keeps_the_batch_curve() -> None:
    document = json.loads(answered(*PLAN[:6], "--objective", "throughput", "--json"))
    batches = [point["batch"] for point in document["batch_curve"]]
    assert batches == sorted(batches)
    assert document["plan"]["workload"]["batch"] in batches


def test_programme_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "programme.lp"
    answered(*PLAN, "--write-lp", str(path))
    assert path.read_text().rstrip().endswith("End")


@pytest.mark.parametrize("document", ["plan", "prediction", "answer"])
def test_schemas_are_published(document: str) -> None:
    schema: dict[str, Any] = json.loads(answered("schema", document))
    assert schema["properties"]["schema_version"]["const"] == f"stowplan.{document}/1"


LISTS = ("machines", "gpus", "cpus", "memory", "disks", "links", "models", "formats", "mixes", "systems")


@pytest.mark.parametrize("kind", LISTS)
def test_every_list_has_rows_within_the_width(kind: str) -> None:
    lines = answered("list", kind).splitlines()
    assert len(lines) > 2
    assert all(len(line) <= WIDTH for line in lines)
    rows = json.loads(answered("list", kind, "--json"))
    assert all(row.keys() == rows[0].keys() for row in rows)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("machine", "rtx-4090-desktop-128", "host.dram"),
        ("gpu", "rtx-4090", "24.0 GiB"),
        ("cpu", "ryzen-9-7950x", "clock"),
        ("disk", "samsung-990-pro", "latency"),
        ("link", "pcie-4.0", "bandwidth"),
        ("model", "deepseek-v3", "8 of 256 experts"),
        ("format", "q4_k", "4.5 bits per weight"),
        ("system", "llama.cpp", "gpu.kernel_gap"),
    ],
)
def test_show(kind: str, name: str, expected: str) -> None:
    text = answered("show", kind, name)
    assert expected in text
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_shown_machine_takes_overrides() -> None:
    assert "64.0 GiB" in answered("show", "machine", "rtx-4090-desktop-128", "--set", "memory.capacity=64GiB")


WRONG = {
    "unknown model": (["plan", "llama-3.3-70", "--on", MACHINE], "nearest: llama-3.3-70b"),
    "unknown machine": (["plan", MODEL, "--on", "rtx-3060-laptop-8"], "nearest: rtx-3060-laptop-16"),
    "unknown mix": (["plan", MODEL, "--on", MACHINE, "--quant", "q4_k_x"], "q4_k_x"),
    "unknown system": (["plan", MODEL, "--on", MACHINE, "--system", "vlllm"], "vlllm"),
    "unknown cache type": ([*PLAN, "--kv", "q9"], "q8_0"),
    "override without unit": ([*PLAN, "--set", "memory.capacity=64"], "has no unit"),
    "unknown override": ([*PLAN, "--set", "gpu.lanes=4"], "gpu.pcie.lanes"),
    "margin without unit": ([*PLAN, "--margin", "512"], "--margin"),
    "context below the request": (["plan", MODEL, "--on", MACHINE, "--context", "64"], "at least 640"),
    "wrong ending": ([*PLAN, "-o", "plan.txt"], ".json"),
    "missing folder": ([*PLAN, "-o", "no/such/folder/plan.json"], "no/such/folder"),
    "knob of another system": ([*PLAN, "--system", "flexgen", "--ubatch", "512"], "knobs of llama.cpp"),
    "objective of another system": ([*PLAN, "--system", "flexgen", "--objective", "ttft"], "throughput"),
    "plan and command": (["predict", "plan.json", "--", *COMMAND], "not both"),
    "command without machine": (["predict", "--", *COMMAND], "--on MACHINE is missing"),
    "missing plan file": (["predict", "no-such-plan.json"], "no-such-plan.json"),
    "unknown release": (["predict", "--on", MACHINE, "--release", "2024", "--", *COMMAND], "pre-2025-12"),
    "unknown flag": (["predict", "--on", MACHINE, "--", *COMMAND, "--nonsense"], "--nonsense"),
    "unknown list": (["list", "boats"], "machines"),
    "unknown document": (["schema", "boats"], "answer"),
    "set on a model": (["show", "model", MODEL, "--set", "a=b"], "machine"),
    "does not fit": (["plan", "deepseek-v3", "--quant", "f16", "--on", BARE], "it would fit in"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_bad_input_gets_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, expected = WRONG[name]
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("stowplan: ")
    assert err.count("\n") == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_command_that_does_not_fit_learns_what_does() -> None:
    code, _, err = run("predict", "--on", MACHINE, "--", *COMMAND[:3], "-ngl", "99", "-c", "65536")
    assert code == 2
    assert "would hold" in err
    assert "what fits, at" in err
    assert "`stowplan plan " in err


@pytest.mark.parametrize("words", [["plan"], [*PLAN, "--objective", "fast"], [*PLAN, "--batch", "0"], ["dance"]])
def test_wrong_usage_exits_with_two(words: list[str]) -> None:
    assert run(*words)[0] == 2


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stowplan.cli.planning.solved", interrupt)
    code, out, _ = run(*PLAN)
    assert (code, out) == (130, "")


def process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from stowplan.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_process_ends_with_two_and_no_traceback() -> None:
    done = process("plan", "llama-3.3-70", "--on", MACHINE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_process_prints_on_an_ascii_terminal() -> None:
    done = process("list", "links", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["plan", "--help"], ["plan", "-h"], ["--version"]])
def test_help_and_version_end_well(words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "stowplan" in out


def test_help_needs_neither_numbers_nor_solver() -> None:
    heavy = (
        "numpy",
        "pydantic",
        "pulp",
        "plotly",
        "rich",
        "scipy",
        "stowplan.plan",
        "stowplan.models",
        "stowplan.machines",
    )
    code = (
        "import sys\nfrom stowplan.cli import main\nsys.argv = ['stowplan', *sys.argv[1:]]\n"
        f"try:\n    main()\nexcept SystemExit:\n    print([m for m in {heavy!r} if m in sys.modules])\n"
    )
    for command in ("plan", "predict", "export", "list", "show", "schema"):
        done = subprocess.run(
            [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.rstrip().endswith("[]")
