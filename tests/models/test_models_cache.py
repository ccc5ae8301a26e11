"""What layers keep per token and per sequence."""

import json
from pathlib import Path

import pytest

from stowplan.errors import UnknownName
from stowplan.models import (
    Attention,
    Recurrence,
    identify_file_name,
    kv_bytes_per_token,
    load_model,
    model_kv_bytes_per_token,
    positions_kept,
    sequence_bytes,
    state_bytes,
)

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "models.json"


def test_kv_bytes_per_token_against_reference() -> None:
    if not REFERENCE.exists():
        pytest.skip("the reference data are not here")
    compared = 0
    for row in json.loads(REFERENCE.read_text()):
        try:
            key, _ = identify_file_name(row["name"].split(" ")[0])
        except UnknownName:
            continue
        expected = row["kv_bytes_per_token_fp16"]
        assert model_kv_bytes_per_token(load_model(key)) == expected, key
        compared += 1
    assert compared >= 60


@pytest.mark.parametrize(
    ("key", "expected"),
    [("llama-3.1-8b", 131072), ("deepseek-v3", 70272), ("qwen3-235b-a22b", 192512), ("opt-175b", 4718592)],
)
def test_kv_bytes_per_token(key: str, expected: int) -> None:
    model = load_model(key)
    assert model_kv_bytes_per_token(model) == expected
    assert model_kv_bytes_per_token(model, "q8_0", "q8_0") == pytest.approx(expected * 34 / 64)


def test_keys_and_values_may_differ() -> None:
    mixer = Attention(heads=8, kv_heads=2, head_dim=64, value_dim=128)
    assert kv_bytes_per_token(mixer, "f16", "fp8") == 2 * 64 * 2 + 2 * 128


def test_windows_bound_what_is_kept() -> None:
    model = load_model("gpt-oss-20b")
    windows = [layer.mixer.window for layer in model.layers if isinstance(layer.mixer, Attention)]
    assert windows == [128, None] * 12
    assert [positions_kept(layer.mixer, 4096) for layer in model.layers[:2]] == [128, 4096]
    per_layer = 2 * 8 * 64 * 2
    assert sequence_bytes(model, 4096) == 12 * per_layer * (128 + 4096)
    gemma = load_model("gemma-3-27b")
    assert [i for i, layer in enumerate(gemma.layers) if positions_kept(layer.mixer, 9999) == 9999] == list(
        range(5, 62, 6)
    )


def test_recurrent_states() -> None:
    model = load_model("qwen3.5-27b")
    linear = [layer for layer in model.layers if isinstance(layer.mixer, Recurrence)]
    assert len(linear) == 48
    convolution = 3 * (2 * 16 * 128 + 48 * 128) * 4
    assert state_bytes(linear[0].mixer) == 3145728 + convolution
    assert kv_bytes_per_token(linear[0].mixer) == 0
    assert sequence_bytes(model, 0) == 48 * state_bytes(linear[0].mixer)
    assert [layer.index for layer in load_model("jamba-v0.1").layers if isinstance(layer.mixer, Attention)] == [
        4,
        12,
        20,
        28,
    ]
