"""Sizes of storage mixes against files that people measured."""

import pytest

from stowplan.errors import InputError, StowplanError, UnknownName
from stowplan.models import EXPERT_ROLES, Role, load_format, load_model, mixes

QUANTIZE_README = "ggml-org/llama.cpp tools/quantize/README.md, bits/weight of Llama 3.1 8B"
BENCH_TABLES = "size column of llama-bench tables"

# The README's iq4 files were made without an importance matrix, which gives the first eighth of ffn_down more bits.
BITS_OF_LLAMA_8B = {
    "iq1_s": 2.0042,
    "iq1_m": 2.1460,
    "iq2_xxs": 2.3824,
    "iq2_xs": 2.5882,
    "iq2_s": 2.7403,
    "iq2_m": 2.9294,
    "iq3_xxs": 3.2548,
    "iq3_xs": 3.4977,
    "iq3_s": 3.6606,
    "iq3_m": 3.7628,
    "q2_k_s": 2.9697,
    "q2_k": 3.1593,
    "q3_k_s": 3.6429,
    "q3_k_l": 4.2979,
    "q4_k_s": 4.6672,
    "q4_k_m": 4.8944,
    "q5_k_s": 5.5704,
    "q5_k_m": 5.7036,
    "q6_k": 6.5633,
    "q8_0": 8.5008,
    "f16": 16.0005,
}
GIB = [
    ("llama-3.1-8b", "iq4_xs", 4.17, QUANTIZE_README),
    ("llama-3.1-8b", "iq4_nl", 4.38, QUANTIZE_README),
    ("llama-3-8b", "q4_k_m", 4.58, "XiongjieDai/GPU-Benchmarks-on-LLM-Inference"),
    ("llama-3-8b", "f16", 14.96, "XiongjieDai/GPU-Benchmarks-on-LLM-Inference"),
    ("llama-3-70b", "q4_k_m", 39.59, "XiongjieDai/GPU-Benchmarks-on-LLM-Inference"),
    ("llama-2-7b", "q4_0", 3.56, BENCH_TABLES),
    ("llama-2-7b", "q4_k_m", 3.80, BENCH_TABLES),
    ("mixtral-8x7b", "q4_k_m", 26.49, BENCH_TABLES),  # files made before March 2024 are 24.62 GiB
    ("qwen3-235b-a22b", "q8_0", 232.77, "ikawrakow/ik_llama.cpp discussion 357"),
    ("qwen3-235b-a22b", "q4_k_m", 132.39, BENCH_TABLES),
    ("qwen3-30b-a3b", "iq4_xs", 15.24, "ikawrakow/ik_llama.cpp issue 437"),
    ("qwen3-30b-a3b", "q4_k_m", 17.28, BENCH_TABLES),
    ("qwen2.5-32b", "q4_k_m", 18.48, BENCH_TABLES),
    ("qwen3-14b", "q4_k_m", 8.38, BENCH_TABLES),
    ("mistral-small-24b", "q4_k_m", 13.34, BENCH_TABLES),
    ("gemma-3-27b", "q4_k_m", 15.40, BENCH_TABLES),
    ("phi-4", "q4_k_m", 8.43, BENCH_TABLES),
    ("gpt-oss-20b", "mxfp4_moe", 11.27, BENCH_TABLES),
    ("gpt-oss-120b", "mxfp4_moe", 59.02, BENCH_TABLES),
    ("gpt-oss-20b", "f16", 12.83, BENCH_TABLES),
    ("gpt-oss-120b", "f16", 60.9, "ai-maestro.online, F16 file with MXFP4 experts"),
    ("deepseek-r1", "q4_k_m", 376.65, BENCH_TABLES),
    ("deepseek-v3", "q8_0", 664.29, BENCH_TABLES),
    ("kimi-k2", "q4_k_m", 579.28, BENCH_TABLES),
    ("glm-4.5-air", "q4_k_m", 65.71, BENCH_TABLES),
    ("qwen3-next-80b-a3b", "q4_k_m", 45.08, BENCH_TABLES),
]


@pytest.mark.parametrize(("mix", "bits"), BITS_OF_LLAMA_8B.items())
def test_bits_per_weight_to_the_last_digit(mix: str, bits: float) -> None:
    model = load_model("llama-3.1-8b", mix)
    assert 8 * model.weight_bytes / model.parameters == pytest.approx(bits, abs=0.00011)


@pytest.mark.parametrize(("key", "mix", "gib", "source"), GIB)
def test_sizes_of_published_files(key: str, mix: str, gib: float, source: str) -> None:
    assert load_model(key, mix).weight_bytes / 2**30 == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize("key", ["qwen3-235b-a22b", "llama-3.1-8b", "deepseek-v3", "jamba-v0.1", "falcon-7b"])
