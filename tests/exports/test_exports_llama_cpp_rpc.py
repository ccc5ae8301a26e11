"""llama.cpp with two remote GPUs: real sizes counted by its own allocator, same tokens wherever tensors live."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.exports.engines import RemoteGpus, remote_gpus
from tests.exports.gguf_files import small, write_gguf
from tests.strategies import machine_of

from stowplan.exports.llama_cpp import LlamaCppExporter
from stowplan.models import load_facts, load_model
from stowplan.ops import EXPERT_PARTS, Part
from stowplan.plan import Plan, Workload
from stowplan.planner.commands import Hints, understand
from stowplan.planner.predict import make_setup
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

pytestmark = pytest.mark.slow
SYSTEM = LlamaCpp()
TWO = "2x rtx-3090 + epyc-7742 + ddr4-3200x8:256GiB"
MIB = 2.0**20


@pytest.fixture(scope="module")
def gpus() -> Iterator[RemoteGpus]:
    with remote_gpus(2) as found:
        yield found


def counted(gpus: RemoteGpus, words: list[str]) -> dict[str, list[float]]:
    """MiB of weights, cache and compute buffers by tier, as llama.cpp counts them."""
    done = gpus.run("fit", words)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    return {
        RAM if name == "Host" else f"gpu{name.removeprefix('RPC')}": [float(size) for size in sizes]
        for name, *sizes in lines
    }


def ours(setup: Setup, plan: Plan) -> dict[str, list[float]]:
    run = SYSTEM.run(setup, plan)
    memory = run.memory(SYSTEM.placement(setup, plan), plan.embedding, plan.output)
    kinds = ("weights", "cache", "buffers")
    return {tier: [use.parts.get(kind, 0.0) / MIB for kind in kinds] for tier, use in memory.items()}


SIZES = [
    ("qwen3-235b-a22b", "-c 8192 -ngl 99 --cpu-moe"),
    ("qwen3-235b-a22b", "-c 32768 -ngl 99 --n-cpu-moe 80 -ctk q8_0 -ctv q8_0 -fa on -ts 1,3"),
    ("qwen3-235b-a22b", "-c 8192 -ngl 20 -ub 2048"),
    ("llama-3.3-70b", "-c 8192 -ngl 41"),
    ("llama-3.3-70b", "-c 16384 -ngl 99 -nkvo"),
    ("llama-3.3-70b", "-c 16384 -ngl 99 -ts 3,2"),
]


@pytest.mark.parametrize(("key", "flags"), SIZES)
def test_weights_and_cache_of_real_sizes_are_what_the_allocator_says(
    gpus: RemoteGpus, tmp_path: Path, key: str, flags: str
) -> None:
    """Files of 235B and 70B shapes that hold a header alone; llama.cpp counts whole MiB.

    Compute buffers are compared on the GPU of the output matrix, where logits are the largest. On the other GPUs
    remote devices differ from local ones: nothing is streamed to them.
    """
    path = tmp_path / f"{key}.gguf"
    model = write_gguf(path, load_facts(key), "q4_k_m")
    setup = make_setup(machine_of(TWO), model, SYSTEM)
    words = shlex.split(f"llama-server -m {path} {flags} --fit off -nr")
    if "-ts" not in flags:
        words += ["-ts", "1,1"]
    plan = understand(words, setup.machine, Hints(loaded=model, strict=True)).plan
    theirs = counted(gpus, words[1:])
    for tier, sizes in ours(setup, plan).items():
        assert sizes[0] == pytest.approx(theirs[tier][0], rel=0.02, abs=2.0), (tier, sizes, theirs)
        assert sizes[1] == pytest.approx(theirs[tier][1], rel=0.02, abs=2.0), (tier, sizes, theirs)
    if "-ts" not in flags:  # whole models on two GPUs compute in a pipeline, with buffers of their own
        last = plan.output
        assert ours(setup, plan)[last][2] == pytest.approx(theirs[last][2], rel=0.02), (last, theirs)


def test_tokens_do_not_depend_on_where_tensors_live(gpus: RemoteGpus, tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    write_gguf(path, small("qwen3-30b-a3b"), "f16", seed=5)
    model = load_model(str(path))
    setup = make_setup(machine_of(TWO), model, SYSTEM)
    placed = []
    for index in range(len(model.layers)):
        home = RAM if index < 1 else f"gpu{int(index >= 4)}"
        parts = ((part, RAM if index % 2 else home) for part in EXPERT_PARTS)
        placed.append(LayerPlaces(home, home, tuple(sorted((*parts, (Part.SHARED, home))[:3]))))
    plan = make_plan(
        setup.machine,
        (str(path), None),
        Workload(prompt=64, generate=16),
        LlamaCppSettings(threads=2),
        (placed, "gpu1"),
    )
    exporter = LlamaCppExporter()
    words = exporter.files(setup, exporter.nearest(setup, plan), buffers=gpus.buffers).command
    split = gpus.run("generate", [*words[1:], "--no-warmup"])
    alone = gpus.run(
        "generate", ["-m", str(path), "-ngl", "0", "-t", "2", "-c", "256", "-lm", "none", "--fit", "off", "--no-warmup"]
    )
    assert split.returncode == alone.returncode == 0, split.stderr[-2000:]
    tokens = split.stdout.split()
    assert len(tokens) == 8
    assert len(set(tokens)) > 2
    assert tokens == alone.stdout.split()
