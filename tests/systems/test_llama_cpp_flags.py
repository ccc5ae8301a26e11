"""llama.cpp's command line as people write it: understood, or refused in one sentence that names the flag."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import machine_of, model_of

from stowplan.errors import InputError, NotExpressible, StowplanError
from stowplan.ops import EXPERT_PARTS, Part
from stowplan.plan import Workload
from stowplan.planner.commands import Hints, Understood, understand
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_flags import read_flags
from stowplan.systems.llama_cpp_reading import gpu_layers, workload_from
from stowplan.systems.serial import LayerPlaces
from stowplan.validate.cases import Case, load_cases

ONE, TWO = "rtx-4090 + ryzen-9-7950x + ddr5-5200x2:128GiB", "2x rtx-3090 + epyc-7742 + ddr4-3200x8:256GiB"
COMMUNITY = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "measurements" / "community.json"
CASES = [case for family in ("llama.cpp", "ik_llama.cpp") for case in load_cases(family)]


def read(command: str, spec: str = ONE, key: str = "llama-3.1-8b", **hints: object) -> Understood:
    known = Hints(model=key, quant="q4_k_m", loaded=model_of(key, "q4_k_m"), **hints)  # type: ignore[arg-type]
    return understand(shlex.split(command), machine_of(spec), known)


def places(understood: Understood) -> list[LayerPlaces]:
    return LlamaCpp().placement(understood.setup, understood.plan)


def homes(understood: Understood) -> list[str]:
    return [each.mixer for each in places(understood)]


@pytest.mark.parametrize("case", CASES[:: max(1, len(CASES) // 60)], ids=lambda case: case.id)
def test_commands_of_published_runs_are_understood(case: Case) -> None:
    machine = machine_of(case.machine, case.overrides)
    workload = Workload(prompt=case.prompt, generate=case.generate, depth=case.depth, batch=case.batch)
    release = "current" if case.engine_version == "current" else "pre-2025-12"
    hints = Hints(case.model, case.quant, workload, release, loaded=model_of(case.model, case.quant))
    understood = understand(shlex.split(case.command), machine, hints)
    assert len(places(understood)) == len(understood.setup.model.layers)


@pytest.mark.skipif(not COMMUNITY.is_file(), reason="the collected records are not part of the project")
def test_flags_that_people_report_parse_or_are_named() -> None:
    lines = sorted({str(record["flags"]) for record in json.loads(COMMUNITY.read_text()) if record.get("flags")})
    tried = 0
    for line in lines:
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        if not words or not words[0].startswith("-"):
            continue
        tried += 1
        try:
            read_flags(["llama-server", *words])
        except (InputError, NotExpressible) as error:
            assert "\n" not in str(error)
            assert any(word.split("=")[0] in str(error) for word in words if word), (line, str(error))
    assert tried >= 25


@pytest.mark.parametrize(
    ("count", "release", "expected"),
    [
        (0, "current", (0, False)),
        (1, "current", (0, True)),
        (2, "current", (1, True)),
        (32, "current", (31, True)),
        (33, "current", (32, True)),
        (99, "current", (32, True)),
        (-2, "current", (32, True)),
        (0, "pre-2025-12", (0, False)),
        (1, "pre-2025-12", (1, False)),
        (32, "pre-2025-12", (32, False)),
        (33, "pre-2025-12", (32, True)),
        (-2, "pre-2025-12", (32, True)),
    ],
)
def test_the_count_of_layers_follows_the_release(count: int, release: str, expected: tuple[int, bool]) -> None:
    assert gpu_layers(32, count, release) == expected


def test_layers_are_counted_from_the_end() -> None:
    current = read("llama-server -m x.gguf -ngl 11")
    assert homes(current) == [RAM] * 22 + ["gpu0"] * 10
    assert current.plan.output == "gpu0"
    older = read("llama-server -m x.gguf -ngl 11", release="pre-2025-12")
    assert homes(older) == [RAM] * 21 + ["gpu0"] * 11
    assert older.plan.output == RAM
    fork = read("llama-server -m x.gguf -ngl 11 -fmoe")
    assert homes(fork) == homes(older)
    assert fork.plan.output == RAM


@pytest.mark.parametrize(
    ("split", "count", "expected"),
    [
        ("2,5", 99, [10, 22]),
        ("1,48", 99, [1, 31]),
        ("1,0", 99, [32, 0]),
        ("0,1", 99, [0, 32]),
        ("3/1", 99, [25, 7]),
        ("1,32", 99, [1, 31]),
        ("2,5", 8, [2, 5]),
    ],
)
def test_shares_divide_the_number_of_offloaded_layers(split: str, count: int, expected: list[int]) -> None:
    """Layer i of n (the output counts as one) goes to the first GPU whose cumulated share exceeds i / n."""
    release = "pre-2025-12" if count == 8 else "current"
    found = homes(read(f"llama-server -m x.gguf -ngl {count - (count == 8)} -ts {split}", TWO, release=release))
    assert [found.count("gpu0"), found.count("gpu1")] == expected


def test_seven_layers_over_shares_of_two_and_five() -> None:
    found = homes(read("llama-server -m x.gguf -ngl 7 -ts 2,5", TWO, release="pre-2025-12"))
    assert found[-7:] == ["gpu0"] * 2 + ["gpu1"] * 5


def test_without_shares_memory_decides() -> None:
    uneven = "rtx-3090 + rtx-3060 + epyc-7742 + ddr4-3200x8:256GiB"
    found = homes(read("llama-server -m x.gguf -ngl 99", uneven))
    assert found.count("gpu0") == 22
    assert found.count("gpu1") == 10


def test_the_first_override_that_matches_wins_and_the_cache_stays() -> None:
    first = r"-ot 'blk\.[0-3]\.ffn_.*=CUDA1' -ot 'blk\..*\.ffn_.*=CPU'"
    layers = places(read(f"llama-server -m x.gguf -ngl 99 -ts 1,0 {first}", TWO))
    assert {place for _, place in layers[3].ffn} == {"gpu1"}
    assert {place for _, place in layers[4].ffn} == {RAM}
    assert {(each.mixer, each.kv) for each in layers} == {("gpu0", "gpu0")}
    swapped = r"-ot 'blk\..*\.ffn_.*=CPU,blk\.[0-3]\.ffn_.*=CUDA1'"
    layers = places(read(f"llama-server -m x.gguf -ngl 99 -ts 1,0 {swapped}", TWO))
    assert {place for each in layers for _, place in each.ffn} == {RAM}


@pytest.mark.parametrize(
    ("flags", "spilled"),
    [
        ("--cpu-moe", 48),
        ("--n-cpu-moe 5", 5),
        ("-ot exps=CPU", 48),
        ("-ncmoe 0", 0),
        (r"-ot '\.ffn_.*_exps\.=CPU'", 48),
    ],
)
def test_short_forms_move_the_routed_experts(flags: str, spilled: int) -> None:
    layers = places(read(f"llama-server -m x.gguf -ngl 99 {flags}", ONE, "qwen3-30b-a3b"))
    for index, each in enumerate(layers):
        assert {each.place(part) for part in EXPERT_PARTS} == {RAM if index < spilled else "gpu0"}
        assert each.place(Part.MIXER) == "gpu0"


def test_a_layer_cut_by_overrides_is_told() -> None:
    understood = read(r"llama-server -m x.gguf -ngl 99 -ot 'blk\.0\.attn_.*=CPU'")
    assert places(understood)[0].mixer == RAM
    assert any("cache stays on gpu0" in text for text in understood.warnings)
    understood = read(r"llama-server -m x.gguf -ngl 99 -ot 'blk\.77\.nothing=CPU'")
    assert any("matches no tensor" in text for text in understood.warnings)


def test_batched_bench_runs_so_many_requests_at_a_time() -> None:
    words = "llama-batched-bench -m m.gguf -c 65536 -ngl 99 -npp 512 -ntg 128 -npl 8,16".split()  # noqa: SIM905
    flags = read_flags(words)
    assert any("-npl 8,16 is a sweep" in text for text in flags.warnings)
    workload = workload_from(flags, Workload(batch=3, prompt=1, generate=1))
    assert (workload.batch, workload.prompt, workload.generate, workload.context) == (8, 512, 128, 8192)


def test_bench_separators_sweeps_and_switches() -> None:
    flags = read_flags(
        shlex.split(r"llama-bench -m x.gguf -ngl 10,20 -ot 'a=CPU;b=CPU' -p 512,1024 -fa 0,1 -mmp 0 -nkvo 1")
    )
    assert flags.layers == 10
    assert flags.overrides == [("a", "CPU"), ("b", "CPU")]
    assert (flags.prompt, flags.flash_attention, flags.load_mode, flags.kv_offload) == (512, False, "none", False)
    assert sum("sweep" in text for text in flags.warnings) == 3
    server = read_flags(["llama-server", "-ot", "a=CPU,b=CUDA0", "--n-gpu-layers=7", "--no-mmap", "-fa"])
    assert server.overrides == [("a", "CPU"), ("b", "CUDA0")]
    assert (server.layers, server.load_mode, server.flash_attention) == (7, "none", True)


def test_bench_measures_prompt_and_generation_apart() -> None:
    plan = read("llama-bench -m x.gguf -p 512 -n 128 -d 4096").plan
    assert (plan.workload.prompt, plan.workload.generate) == (512, 128)
    assert (plan.workload.depth, plan.workload.decode_depth) == (4096, 4096)


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ("-lm none", "none"),
        ("-lm mmap", "mmap"),
        ("-lm mmap+mlock", "mlock"),
        ("--no-mmap", "none"),
        ("--mlock", "mlock"),
        ("--no-mmap --mlock", "none"),
        ("--mlock --no-mmap", "none"),
        ("", "mmap"),
    ],
)
def test_load_modes_of_all_versions(flags: str, mode: str) -> None:
    assert read_flags(shlex.split(f"llama-server -m x.gguf {flags}")).load_mode == mode


def test_a_flag_may_be_repeated_with_the_same_value() -> None:
    assert read_flags(shlex.split("llama-server -ngl 7 --gpu-layers 7 -nkvo --no-kv-offload")).layers == 7


def test_variables_of_the_engine_count_as_flags() -> None:
    words = shlex.split(
        r"LLAMA_ARG_N_GPU_LAYERS=7 LLAMA_ARG_OVERRIDE_TENSOR='exps=CPU' LLAMA_ARG_PORT=1 A=b llama-server"
    )
    flags = read_flags(words)
    assert flags.layers == 7
    assert flags.overrides == [("exps", "CPU")]
    with pytest.raises(NotExpressible, match="LLAMA_ARG_WARP_DRIVE"):
        read_flags(["LLAMA_ARG_WARP_DRIVE=1", "llama-server"])


def test_without_fitting_every_layer_goes_to_the_gpu() -> None:
    assert homes(read("llama-server -m x.gguf --fit off")) == ["gpu0"] * 32


def test_one_gpu_takes_all_layers_where_the_split_says_none() -> None:
    assert set(homes(read("llama-server -m x.gguf -ngl 99 -sm none -mg 1", TWO))) == {"gpu1"}
    understood = read("llama-server -m x.gguf -ngl 99 -sm row", TWO)
    assert any("-sm row" in text for text in understood.warnings)


def test_a_tied_output_is_named_after_the_embedding() -> None:
    understood = read(
        r"llama-server -m x.gguf -ngl 99 -ot '^token_embd\.weight$=CPU'", ONE, "llama-3.2-1b", strict=True
    )
    assert (understood.plan.output, understood.plan.embedding) == (RAM, RAM)
    assert "token_embd" in LlamaCpp().command(understood.setup, understood.plan)


def test_environment_paths_and_old_names_are_accepted() -> None:
    for words in (
        "CUDA_VISIBLE_DEVICES=0 ./build/bin/llama-cli -m x.gguf -ngl 5",
        r"'C:\llama\llama-server.exe' -m x.gguf -ngl 5",
        "./main -m x.gguf -ngl 5",
        "llama-server \\\n -m x.gguf \\\n -ngl 5",
    ):
        assert read_flags(shlex.split(words)).layers == 5


WRONG = {
    "-ngl x": "-ngl",
    "-ngl -7": "-ngl",
    "-ngl": "-ngl",
    "-c 1.5": "-c",
    "-ub 0": "-ub",
    "-t 0": "-t",
    "-np 0": "-np",
    "-ts 0,0": "-ts",
    "-ts a,b": "-ts",
    "-ts 1,-1": "-ts",
    "-ngl 99 -ts 1,1,1,1": "-ts",
    "-lm sideways": "-lm",
    "-ot ffn": "-ot",
    "-ot =CPU": "-ot",
    "-ot ffn=": "-ot",
    "-ot 'ffn=TPU0'": "TPU0",
    "-ot 'ffn=CUDA9'": "CUDA9",
    "-ot '(ffn=CPU'": "-ot",
    "-ot '(a+)+$=CPU'": "-ot",
    "-ot '((a|b)*c)*=CPU'": "-ot",
    "--frobnicate": "--frobnicate",
    "-ctk q9_9": "q9_9",
    "-fa off -ctv q8_0": "q8_0",
    "--n-cpu-moe 1e9": "--n-cpu-moe",
    "--n-cpu-moe 99999999": "--n-cpu-moe",
    "-ngl 99999999999999999999": "-ngl",
    "-ngl 5 --n-gpu-layers 6": "'--n-gpu-layers 5' and '--n-gpu-layers 6' contradict",
    "-c 4096 -ngl 9 --ctx-size 8192": "--ctx-size 8192",
    "-nkvo --kv-offload": "--no-kv-offload",
    "--mmap --no-mmap": "--no-mmap",
    "--cpu-moe --n-cpu-moe 3": "--cpu-moe",
    "-sm none -ts 1,1": "-ts",
    "-sm sideways": "-sm",
    "-ngl 9 -mg 3": "-mg",
    "--fit maybe": "--fit",
    "-ngl 9 -ot nothing=CPU": "matches no tensor",
    "-ngl 9 -ot ffn=CPU -ot ffn_up=CUDA0": "'ffn_up' matches no tensor",
    "-ngl 9 -ot '.*=CPU'": "matches every tensor",
    "-ngl 9 -ot 'w=CPU'": "matches every tensor",
    "-ot '(?!up)ffn=CPU'": "looking ahead",
    r"-ot '(a)\1=CPU'": "-ot",
    "-ot 'a{2001}=CPU'": "counts go from",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_values_are_refused_with_the_flag(flags: str) -> None:
    with pytest.raises(StowplanError) as caught:
        understood = read(f"llama-server -m x.gguf {flags}", strict=True)
        LlamaCpp().run(understood.setup, understood.plan)
    assert WRONG[flags] in str(caught.value)
    assert "\n" not in str(caught.value)


HOSTILE = [
    "(a*)*b",
    "(a+)+$",
    "(a|aa)+$",
    "(.*)*x",
    "((.*)*)*x",
    "(blk.*)+(ffn.*)+$",
    ".*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*!",
    "(?:.*a){25}",
    "([a-z_.]+)+!",
    "(a?){40}a{40}",
    "(.|b|.){30}!",
    "a" * 5000,
]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_hostile_patterns_end_soon(pattern: str) -> None:
    started = time.perf_counter()
    try:
        read(f"llama-server -m x.gguf -ngl 99 -ot {shlex.quote(pattern + '=CPU')}")
    except StowplanError as error:
        assert "-ot" in str(error)
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("words", [[], ["\\"], ["python", "x.py"], ["A=1"], [""]])
def test_what_is_no_command_is_refused(words: list[str]) -> None:
    with pytest.raises(StowplanError):
        read_flags(words)


@settings(max_examples=80)
@given(
    st.lists(
        st.sampled_from(
            [
                "-ngl",
                "-ot",
                "-ts",
                "-c",
                "-fa",
                "-nkvo",
                "--cpu-moe",
                "-ncmoe",
                "-p",
                "-pg",
                "-d",
                "-lm",
                "5",
                "0",
                "-1",
                "a=CPU",
                "1,2",
                "on",
                "",
                "=",
                "x=y=z",
                "--no-mmap",
                "--ctx-size=",
                "-m",
                "-mmp",
                "-ctk",
                "\u00b2",
                "1/3",
                ",",
                "[=CPU",
            ]
        ),
        max_size=8,
    ),
    st.sampled_from(["llama-server", "llama-bench", "llama-cli"]),
)
def test_any_words_give_flags_or_a_deliberate_error(words: list[str], program: str) -> None:
    known = Hints(model="qwen3-30b-a3b", quant="q4_k_m", loaded=model_of("qwen3-30b-a3b", "q4_k_m"))
    try:
        understood = understand([program, *words], machine_of(TWO), known)
    except StowplanError as error:
        assert "\n" not in str(error)
    else:
        assert len(places(understood)) == 48
