"""The library of architectures: counts against published ones, names, speed."""

import time
from pathlib import Path

import pytest

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, InputError, UnknownName
from stowplan.models import Role, identify_file_name, list_models, load_facts, load_model
from stowplan.models.names import layer_and_role

REQUIRED = (
    "llama-3.1-8b llama-3.3-70b qwen3-235b-a22b deepseek-v3 opt-13b opt-30b opt-175b mixtral-8x7b "
    "llama-2-7b llama-2-13b llama-2-70b llama-3-8b llama-3.1-70b llama-3.1-405b llama-3.2-1b llama-3.2-3b "
    "deepseek-r1 deepseek-v2 kimi-k2 deepseek-v2-lite gpt-oss-20b gpt-oss-120b glm-4.5 glm-4.5-air "
    "minimax-m2 phi-4 bloom-176b command-r dbrx command-r-plus qwen3-next-80b-a3b opt-1.3b opt-6.7b "
    "opt-66b jamba-v0.1 llama-4-scout llama-4-maverick "
)


def test_the_library_is_complete() -> None:
    assert len(list_models()) >= 66
    assert set(REQUIRED.split()) <= set(list_models())


@pytest.mark.parametrize("key", list_models())
def test_parameters_agree_with_published_ones(key: str) -> None:
    model = load_model(key)
    if model.published_parameters is None:
        pytest.skip("nobody states a total")
    assert model.parameters == pytest.approx(model.published_parameters, rel=0.005)
    assert 0 < model.active_parameters <= model.parameters


@pytest.mark.parametrize("key", list_models())
def test_every_model_is_consistent(key: str) -> None:
    model = load_model(key)
    names = [t.name for t in model.tensors]
    assert len(names) == len(set(names))
    assert len(model.layers) == load_facts(key).layers
    assert model.tied == (not any(t.role is Role.OUTPUT for t in model.globals))
    assert all(t.bytes > 0 and t.rows > 0 and t.columns > 0 for t in model.tensors)
    for layer in model.layers:
        recurrent = any(t.role is Role.SSM for t in layer.tensors)
        for tensor in layer.tensors:
            found = layer_and_role(tensor.name, recurrent=recurrent, vector=tensor.columns == 1)
            assert found == (layer.index, tensor.role), tensor.name


@pytest.mark.parametrize(
    ("key", "billions"),
    [
        ("qwen3-235b-a22b", 235.09),
        ("llama-3.1-8b", 8.03),
        ("gpt-oss-20b", 20.91),
        ("gpt-oss-120b", 116.83),
        ("deepseek-v3", 671.03),
        ("kimi-k2", 1026.41),
        ("qwen3-next-80b-a3b", 79.67),
        ("qwen3.5-27b", 26.90),
        ("qwen3.5-35b-a3b", 34.66),
        ("gemma-3-27b", 27.01),
        ("phi-4", 14.66),
        ("mixtral-8x7b", 46.70),
        ("mistral-small-24b", 23.57),
    ],
)
def test_parameters_to_the_last_digit_that_llama_bench_prints(key: str, billions: float) -> None:
    assert round(load_model(key).parameters / 1e9, 2) == billions


def test_no_alias_stands_for_two_models() -> None:
    seen: dict[str, str] = {}
    for key in list_models():
        for alias in read_toml(data_folder("models") / "architectures" / f"{key}.toml")["aliases"]:
            normalised = alias.lower().rsplit("/", 1)[-1]
            assert seen.setdefault(normalised, key) == key, normalised
            assert normalised not in list_models() or normalised == key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-235B-A22B-Instruct-2507-Q4_K_M-00001-of-00003.gguf", ("qwen3-235b-a22b", "q4_k_m")),
        ("unsloth/Qwen3-235B-A22B-GGUF:Q4_K_M", ("qwen3-235b-a22b", "q4_k_m")),
        ("unsloth/Qwen3-235B-A22B-GGUF", ("qwen3-235b-a22b", None)),
        ("/models/DeepSeek-R1-UD-Q2_K_XL-00001-of-00005.gguf", ("deepseek-r1", "ud_q2_k_xl")),
        ("DeepSeek-R1-Distill-Llama-70B-Q4_K_M.gguf", ("llama-3.3-70b", "q4_k_m")),
        ("DeepSeek-R1-0528-IQ2_K_R4-00001-of-00005.gguf", ("deepseek-r1", "iq2_k_r4")),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", ("llama-3.1-8b", None)),
        ("META_LLAMA-3.1-8B", ("llama-3.1-8b", None)),
        ("Mistral-7B-Instruct-v0.1.Q5_K_S.gguf", ("mistral-7b-v0.1", "q5_k_s")),
        ("gpt-oss-120b-mxfp4.gguf", ("gpt-oss-120b", "mxfp4_moe")),
        ("openai/gpt-oss-120b:mxfp4", ("gpt-oss-120b", "mxfp4")),
        ("gemma-3-27b-it-qat-Q4_0.gguf", ("gemma-3-27b", "q4_0")),
        ("facebook/opt-30b", ("opt-30b", None)),
        ("deepseek-v3-0324", ("deepseek-v3", None)),
        ("mixtral-8x7b:awq", ("mixtral-8x7b", "awq")),
        ("Qwen3-8B.i1-IQ2_XS.gguf", ("qwen3-8b", "iq2_xs")),
    ],
)
def test_names_of_published_files(name: str, expected: tuple[str, str | None]) -> None:
    assert identify_file_name(name) == expected


@pytest.mark.parametrize("name", ["qwen3-9b", "DeepSeek-R1-Distill-Unknown", "", "x" * 5000, "nul\0byte", "   "])
def test_an_unknown_name_gets_one_sentence(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_said_to_be_missing() -> None:
    with pytest.raises(BadFile, match="there is no such file"):
        load_model("/nowhere/mystery.gguf")


def test_near_misses_are_named() -> None:
    with pytest.raises(UnknownName) as caught:
        load_model("qwen3-235b-a23b")
    assert "qwen3-235b-a22b" in caught.value.nearest


def test_dynamic_mixes_are_refused_with_a_mend() -> None:
    with pytest.raises(InputError, match="@142GiB"):
        load_model("Qwen3-235B-A22B-UD-Q4_K_XL.gguf")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("hidden = 4096\n", "field 'hidden' is missing"),
        ("heads = 32\n", "field 'heads' is missing"),
        ("layers = 32\n", "field 'layers' is missing"),
    ],
)
def test_a_users_own_architecture_file(tmp_path: Path, change: str, sentence: str) -> None:
    text = (data_folder("models") / "architectures" / "llama-3.1-8b.toml").read_text()
    good, bad = tmp_path / "mine.toml", tmp_path / "bad.toml"
    good.write_text(text)
    assert load_model(str(good)).parameters == load_model("llama-3.1-8b").parameters
    bad.write_text(text.replace(change, "", 1))
    with pytest.raises(BadFile, match=sentence):
        load_model(str(bad))
    bad.write_text(text + "\n[attentoin]\nheads = 3\n")
    with pytest.raises(BadFile, match="attentoin"):
        load_model(str(bad))


@pytest.mark.parametrize(("key", "limit"), [("llama-3.3-70b", 0.015), ("deepseek-v3", 0.040)])
def test_loading_is_fast(key: str, limit: float) -> None:
    load_model(key, "q4_k_m")  # formats and mixes are read once
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load_model(key, "q4_k_m")
        times.append(time.perf_counter() - start)
    assert min(times) < limit
