"""Safetensors checkpoints: real sizes, shards, and what must be refused."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from stowplan.errors import BadFile, InputError, StowplanError
from stowplan.models import Role, load_model

MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
WIDTH = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4, "F16": 2}


def moe_tensors() -> dict[str, tuple[str, list[int]]]:
    """Names, types and shapes as transformers writes this model."""
    found = {
        "model.embed_tokens.weight": ("BF16", [100, 64]),
        "lm_head.weight": ("BF16", [100, 64]),
        "model.norm.weight": ("BF16", [64]),
    }
    for layer in range(2):
        at = f"model.layers.{layer}"
        for name, rows, columns in (("q", 64, 64), ("k", 32, 64), ("v", 32, 64), ("o", 64, 64)):
            found[f"{at}.self_attn.{name}_proj.weight"] = ("BF16", [rows, columns])
        for name in ("q_norm", "k_norm"):
            found[f"{at}.self_attn.{name}.weight"] = ("BF16", [16])
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{name}.weight"] = ("BF16", [64])
        found[f"{at}.mlp.gate.weight"] = ("BF16", [4, 64])
        for expert in range(4):
            for part, shape in (("gate", [32, 64]), ("up", [32, 64]), ("down", [64, 32])):
                found[f"{at}.mlp.experts.{expert}.{part}_proj.weight"] = ("BF16", shape)
    return found


def refusal(path: Path) -> str:
    """What is said about a file that is refused, nothing about one that is read."""
    try:
        load_model(str(path))
    except StowplanError as error:
        return str(error)
    return ""


def size_of(kind: str, shape: list[int]) -> int:
    size = WIDTH[kind]
    for length in shape:
        size *= length
    return size


def packed(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size_of(kind, shape)]}
        at += size_of(kind, shape)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def write(folder: Path, content: bytes, config: dict[str, Any] = MOE) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(content)
    return folder / "model.safetensors"


def test_sizes_come_from_the_file(tmp_path: Path) -> None:
    tensors = moe_tensors()
    total = sum(size_of(*entry) for entry in tensors.values())
    path = write(tmp_path, packed(tensors))
    model = load_model(str(path))
    assert model.weight_bytes == total
    assert model.parameters == total // 2
    assert not any(t.role is Role.OTHER for t in model.tensors)
    expert = next(t for t in model.tensors if t.name == "blk.1.ffn_down_exps.weight")
    assert (expert.bytes, expert.count, expert.format) == (4 * 64 * 32 * 2, 4, "bf16")
    assert load_model(str(tmp_path)).tensors == model.tensors
    with pytest.raises(InputError, match="leave the quantization"):
        load_model(str(path), "q4_k_m")


def test_scales_belong_to_their_tensors_and_strays_are_kept(tmp_path: Path) -> None:
    tensors = moe_tensors()
    tensors["model.layers.0.self_attn.q_proj.weight"] = ("F8_E4M3", [64, 64])
    tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"] = ("F32", [1, 1])
    tensors["visual.patch.weight"] = ("BF16", [10, 10])
    tensors["model.layers.1.mystery.weight"] = ("BF16", [7])
    model = load_model(str(write(tmp_path, packed(tensors))))
    query = next(t for t in model.tensors if t.name == "blk.0.attn_q.weight")
    assert (query.format, query.bytes) == ("fp8", 64 * 64 + 4)
    assert model.weight_bytes == sum(size_of(*entry) for entry in tensors.values())
    post = next(t for t in model.layers[1].tensors if t.name == "blk.1.other")
    assert post.bytes == 14


def test_shards_by_the_index(tmp_path: Path) -> None:
    tensors = list(moe_tensors().items())
    half = len(tensors) // 2
    weights: dict[str, str] = {}
    for number, part in enumerate((tensors[:half], tensors[half:]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        (tmp_path / name).write_bytes(packed(dict(part)))
        weights |= {tensor: name for tensor, _ in part}
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    expected = sum(size_of(*entry) for _, entry in tensors)
    assert load_model(str(tmp_path)).weight_bytes == expected
    assert load_model(str(index)).weight_bytes == expected
    assert load_model(str(tmp_path / "model-00001-of-00002.safetensors")).weight_bytes == expected
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(BadFile, match="files of this folder"):
        load_model(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(BadFile, match="cannot be read"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "truncated"),
        (b"\x01", "truncated"),
        (struct.pack("<Q", 2**63), "truncated"),
        (struct.pack("<Q", 5) + b"[1,2]", "expected a table"),
        (struct.pack("<Q", 2) + b"{]", "not valid JSON"),
        (struct.pack("<Q", 7) + b'{"a":1}', "expected a table"),
        (struct.pack("<Q", 8) + b'{"a":{}}', "data_offsets"),
        (packed({"a": ("BF16", [4])})[:-1], "ends 1 bytes too late"),
        (packed({"a": ("BF16", [4]), "b": ("BF16", [4])}).replace(b"[8, 16]", b"[7, 16]"), "same place"),
        (packed({"aa": ("BF16", [4]), "bb": ("BF16", [4])}).replace(b'"bb"', b'"aa"'), "given twice"),
    ],
)
def test_corrupt_files_get_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=sentence) as caught:
        load_model(str(write(tmp_path, content)))
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_needs_its_config(tmp_path: Path) -> None:
    path = write(tmp_path, packed(moe_tensors()))
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadFile, match=r"config\.json"):
        load_model(str(path))


def test_mutated_files_never_crash(tmp_path: Path) -> None:
    good = packed(moe_tensors())
    chance = random.Random(11)
    path = write(tmp_path, good)
    end = 8 + int.from_bytes(good[:8], "little")
    for _ in range(400):
        content = bytearray(good)
        for _ in range(chance.choice((1, 2, 10))):
            content[chance.randrange(end)] = chance.choice((0, 34, 44, 57, 91, 123, 125, 255, chance.randrange(256)))
        if chance.random() < 0.2:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(content)
        assert "\n" not in refusal(path)
