"""GGUF files: round trips through two independent writers, split files, and what must be refused."""

import random
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stowplan.errors import BadFile, InputError, StowplanError
from stowplan.models import Facts, Model, build_model, formats, load_facts, load_model
from stowplan.models.gguf_header import parse_header


def shrink(facts: Facts, layers: int = 4) -> Facts:
    """The same kind of model with few layers and experts, so that its files stay small."""
    moe = facts.experts
    few = replace(moe, total=8, active=2, dense_layers=min(1, moe.dense_layers)) if moe else None
    return replace(facts, layers=layers, vocabulary=512, experts=few, published=None)


@pytest.fixture
def small_facts() -> Facts:
    return replace(shrink(load_facts("qwen3-30b-a3b"), layers=2), hidden=256)


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def entry(value: Any) -> bytes:
    """Type number and value, as metadata has them."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value) if value >= 2**32 else struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    elements = [entry(item) for item in value]
    kind = elements[0][:4] if elements else struct.pack("<I", 8)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(elements)) + b"".join(e[4:] for e in elements)


def header(
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, Sequence[int], int, int]],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Header with tensors given as (name, shape fastest first, format number, offset), padded to the data's start."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    parts += [text(key) + entry(value) for key, value in metadata.items()]
    for name, shape, kind, offset in tensors:
        parts.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape))
        parts.append(struct.pack("<IQ", kind, offset))
    content = b"".join(parts)
    return content + bytes(-len(content) % alignment)


def describe(model: Model) -> list[tuple[str, list[int], int, int, int]]:
    """Tensors of a model as a file describes them: name, shape, format number, offset, bytes."""
    rows, offset = [], 0
    for tensor in model.tensors:
        shape = [tensor.columns, tensor.rows] if tensor.columns > 1 else [tensor.rows]
        shape += [tensor.count] if tensor.count > 1 else []
        number = formats()[tensor.format].ggml_id
        assert number is not None
        rows.append((tensor.name, shape, number, offset, tensor.bytes))
        offset += -(-tensor.bytes // 32) * 32
    return rows


def metadata_of(facts: Facts) -> dict[str, Any]:
    """Metadata as llama.cpp's converter writes it, of what the reader needs."""
    prefix = facts.architecture
    found: dict[str, Any] = {
        "general.architecture": prefix,
        "general.name": facts.name,
        "general.file_type": 15,
        f"{prefix}.block_count": facts.layers,
        f"{prefix}.context_length": facts.max_context,
        f"{prefix}.embedding_length": facts.hidden,
        f"{prefix}.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(500)],
        "tokenizer.ggml.scores": [0.5] * 6000,
    }
    if soft := facts.attention:
        found |= {
            f"{prefix}.attention.head_count": soft.heads,
            f"{prefix}.attention.head_count_kv": soft.kv_heads,
            f"{prefix}.attention.key_length": soft.head_dim,
            f"{prefix}.attention.value_length": soft.value_dim,
        }
        if soft.window:
            found[f"{prefix}.attention.sliding_window"] = soft.window
    if mla := facts.latent:
        found |= {
            f"{prefix}.attention.head_count": mla.heads,
            f"{prefix}.attention.head_count_kv": 1,
            f"{prefix}.attention.key_length": mla.kv_rank + mla.rope_dim,
            f"{prefix}.attention.value_length": mla.kv_rank,
            f"{prefix}.attention.key_length_mla": mla.nope_dim + mla.rope_dim,
            f"{prefix}.attention.value_length_mla": mla.value_dim,
            f"{prefix}.attention.kv_lora_rank": mla.kv_rank,
            f"{prefix}.rope.dimension_count": mla.rope_dim,
        }
        if mla.selected:
            found[f"{prefix}.attention.indexer.top_k"] = mla.selected
    if linear := facts.recurrence:
        mamba = linear.kind == "mamba"
        found |= {
            f"{prefix}.ssm.conv_kernel": linear.conv,
            f"{prefix}.ssm.state_size": linear.state if mamba else linear.key_dim,
            f"{prefix}.ssm.group_count": 0 if mamba else linear.key_heads,
            f"{prefix}.ssm.time_step_rank": linear.rank if mamba else linear.value_heads,
            f"{prefix}.ssm.inner_size": linear.inner if mamba else linear.value_heads * linear.value_dim,
        }
    if moe := facts.experts:
        found |= {f"{prefix}.expert_count": moe.total, f"{prefix}.expert_used_count": moe.active}
    return found


def write_model(path: Path, model: Model, facts: Facts, version: int = 3) -> None:
    """A file with the model's header and, as a hole, the room that its weights take."""
    rows = describe(model)
    start = header(metadata_of(facts), [row[:4] for row in rows], version)
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + rows[-1][3] + rows[-1][4])


