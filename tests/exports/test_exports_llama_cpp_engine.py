"""llama.cpp itself, with software GPUs: it takes exported commands and puts tensors and caches where we say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.exports.engines import LlamaCppBuild, llama_cpp
from tests.exports.gguf_files import small, write_gguf
from tests.exports.llama_log import Observed, observed
from tests.strategies import machine_of, placements

from stowplan.exports.llama_cpp import LlamaCppExporter, preset_words
from stowplan.models import load_model
from stowplan.models.model import Role
from stowplan.ops import part_of
from stowplan.plan import Plan, Workload
from stowplan.planner.commands import Hints, understand
from stowplan.planner.predict import make_setup
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.tensor_pattern import TensorPattern

SYSTEM = LlamaCpp()
ONE, TWO = "rtx-3090 + epyc-7742 + ddr4-3200x8:256GiB", "2x rtx-3090 + epyc-7742 + ddr4-3200x8:256GiB"
REFUSED = 3
KINDS = ("qwen3-30b-a3b", "llama-3.2-1b", "llama-3.1-8b")


@pytest.fixture(scope="module")
def build() -> LlamaCppBuild:
    return llama_cpp()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("gguf")
    for key in KINDS:
        write_gguf(found / f"{key}.gguf", small(key), "q4_k_m")
    yield found


def setup_on(spec: str, path: Path) -> Setup:
    return make_setup(machine_of(spec), load_model(str(path)), SYSTEM)


def check(setup: Setup, plan: Plan, seen: Observed) -> None:
    """Every tensor of the file, and every layer's cache, is on the device that the plan names."""
    names = {f"gpu{i}": f"Vulkan{i}" for i in setup.gpus} | {RAM: "CPU"}
    layers = SYSTEM.placement(setup, plan)
    for layer, places in zip(setup.model.layers, layers, strict=True):
        for tensor in layer.tensors:
            assert seen.tensors[tensor.name] == names[places.place(part_of(tensor))], tensor.name
        assert seen.cache[layer.index] == names[places.kv], layer.index
    for tensor in setup.model.globals:
        if tensor.role is Role.OUTPUT:
            assert seen.tensors[tensor.name] == names[plan.output]
        if tensor.role is Role.TOKEN_EMBEDDING and not setup.model.tied:
            assert seen.tensors[tensor.name] == names[plan.embedding]


def run(build: LlamaCppBuild, setup: Setup, plan: Plan) -> Observed:
    words = list(LlamaCppExporter().files(setup, plan, buffers=("Vulkan0", "Vulkan1")).command)
    gpus = len(setup.machine.gpus)
    done = build.run("load", [*words[1:], "-lv", "5", "--no-warmup"], gpus)
    assert done.returncode == 0, (shlex.join(words), done.stderr[-2000:])
    seen = observed(done.stderr, {tensor.name for tensor in setup.model.tensors})
    assert seen.tensors.keys() == {tensor.name for tensor in setup.model.tensors}
    for position, word in enumerate(words):
        if word == "-ot":
            pattern = TensorPattern(words[position + 1].rpartition("=")[0])
            assert any(pattern.search(name) for name in seen.moved), words[position + 1]
    return seen


def plan_of(setup: Setup, path: Path, settings_: LlamaCppSettings, placement: Any) -> Plan:
    plan = make_plan(setup.machine, (str(path), None), Workload(prompt=64, generate=16), settings_, placement)
    return LlamaCppExporter().nearest(setup, plan)


@settings(max_examples=4, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_every_tensor_and_cache_is_where_the_plan_says(build: LlamaCppBuild, folder: Path, data: st.DataObject) -> None:
    path = folder / f"{data.draw(st.sampled_from(KINDS))}.gguf"
    setup = setup_on(data.draw(st.sampled_from([ONE, TWO])), path)
    settings_ = LlamaCppSettings(kv_offload=data.draw(st.booleans()), load_mode="none")
    plan = plan_of(setup, path, settings_, data.draw(placements(setup, settings_)))
    check(setup, plan, run(build, setup, plan))


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("qwen3-30b-a3b", "-ngl 99 --n-cpu-moe 4"),
        ("qwen3-30b-a3b", "-ngl 5 --cpu-moe"),
        ("qwen3-30b-a3b", "-ngl 99 -ot 'blk\\.[0-2]\\.ffn_.*_exps=Vulkan0,exps=CPU' -nkvo"),
        ("llama-3.1-8b", "-ngl 3 --n-cpu-ffn 5"),
        ("llama-3.2-1b", "-ngl 99 -ot '^token_embd\\.weight$=CPU' -ot 'ffn_(up|gate)=CPU'"),
        ("llama-3.1-8b", "-ngl 6 -ts 2,3"),
        ("llama-3.1-8b", "-ngl 99 -sm none -mg 1"),
        ("llama-3.1-8b", ""),
    ],
)
def test_flags_mean_what_we_read_in_them(build: LlamaCppBuild, folder: Path, key: str, flags: str) -> None:
    path = folder / f"{key}.gguf"
    setup = setup_on(TWO if "-ts" in flags or "-mg" in flags else ONE, path)
    words = shlex.split(f"llama-server -m {path} -c 256 -lm none --fit off {flags}")
    understood = understand(words, setup.machine, Hints(loaded=setup.model, strict=True))
    done = build.run("load", [*words[1:], "-lv", "5", "--no-warmup"], len(setup.machine.gpus))
    assert done.returncode == 0, done.stderr[-2000:]
    seen = observed(done.stderr, {tensor.name for tensor in setup.model.tensors})
    assert len(seen.cache) == len(setup.model.layers)
    check(setup, understood.plan, seen)


def test_preset_keys_are_the_engines_own_flags(build: LlamaCppBuild, folder: Path) -> None:
    path = folder / "qwen3-30b-a3b.gguf"
    setup = setup_on(ONE, path)
    words = shlex.split(f"llama-server -m {path} -c 256 -ngl 99 --n-cpu-moe 3 -nkvo -lm none --fit off")
    plan = LlamaCppExporter().nearest(setup, understand(words, setup.machine, Hints(loaded=setup.model)).plan)
    files = LlamaCppExporter().files(setup, plan, buffers=("Vulkan0", "Vulkan1"))
    flags = preset_words(files.contents["preset.ini"])[1:]
    assert all(word.startswith("--") for word in flags[:1])
    done = build.run("load", [*flags, "-lv", "5", "--no-warmup"])
    assert done.returncode == 0, done.stderr[-2000:]
    check(setup, plan, observed(done.stderr, {tensor.name for tensor in setup.model.tensors}))


def test_commands_for_older_versions_are_refused_by_this_one(build: LlamaCppBuild, folder: Path) -> None:
    path = folder / "llama-3.1-8b.gguf"
    setup = setup_on(ONE, path)
    words = shlex.split(f"llama-server -m {path} -ngl 99 --no-mmap")
    read = understand(words, setup.machine, Hints(loaded=setup.model)).plan
    older = LlamaCppExporter("llama.cpp-2025-12")
    command = older.files(setup, older.nearest(setup, read)).command
    assert "--no-mmap" in command
    done = build.run("load", [*command[1:], "--no-warmup"])
    assert done.returncode == REFUSED
    assert "--no-mmap" in done.stderr