def test_every_mix_can_be_made_and_stays_in_order(key: str) -> None:
    sizes = {name: load_model(key, name).weight_bytes for name in mixes()}
    assert sizes["f32"] > sizes["f16"] > sizes["q8_0"] > sizes["q6_k"] > sizes["q5_k_m"] > sizes["q4_k_m"]
    assert sizes["q4_k_m"] >= sizes["q4_k_s"] > sizes["q3_k_m"] > sizes["q2_k"] > 0


def test_norms_and_routers_are_never_packed() -> None:
    for tensor in load_model("qwen3-235b-a22b", "q4_k_m").tensors:
        if tensor.role in {Role.ROUTER, Role.ATTN_NORM, Role.FFN_NORM, Role.OUTPUT_NORM}:
            assert tensor.format == "f32"


def test_rows_that_fit_no_block_fall_back() -> None:
    formats = {t.role: t.format for t in load_model("gpt-oss-20b", "q4_k_m").layers[5].tensors if t.columns > 1}
    assert formats[Role.ATTN_Q] == "q5_0"  # 2880 = 11.25 blocks of 256
    assert formats[Role.EXPERT_UP] == "mxfp4"  # published so, and copied
    assert load_model("falcon-7b", "q2_k").layers[9].tensors[-1].format == "q3_k"  # 18176 = 71 blocks


@pytest.mark.parametrize("spec", ["q4_k_m@142GiB", "q8_0@150 GiB", "@130GB", "ud-q4_k_xl@125GiB"])
def test_a_mix_scaled_to_a_size_has_exactly_that_size(spec: str) -> None:
    model = load_model("qwen3-235b-a22b", spec)
    number = float("".join(c for c in spec.rpartition("@")[2] if c.isdecimal()))
    assert model.weight_bytes == load_model("qwen3-235b-a22b", model.quant).weight_bytes
    assert model.weight_bytes == number * (2**30 if "GiB" in spec else 10**9)
    scaled = {t.format for t in model.tensors if t.role in EXPERT_ROLES}
    assert len(scaled) == 1
    bits = load_format(scaled.pop()).bits_per_weight
    experts = [t for t in model.tensors if t.role in EXPERT_ROLES]
    assert 8 * sum(t.bytes for t in experts) / sum(t.elements for t in experts) == pytest.approx(bits, abs=1e-4)


def test_one_format_of_stated_size_is_that_of_the_experts_alone() -> None:
    model = load_model("deepseek-v3", "iq1_s_r4@130.2GiB")
    assert model.weight_bytes == round(130.2 * 2**30)
    others = {t.format for t in model.tensors if t.role not in EXPERT_ROLES and t.name.endswith("weight")}
    assert others == {"q6_k", "q8_0", "f32"}  # rows of 128 weights have no q6_k
    dense = load_model("llama-3.1-8b", "iq2_k_r4@3GiB")  # nothing is routed
    assert "q6_k" not in {t.format for t in dense.layers[5].tensors}


def test_bits_per_weight_as_a_mix() -> None:
    for key in ("llama-3.1-8b", "deepseek-v3"):
        model = load_model(key, "3.5bpw")
        assert 8 * model.weight_bytes / model.parameters == pytest.approx(3.5, abs=1e-6)


@pytest.mark.parametrize(
    "spec",
    ["q4_k_m@1GiB", "q4_k_m@9999TiB", "q9_z", "", "@", "q4_k_m@", "q4_k_m@12", "0bpw", "99bpw", "1e9bpw", "q" * 9999],
)
def test_impossible_mixes_get_one_sentence(spec: str) -> None:
    if spec == "":
        assert load_model("llama-3.1-8b", spec).quant == "bf16"
        return
    with pytest.raises(StowplanError) as caught:
        load_model("llama-3.1-8b", spec)
    assert isinstance(caught.value, InputError | UnknownName)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("mix", "bits"), [("fp8", 8), ("int8", 8), ("awq", 4.16), ("gptq", 4.16), ("nvfp4", 4.5)])
def test_checkpoints_of_gpu_engines(mix: str, bits: float) -> None:
    model = load_model("llama-3.1-70b", mix)
    linear = [t for t in model.tensors if t.format == mix]
    assert 8 * sum(t.bytes for t in linear) / sum(t.elements for t in linear) == pytest.approx(bits, abs=0.01)
    assert {t.role for t in model.tensors if t.format != mix} >= {Role.TOKEN_EMBEDDING, Role.OUTPUT, Role.ATTN_NORM}