KINDS = (
    "llama-3.1-8b",
    "qwen3-30b-a3b",
    "qwen2.5-7b",
    "mixtral-8x7b",
    "deepseek-v3",
    "deepseek-v2-lite",
    "deepseek-v3.2",
    "gpt-oss-20b",
    "gemma-2-9b",
    "gemma-3-4b",
    "phi-4",
    "falcon-40b",
    "bloom-176b",
    "qwen3-next-80b-a3b",
    "jamba-v0.1",
    "llama-4-maverick",
    "glm-4.5-air",
    "minimax-m2",
    "command-r-plus",
    "dbrx",
)


def refusal(path: Path) -> str:
    """What is said about a file that is refused, nothing about one that is read."""
    try:
        load_model(str(path))
    except StowplanError as error:
        return str(error)
    return ""


def same(found: Model, expected: Model) -> None:
    assert found.tensors == expected.tensors
    assert [layer.mixer for layer in found.layers] == [layer.mixer for layer in expected.layers]
    assert [layer.experts for layer in found.layers] == [layer.experts for layer in expected.layers]
    for name in ("architecture", "name", "quant", "hidden", "vocabulary", "max_context", "tied"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("key", KINDS)
def test_round_trip(key: str, tmp_path: Path) -> None:
    facts = shrink(load_facts(key), layers=8)
    expected = build_model(facts, "q4_k_m")
    write_model(tmp_path / "model.gguf", expected, facts)
    same(load_model(str(tmp_path / "model.gguf")), expected)


def test_version_2_is_read_too(tmp_path: Path, small_facts: Facts) -> None:
    expected = build_model(small_facts, "q4_k_m")
    write_model(tmp_path / "model.gguf", expected, small_facts, version=2)
    same(load_model(str(tmp_path / "model.gguf")), expected)


def test_round_trip_through_the_gguf_package(tmp_path: Path, small_facts: Facts) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    numpy = pytest.importorskip("numpy")
    expected = build_model(small_facts, "q8_0")
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, small_facts.architecture)
    soft, moe = small_facts.attention, small_facts.experts
    assert soft is not None
    assert moe is not None
    writer.add_name(small_facts.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(small_facts.layers)
    writer.add_context_length(small_facts.max_context)
    writer.add_embedding_length(small_facts.hidden)
    writer.add_head_count(soft.heads)
    writer.add_head_count_kv(soft.kv_heads)
    writer.add_key_length(soft.head_dim)
    writer.add_value_length(soft.value_dim)
    writer.add_expert_count(moe.total)
    writer.add_expert_used_count(moe.active)
    writer.add_token_list([f"t{i}" for i in range(300)])
    for name, shape, number, _, size in describe(expected):
        kind = gguf.GGMLQuantizationType(number)
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, numpy.zeros(shape[::-1], dtype=numpy.float32))
            continue
        packed = [*shape[:0:-1], size // (size // size * _rows(shape))]
        writer.add_tensor(name, numpy.zeros(packed, dtype=numpy.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same(load_model(str(path)), expected)


def _rows(shape: list[int]) -> int:
    rows = 1
    for length in shape[1:]:
        rows *= length
    return rows


def test_split_files_are_read_together(tmp_path: Path, small_facts: Facts) -> None:
    expected = build_model(small_facts, "q4_k_m")
    rows = describe(expected)
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:]), start=1):
        first = part[0][3]
        described = [(name, shape, kind, offset - first) for name, shape, kind, offset, _ in part]
        start = header(metadata_of(small_facts) if number == 1 else {"split.no": 1}, described)
        with (tmp_path / f"m-{number:05d}-of-00002.gguf").open("wb") as stream:
            stream.write(start)
            stream.truncate(len(start) + part[-1][3] + part[-1][4] - first)
    same(load_model(str(tmp_path / "m-00001-of-00002.gguf")), expected)
    same(load_model(str(tmp_path)), expected)
    assert load_model(str(tmp_path / "m-00002-of-00002.gguf")).key == "m"
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(BadFile, match="is missing; all 2 parts"):
        load_model(str(tmp_path / "m-00002-of-00002.gguf"))


def test_layers_for_speculation_are_left_out(tmp_path: Path) -> None:
    facts = shrink(load_facts("glm-4.5-air"), layers=5)
    metadata = metadata_of(facts) | {"glm4moe.nextn_predict_layers": 1}
    rows = describe(build_model(facts, "q8_0"))
    start = header(metadata, [row[:4] for row in rows])
    with (tmp_path / "m.gguf").open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + rows[-1][3] + rows[-1][4])
    model = load_model(str(tmp_path / "m.gguf"))
    assert len(model.layers) == 4
    assert "1 layers for speculative decoding left out" in model.origin


def test_a_file_takes_no_other_mix(tmp_path: Path, small_facts: Facts) -> None:
    write_model(tmp_path / "m.gguf", build_model(small_facts, "q8_0"), small_facts)
    with pytest.raises(InputError, match="leave the quantization"):
        load_model(str(tmp_path / "m.gguf"), "q4_k_m")


