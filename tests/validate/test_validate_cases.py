"""The shipped validation cases: they load, name things that exist, and keep the hardware of fits out of tests."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import BadFile
from stowplan.machines.compose import load_machine
from stowplan.machines.machine import Machine
from stowplan.models.library import load_model
from stowplan.models.model import Model
from stowplan.validate.cases import SPLITS, Case, load_cases, read_cases, split_of
from stowplan.validate.published_cases_reader import load_published_cases
from stowplan.validate.unexpressed import load_unexpressed

RECORDS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "measurements"
MINIMAL = """
[[case]]
id = "x1"
family = "llama.cpp"
engine_version = "current"
kind = "partial"
machine = "rtx-3090 + ryzen-9-5950x + ddr4-3200x2:64GiB"
model = "llama-3-8b"
quant = "q4_k_m"
command = "llama-bench -ngl 20 -p {prompt} -n {generate} -d {depth}"
measured = { decode_tokens_per_s = 20 }
prompt = 512
generate = 128
split = "fit"
source = "https://example.org"
confidence = "read"
"""


@cache
def machine_of(spec: str, overrides: tuple[str, ...]) -> Machine:
    return load_machine(spec, overrides)


@cache
def model_of(key: str, quant: str) -> Model:
    return load_model(key, quant)


def hardware_of(case: Case) -> str:
    """Names of the GPUs, each once, and of the processor."""
    machine = machine_of(case.machine, case.overrides)
    return " + ".join([*sorted({gpu.key for gpu in machine.gpus}), machine.cpu.key])


def llama_family() -> list[Case]:
    return [case for case in load_cases() if case.family in ("llama.cpp", "ik_llama.cpp", "ollama")]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return path


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {as_toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(inner) for inner in value) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


def test_there_are_enough_cases_of_every_family() -> None:
    counts = Counter(case.family for case in load_cases())
    assert counts["llama.cpp"] + counts["ik_llama.cpp"] >= 500
    assert counts["flexgen"] >= 35
    assert counts["accelerate"] >= 10
    assert len({hardware_of(case) for case in llama_family()}) >= 25
    assert {case.kind for case in llama_family()} >= {"partial", "full-gpu", "cpu-only"}


def test_ids_are_unique_and_name_their_record() -> None:
    ids = [case.id for case in load_cases()]
    assert len(ids) == len(set(ids))
    assert all(case.id.startswith(case.record) for case in load_cases())


def test_filters_partition_the_cases() -> None:
    parts = [load_cases(family, split) for family in {c.family for c in load_cases()} for split in SPLITS]
    assert sum(map(len, parts)) == len(load_cases())
    assert load_cases("no such family") == []


def test_no_hardware_is_in_both_splits() -> None:
    for case in (*load_cases(split="fit"), *load_cases(split="test")):
        assert case.split == split_of(hardware_of(case)), (case.id, hardware_of(case))


def test_both_splits_have_every_kind_of_run() -> None:
    for kind in ("partial", "full-gpu", "cpu-only"):
        assert {case.split for case in llama_family() if case.kind == kind} == {"fit", "test", "fresh"}


def test_every_machine_and_model_resolves() -> None:
    for case in load_cases():
        machine = machine_of(case.machine, case.overrides)
        model = model_of(case.model, case.quant)
        assert (case.kind == "cpu-only") == (not machine.gpus), case.id
        gpu_memory = sum(gpu.memory.value for gpu in machine.gpus)
        whole = "--compress-weight" not in case.command
        if case.out_of_memory:
            continue
        if case.kind == "full-gpu" and whole:
            assert model.weight_bytes <= gpu_memory, case.id
        if case.kind != "disk" and whole:
            assert model.weight_bytes <= gpu_memory + machine.memory.capacity.value, case.id
        assert case.depth + case.prompt + case.generate <= model.max_context or case.family != "flexgen", case.id


def test_every_disk_case_names_a_disk() -> None:
    for case in load_cases():
        if case.kind == "disk":
            assert machine_of(case.machine, case.overrides).disks, case.id


def test_decode_is_no_faster_than_memory_allows() -> None:
    """Weights that every token must read, over all memory bandwidth there is, bound what anybody can have measured."""
    for case in load_cases():
        speed, batch = case.measured.decode_tokens_per_s, case.batch
        if speed is None or batch > 1:
            continue
        machine = machine_of(case.machine, case.overrides)
        model = model_of(case.model, case.quant)
        active = model.weight_bytes * model.active_parameters / model.parameters  # experts often have fewer bits: slack
        fastest = max([gpu.bandwidth.value for gpu in machine.gpus], default=0.0) + (
            machine.memory.channels * machine.memory.channel_bandwidth.value
        )
        assert speed <= fastest / active * 1.25, case.id


def test_commands_say_the_lengths_of_their_case() -> None:
    for case in llama_family():
        words = shlex.split(case.command)
        assert "llama-bench" in words or case.split == "fresh"
        for flag, wanted in (("-p", case.prompt), ("-n", case.generate), ("-d", case.depth)):
            if flag in words:
                assert words[words.index(flag) + 1] == str(wanted), case.id


def test_placement_expressions_are_valid_and_match_a_tensor() -> None:
    for case in llama_family():
        model, words = model_of(case.model, case.quant), shlex.split(case.command)
        names = [tensor.name for tensor in model.tensors]
        for value in (words[i + 1] for i, word in enumerate(words) if word == "-ot"):
            for override in re.split("[;,]", value):
                expression, target = override.split("=")
                assert re.fullmatch(r"CPU|CUDA\d", target), case.id
                found = any(re.search(expression, name) for name in names)
                # Files of that time held keys and values in one matrix, which newer ones split.
                assert found or expression == "attn_kv_b", (case.id, expression)


def test_flexgen_commands_agree_with_batch_and_lengths() -> None:
    for case in load_cases("flexgen"):
        words = shlex.split(case.command)
        read = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
        assert int(read["--gpu-batch-size"]) * int(read["--num-gpu-batches"]) == case.batch
        assert (int(read["--prompt-len"]), int(read["--gen-len"])) == (case.prompt, case.generate)
        shares = [int(words[words.index("--percent") + 1 + i]) for i in range(6)]
        assert all(shares[i] + shares[i + 1] <= 100 for i in (0, 2, 4)), case.id
        assert (case.kind == "disk") == (any(shares[i] + shares[i + 1] < 100 for i in (0, 2, 4))), case.id


def test_flexgen_throughput_agrees_with_its_phases() -> None:
    for case in load_cases("flexgen"):
        m = case.measured
        if m.prefill_seconds and m.decode_seconds and m.throughput_tokens_per_s:
            total = case.batch * case.generate / (m.prefill_seconds + m.decode_seconds)
            assert m.throughput_tokens_per_s == pytest.approx(total, rel=0.01), case.id


def test_accelerate_device_maps_are_json_and_cover_their_kind() -> None:
    for case in load_cases("accelerate"):
        words = shlex.split(case.command)
        device_map = json.loads(words[words.index("--device-map") + 1])
        assert ("disk" in device_map) == (case.kind == "disk")
        assert ("cpu" in device_map) == (case.kind in ("partial", "disk"))


@pytest.mark.parametrize("name", ["community.json", "papers.json"])
def test_every_collected_record_is_a_case_or_left_out_with_a_reason(name: str) -> None:
    if not RECORDS.is_dir():
        pytest.skip("the collected measurements are not part of the project")
    known = {record["id"] for record in json.loads((RECORDS / name).read_text(encoding="utf-8"))}
    used = {case.record for case in load_cases()} | {each for case in load_cases() for each in case.records}
    points = {case.id.partition("/")[2] for case in load_published_cases()}
    used |= {name for name in known if name in points or any(point.startswith(f"{name}-") for point in points)}
    left_out = {each for group in load_unexpressed() for each in group.ids}
    assert known <= used | left_out
    assert not used & left_out


def test_runs_that_ran_out_of_memory_report_nothing_else(tmp_path: Path) -> None:
    ended = MINIMAL.replace("decode_tokens_per_s = 20", "out_of_memory = true")
    (case,) = read_cases(written(tmp_path, ended))
    assert case.out_of_memory
    assert case.measured.decode_tokens_per_s is None
    both = MINIMAL.replace("decode_tokens_per_s = 20", "decode_tokens_per_s = 20, out_of_memory = true")
    with pytest.raises(BadFile, match="out_of_memory stands alone"):
        list(read_cases(written(tmp_path, both)))


def test_points_inherit_and_fill_in_the_command(tmp_path: Path) -> None:
    text = MINIMAL.replace("-ngl 20", "-ngl {layers}").replace("measured = { decode_tokens_per_s = 20 }\n", "")
    points = (
        'points = [{ id = "a", depth = 4096, values = { layers = 20 }, measured = { decode_tokens_per_s = 20 } },'
        ' { id = "b", generate = 0, values = { layers = 21 }, measured = { prefill_tokens_per_s = 9.5 } }]'
    )
    first, second = read_cases(written(tmp_path, text + points))
    assert (first.id, first.record, first.depth, first.prompt) == ("x1/a", "x1", 4096, 512)
    assert first.command == "llama-bench -ngl 20 -p 512 -n 128 -d 4096"
    assert second.command == "llama-bench -ngl 21 -p 512 -n 0 -d 0"
    assert second.measured.prefill_tokens_per_s == 9.5
    assert second.measured.decode_tokens_per_s is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('id = "x1"', "id = 1", "id"),
        ('family = "llama.cpp"', 'family = "llamacpp"', "family"),
        ('kind = "partial"', 'kind = "half"', "kind"),
        ('split = "fit"', 'split = "train"', "split"),
        ('engine_version = "current"\n', "", "engine_version"),
        ('family = "llama.cpp"', 'family = "flexgen"', "engine_version"),
        ("prompt = 512", 'prompt = "512"', "prompt"),
        ("prompt = 512", "prompt = -1", "prompt"),
        ("prompt = 512", "prompt = true", "prompt"),
        ("prompt = 512\n", "", "prompt"),
        ('source = "https://example.org"\n', "", "source"),
        ("decode_tokens_per_s = 20", "decode = 20", "measured.decode"),
        ("decode_tokens_per_s = 20", "decode_tokens_per_s = 0", "decode_tokens_per_s"),
        ("decode_tokens_per_s = 20", "decode_tokens_per_s = nan", "decode_tokens_per_s"),
        ("decode_tokens_per_s = 20", "", "holds nothing"),
        ("decode_tokens_per_s = 20", "out_of_memory = false", "out_of_memory"),
        ("decode_tokens_per_s = 20", 'gpu_memory = "3"', "gpu_memory"),
        ("generate = 128", "generate = 0", "decode speed"),
        ('confidence = "read"', 'confidence = "read"\nsped = 3', "sped"),
        ('confidence = "read"', 'confidence = "read"\nassumed = "cpu"', "assumed"),
        ('confidence = "read"', 'confidence = "read"\nset = ["memory"]', "memory"),
        ('confidence = "read"', 'confidence = "read"\npoints = []', "points"),
        ('confidence = "read"', 'confidence = "read"\npoints = [3]', "point"),
        ('confidence = "read"', 'confidence = "read"\npoints = [{ depth = 3 }]', "id"),
        ('confidence = "read"', 'confidence = "read"\npoints = [{ id = "a", quant = "f16" }]', "quant"),
        ("-ngl 20", "-ngl {layers}", "layers"),
        ("-ngl 20", "-ot 'exps=CPU", "split into words"),
        ("[[case]]", "[case]", "case file"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_file_and_field(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in MINIMAL
    with pytest.raises(BadFile, match=re.escape(named)) as caught:
        list(read_cases(written(tmp_path, MINIMAL.replace(old, new))))
    assert "some.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([line.split(" = ")[0] for line in MINIMAL.splitlines() if " = " in line] + ["points", "values"]),
    st.recursive(
        st.integers() | st.booleans() | st.floats() | st.text("ab{}'=/", max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "depth", "a"]), inner),
        max_leaves=4,
    ),
)
def test_any_value_anywhere_is_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    kept = [line for line in MINIMAL.splitlines() if not line.startswith(f"{name} =")]
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join([*kept, f"{name} = {as_toml(value)}"]), encoding="utf-8")
    sentence = ""
    try:
        assert all(isinstance(case, Case) for case in read_cases(path))
    except BadFile as error:
        sentence = str(error)
    assert not sentence or "any.toml" in sentence


@settings(deadline=None, max_examples=40)
@given(st.text(min_size=1, max_size=40))
def test_the_split_of_some_hardware_never_changes(hardware: str) -> None:
    assert split_of(hardware) in ("fit", "test")
    assert split_of(hardware) == split_of(hardware)


def test_about_six_in_ten_machines_may_be_fitted_to() -> None:
    fit = sum(split_of(f"gpu-{i} + cpu-{i}") == "fit" for i in range(2000))
    assert 0.55 < fit / 2000 < 0.65
