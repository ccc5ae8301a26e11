"""`stowplan export` and `stowplan import`: folders, what engines do otherwise, and plans read back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stowplan.cli.app import app

ON = "rtx-4090-desktop-128"
PLAN = ("plan", "llama-3.1-8b", "--on", ON, "--context", "4096")


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr


def said(*words: str) -> str:
    code, out, err = run(*words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def gguf_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "q4.json"
    said(*PLAN, "--quant", "q4_k_m", "-o", str(path))
    return path


@pytest.fixture(scope="module")
def plain_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "bf16.json"
    said("plan", "qwen2.5-0.5b", "--on", ON, "--context", "4096", "--quant", "bf16", "-o", str(path))
    return path


def test_a_folder_is_written_and_every_file_of_it_reads_back(gguf_plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    text = said("export", str(gguf_plan), "-o", str(folder))
    assert "run.sh" in text
    stated = json.loads((folder / "plan.json").read_text())
    for name in ("run.sh", "preset.ini"):
        reference = ("--on", ON, "--model", "llama-3.1-8b", "--quant", "q4_k_m")
        found = json.loads(said("import", str(folder / name), *reference))
        assert found == stated, name
    line = next(each for each in (folder / "README.md").read_text().splitlines() if each.startswith("stowplan import"))
    words = shlex.split(line)[1:]
    words[1] = str(folder / words[1])
    assert json.loads(said(*words)) == stated
    assert run("export", str(gguf_plan), "-o", str(folder))[0] == 2


def test_an_imported_plan_is_predicted(gguf_plan: Path, tmp_path: Path) -> None:
    command = said("export", str(gguf_plan)).replace("\\\n", " ")
    path = tmp_path / "imported.json"
    said(
        "import",
        "--on",
        ON,
        "--model",
        "llama-3.1-8b",
        "--quant",
        "q4_k_m",
        "-o",
        str(path),
        "--",
        *shlex.split(command),
    )
    first = json.loads(said("predict", str(gguf_plan), "--json"))
    second = json.loads(said("predict", str(path), "--json"))
    assert second["decode_tokens_per_s"] == pytest.approx(first["decode_tokens_per_s"])


def test_what_an_engine_does_otherwise_is_said(gguf_plan: Path, plain_plan: Path) -> None:
    code, out, err = run("export", str(gguf_plan), "--engine", "ollama")
    assert (code, err) == (0, "")
    assert "PARAMETER num_gpu 33" in out
    code, out, err = run("export", str(gguf_plan), "--engine", "vllm")
    assert code == 2
    assert "--quant bf16" in err
    code, out, err = run("export", str(plain_plan), "--engine", "vllm")
    assert code == 0
    assert "model: qwen2.5-0.5b" in out
    code, out, err = run("export", str(plain_plan), "--engine", "flexgen")
    assert code == 2
    assert "OPT" in err


def test_other_engines_are_imported(tmp_path: Path) -> None:
    words = ("vllm", "serve", "Qwen/Qwen2.5-32B-Instruct", "--cpu-offload-gb", "30")
    plan = json.loads(said("import", "--on", ON, "--quant", "bf16", "--", *words))
    assert plan["system"] == "vllm"
    assert plan["model"] == "qwen2.5-32b"
    assert plan["layers"][0]["places"]["attention"] == "ram"
    config = tmp_path / "vllm.yaml"
    config.write_text("model: Qwen/Qwen2.5-32B-Instruct\ncpu-offload-gb: 30\n")
    assert json.loads(said("import", str(config), "--on", ON, "--quant", "bf16")) == plan


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("import", "nowhere.yaml", "--on", ON), "nowhere.yaml"),
        (("import", "--on", ON, "--engine", "warp", "x.yaml"), "--engine warp"),
        (("import", "--on", ON, "--", "vllm", "serve", "no-such-model-anywhere"), "no-such-model-anywhere"),
        (("import", "--on", ON, "--model", "llama-3.1-8b", "--", "llama-server", "-ngl", "9", "-ot", "x=CPU"), "'x'"),
        (("export", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: tuple[str, ...], named: str) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("stowplan: ")
    assert named in err
    assert err.count("\n") == 1