F32 = 0
TENSOR: tuple[str, list[int], int, int] = ("blk.0.attn_norm.weight", [64], F32, 0)
META: dict[str, Any] = {"general.architecture": "llama"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "truncated"),
        (b"GGUF", "truncated"),
        (b"GGML" + bytes(40), "no GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "version 50331648"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 0), "more than any model"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60), "more than any model"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63), "metadata key"),
        (header(META, [TENSOR]), "truncated: its tensors need"),
        (header(META, [TENSOR, TENSOR]) + bytes(512), "twice"),
        (header(META, [TENSOR, ("b", [64], F32, 128)]) + bytes(512), "same place"),
        (header(META, [("b", [64], 999, 0)]) + bytes(512), "format number 999"),
        (header(META, [("b", [100], 12, 0)]) + bytes(512), "do not fit blocks"),
        (header(META, [("b", [2**40, 2**40], F32, 0)]) + bytes(512), "impossible shape"),
        (header(META, [("b", [0], F32, 0)]) + bytes(512), "impossible shape"),
        (header(META, [("b", [1, 1, 1, 1, 1], F32, 0)]) + bytes(512), "5 dimensions"),
        (header({}, [TENSOR]) + bytes(512), "general.architecture"),
        (header(META, [TENSOR]) + bytes(512), "llama.block_count"),
        (header(META | {"llama.block_count": 2**31}, [TENSOR]) + bytes(512), "from 1 to 2000"),
        (header(META | {"llama.block_count": "many"}, [TENSOR]) + bytes(512), "it must be a whole number"),
        (header(META | {"llama.block_count": 2}, [TENSOR]) + bytes(512), "no tensors for some"),
        (header(META | {"general.alignment": 33}, [TENSOR]) + bytes(512), "power of two"),
        (header(META, [TENSOR]).replace(b"llama", b"\xff\xfe\xfd\xfc\xfb") + bytes(512), "not UTF-8"),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**40),
            "more than any vocabulary",
        ),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
            + struct.pack("<Q", 1)
            + b"k"
            + struct.pack("<I", 9)
            + struct.pack("<IQ", 9, 1) * 50,
            "nested too deeply",
        ),
    ],
)
def test_corrupt_files_get_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=sentence) as caught:
        load_model(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_windows_by_the_files_own_pattern(tmp_path: Path) -> None:
    facts = shrink(load_facts("gemma-3-4b"), layers=6)
    rows = describe(build_model(facts, "q8_0"))
    metadata = metadata_of(facts) | {"gemma3.attention.sliding_window_pattern": [True, False] * 3}
    start = header(metadata, [row[:4] for row in rows])
    with (tmp_path / "m.gguf").open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + rows[-1][3] + rows[-1][4])
    mixers = [layer.mixer for layer in load_model(str(tmp_path / "m.gguf")).layers]
    assert [mixer.window for mixer in mixers if hasattr(mixer, "window")] == [1024, None] * 3


def test_joined_latent_matrix_of_older_files(tmp_path: Path) -> None:
    facts = shrink(load_facts("deepseek-v2-lite"))
    assert facts.latent is not None
    older = replace(facts, latent=replace(facts.latent, joined=True))
    write_model(tmp_path / "m.gguf", build_model(older, "q4_k_m"), older)
    model = load_model(str(tmp_path / "m.gguf"))
    assert model.parameters == build_model(facts).parameters
    assert any(t.name == "blk.0.attn_kv_b.weight" for t in model.tensors)


def test_mutated_files_are_refused_or_read_but_never_crash(tmp_path: Path, small_facts: Facts) -> None:
    expected = build_model(small_facts, "q4_k_m")
    rows = describe(expected)
    start = header(metadata_of(small_facts), [row[:4] for row in rows])
    size = len(start) + rows[-1][3] + rows[-1][4]
    path = tmp_path / "m.gguf"
    chance = random.Random(20240229)
    path.write_bytes(start)
    began = time.perf_counter()
    refused = 0
    for round_number in range(1500):
        content = bytearray(start)
        for _ in range(chance.choice((1, 1, 2, 8, 40))):
            at = chance.randrange(len(content))
            content[at] = chance.choice((0, 1, 8, 9, 127, 255, chance.randrange(256)))
        if round_number % 5 == 0:
            del content[chance.randrange(len(content)) :]
        with path.open("r+b") as stream:
            stream.truncate(0)
            stream.write(content)
            if round_number % 5:
                stream.truncate(size)
        sentence = refusal(path)
        refused += bool(sentence)
        assert "\n" not in sentence
        assert len(sentence) < 500
    assert refused > 300
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("kind", [8, 9, 10, 4])
def test_huge_counts_cost_no_time(kind: int) -> None:
    start = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    content = start + struct.pack("<IIQ", 9, kind, 2**63) + bytes(1000)
    began = time.process_time()
    with pytest.raises(BadFile):
        parse_header(content, "m.gguf")
    assert time.process_time() - began < 0.1
