"""config.json of users against the library's own facts."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from stowplan.errors import BadFile, StowplanError
from stowplan.models import load_facts, load_model, model_kv_bytes_per_token

BASE = {"torch_dtype": "bfloat16"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "qwen3-235b-a22b": {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "topk_method": "noaux_tc",
        "vocab_size": 129280,
        "max_position_embeddings": 163840,
    },
    "opt-30b": {
        "model_type": "opt",
        "hidden_size": 7168,
        "ffn_dim": 28672,
        "num_hidden_layers": 48,
        "num_attention_heads": 56,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "attention_bias": True,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "gemma-3-27b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "sliding_window": 1024,
            "vocab_size": 262144,
        },
    },
    "falcon-40b": {
        "model_type": "falcon",
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "new_decoder_architecture": True,
        "vocab_size": 65024,
        "tie_word_embeddings": False,
    },
    "bloom-176b": {"model_type": "bloom", "hidden_size": 14336, "n_layer": 70, "n_head": 112, "vocab_size": 250880},
    "phi-4": {
        "model_type": "phi3",
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "vocab_size": 100352,
        "max_position_embeddings": 16384,
        "sliding_window": None,
    },
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next",
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
    },
    "llama-4-maverick": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 128,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_chunk_size": 8192,
            "vocab_size": 202048,
            "max_position_embeddings": 1048576,
        },
    },
    "jamba-v0.1": {
        "model_type": "jamba",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 16,
        "mamba_dt_rank": 256,
        "vocab_size": 65536,
        "max_position_embeddings": 262144,
    },
    "dbrx": {
        "model_type": "dbrx",
        "d_model": 6144,
        "n_heads": 48,
        "n_layers": 40,
        "max_seq_len": 32768,
        "vocab_size": 100352,
        "attn_config": {"kv_n_heads": 8},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "command-r-plus": {
        "model_type": "cohere",
        "hidden_size": 12288,
        "intermediate_size": 33792,
        "num_hidden_layers": 64,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "use_qk_norm": True,
        "vocab_size": 256000,
        "max_position_embeddings": 131072,
    },
    "glm-4.5": {
        "model_type": "glm4_moe",
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 160,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "num_hidden_layers": 92,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "use_qk_norm": True,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
    },
}


def refusal(path: Path) -> str:
    """What is said about a file that is refused, nothing about one that is read."""
    try:
        load_model(str(path))
    except StowplanError as error:
        return str(error)
    return ""


def write(folder: Path, config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("key", CONFIGS)
def test_configs_give_the_librarys_models(key: str, tmp_path: Path) -> None:
    ours, theirs = load_model(key), load_model(write(tmp_path, BASE | CONFIGS[key]))
    assert [(t.name, t.role, t.rows, t.columns, t.count) for t in theirs.tensors] == [
        (t.name, t.role, t.rows, t.columns, t.count) for t in ours.tensors
    ]
    assert [layer.mixer for layer in theirs.layers] == [layer.mixer for layer in ours.layers]
    assert theirs.architecture == ours.architecture
    assert model_kv_bytes_per_token(theirs) == model_kv_bytes_per_token(ours)
    assert load_model(str(tmp_path / "config.json"), "q4_k_m").weight_bytes == load_model(key, "q4_k_m").weight_bytes


@pytest.mark.parametrize(
    ("section", "quant"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
            },
            "int8",
        ),
        (None, "bf16"),
    ],
)
def test_the_checkpoints_own_mix(section: dict[str, Any] | None, quant: str, tmp_path: Path) -> None:
    config = BASE | CONFIGS["llama-3.1-8b"] | ({"quantization_config": section} if section else {})
    assert load_model(write(tmp_path, config)).quant == quant


def test_an_unknown_type_is_read_as_llama_like_and_says_so(tmp_path: Path) -> None:
    config = CONFIGS["llama-3.1-8b"] | {"model_type": "brandnew"}
    model = load_model(write(tmp_path, config))
    assert model.parameters == load_model("llama-3.1-8b").parameters
    assert "'brandnew' is not known and was read as Llama-like" in model.origin
    assert "Llama-like" not in load_facts("llama-3.1-8b").origin


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"num_hidden_layers": "32"}, "field 'num_hidden_layers' is 32; it must be a whole number"),
        ({"num_hidden_layers": 10**9}, "from 1 to 2000"),
        ({"num_attention_heads": 7}, "'head_dim' is missing, and 7 heads do not divide 4096"),
        ({"num_key_value_heads": 5}, "cannot share 5"),
        ({"vocab_size": True}, "whole number"),
        ({"vocab_size": -1}, "whole number"),
        ({"num_local_experts": 4, "num_experts_per_tok": 9}, "9 active experts"),
        ({"quantization_config": {"quant_method": "magic"}}, "'magic' is not known"),
        ({"quantization_config": 3}, "expected a table"),
    ],
)
def test_bad_fields_get_one_sentence(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=sentence) as caught:
        load_model(write(tmp_path, CONFIGS["llama-3.1-8b"] | change))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":1,"a":2}',
        b"9" * 5000,
        b'{"hidden_size": 1e999}',
    ],
)
def test_what_is_no_config_gets_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadFile) as caught:
        load_model(str(tmp_path / "config.json"))
    assert "\n" not in str(caught.value)


def test_mutated_configs_never_crash(tmp_path: Path) -> None:
    chance = random.Random(7)
    file = tmp_path / "config.json"
    junk: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2.5,
        10**400,
        "x",
        [],
        {},
        [1],
        {"a": 1},
        float("inf"),
        float("nan"),
        7,
        2**33,
    ]
    for key in chance.choices(sorted(CONFIGS), k=600):
        config = json.loads(json.dumps(CONFIGS[key]))
        target = config.get("text_config", config) if chance.random() < 0.8 else config
        for name in chance.choices(sorted(target), k=chance.choice((1, 2, 5))):
            target[name] = chance.choice(junk)
        if "num_hidden_layers" in target and isinstance(target["num_hidden_layers"], int):
            target["num_hidden_layers"] = min(target["num_hidden_layers"], 4)
        content = bytearray(json.dumps(config).encode())
        if chance.random() < 0.3:
            content[chance.randrange(len(content))] = chance.randrange(256)
        file.write_bytes(content)
        sentence = refusal(file)
        assert "\n" not in sentence
        assert len(sentence) < 600
