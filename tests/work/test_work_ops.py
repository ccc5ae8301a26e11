"""Operators of a step: FLOPs, weight bytes, attention pairs and cache traffic against independent counts."""

from __future__ import annotations

import math
import random
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.models import load_model
from stowplan.models.model import (
    EXPERT_ROLES,
    Attention,
    Experts,
    LatentAttention,
    Layer,
    Recurrence,
    Role,
    Tensor,
)
from stowplan.ops import (
    CacheFormat,
    Kind,
    Operator,
    Part,
    Step,
    cached_tokens,
    distinct_experts,
    embedding_operator,
    ffn_operators,
    mixer_operators,
    output_operator,
    part_of,
    step_operators,
    visible_pairs,
)

DENSE = ("llama-3.1-8b", "qwen2.5-0.5b", "mistral-7b", "phi-4", "gemma-2-9b", "opt-6.7b", "falcon-7b", "command-r")
ROUTED = ("mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "glm-4.5-air", "llama-4-scout")
CACHE = CacheFormat()


def operators(key: str, step: Step, quant: str = "q4_k_m") -> list[Operator]:
    return list(step_operators(load_model(key, quant), step, CACHE))


def total_flops(found: list[Operator], kind: Kind) -> float:
    return sum(op.flops for op in found if op.kind is kind)


def matrix_weights(key: str, *, active: bool) -> float:
    """Weights of matrices that a token is multiplied with, counted from the tensors alone."""
    model = load_model(key, "f16")
    total = 0.0
    for layer in model.layers:
        for tensor in layer.tensors:
            if tensor.columns > 1:
                routed = tensor.role in EXPERT_ROLES and layer.experts is not None and active
                share = layer.experts.active / layer.experts.total if routed and layer.experts else 1.0
                total += tensor.rows * tensor.columns * tensor.count * share
    return total + model.vocabulary * model.hidden


@pytest.mark.parametrize("key", DENSE + ROUTED)
@pytest.mark.parametrize("tokens", [1, 7, 512])
def test_matrix_products_cost_two_flops_per_active_weight_and_token(key: str, tokens: int) -> None:
    found = operators(key, Step(tokens, ((100, 1),), tokens))
    assert total_flops(found, Kind.MATMUL) == pytest.approx(2 * tokens * matrix_weights(key, active=True), rel=1e-12)


@pytest.mark.parametrize("key", DENSE + ROUTED)
def test_the_rule_of_thumb_of_two_flops_per_parameter(key: str) -> None:
    model = load_model(key, "f16")
    flops = total_flops(operators(key, Step.decode(1, 0)), Kind.MATMUL)
    positions = sum(t.elements for t in model.globals if t.role is Role.POSITION_EMBEDDING)
    assert flops == pytest.approx(2 * (model.active_parameters - positions), rel=2e-3)


def test_published_totals_of_llama() -> None:
    """8.03e9 parameters, of which the embedding's 128256 x 4096 are looked up."""
    flops = total_flops(operators("llama-3.1-8b", Step.decode(1, 0)), Kind.MATMUL)
    assert flops == pytest.approx(2 * (8.03e9 - 128256 * 4096), rel=1e-3)


@pytest.mark.parametrize("key", DENSE)
@pytest.mark.parametrize("quant", ["f16", "q4_k_m", "q8_0"])
def test_a_decode_step_of_a_dense_model_reads_every_stored_matrix_once(key: str, quant: str) -> None:
    model = load_model(key, quant)
    found = list(step_operators(model, Step.decode(1, 10), CACHE))
    stored = sum(t.bytes for layer in model.layers for t in layer.tensors if t.columns > 1)
    output = next(t for t in model.globals if t.role is (Role.TOKEN_EMBEDDING if model.tied else Role.OUTPUT))
    table = next(t for t in model.globals if t.role is Role.TOKEN_EMBEDDING)
    expected = stored + output.bytes + table.bytes / table.rows
    assert sum(op.weight_bytes for op in found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("key", ROUTED)
def test_a_decode_step_of_a_routed_model_reads_only_the_active_experts(key: str) -> None:
    model = load_model(key, "q4_k_m")
    for layer in model.layers:
        for op in ffn_operators(layer, 1):
            tensors = [t for t in layer.tensors if t.role.value == op.name and t.columns > 1]
            share = layer.experts.active / layer.experts.total if layer.experts and op.name.endswith("exps") else 1.0
            assert op.weight_bytes == pytest.approx(sum(t.bytes for t in tensors) * share, rel=1e-12)


@pytest.mark.parametrize("key", DENSE + ROUTED)
def test_every_matrix_of_a_layer_is_one_operator(key: str) -> None:
    model = load_model(key, "q4_k_m")
    for layer in model.layers:
        ops = [op for op in (*mixer_operators(layer, Step.decode(1, 5), CACHE), *ffn_operators(layer, 1)) if op.n > 1]
        products = [op for op in ops if op.kind is Kind.MATMUL]
        assert len(products) == sum(tensor.columns > 1 for tensor in layer.tensors)


def test_the_attention_output_follows_the_attention_and_the_router_comes_first() -> None:
    model = load_model("qwen3-30b-a3b", "q4_k_m")
    names = [op.name for op in mixer_operators(model.layers[0], Step.decode(1, 5), CACHE)]
    assert names == ["attn_q", "attn_k", "attn_v", "attention", "attn_output"]
    names = [op.name for op in ffn_operators(model.layers[0], 1)]
    assert names == ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]


def pairs_by_loop(new: int, past: int, window: int | None) -> int:
    count = 0
    for query in range(past, past + new):
        for key in range(query + 1):
            count += window is None or query - key < window
    return count


def cached_by_loop(new: int, past: int, window: int | None) -> int:
    seen = {
        key for query in range(past, past + new) for key in range(query + 1) if window is None or query - key < window
    }
    return len(seen)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 40), st.integers(0, 60), st.none() | st.integers(1, 50))
def test_attention_pairs_equal_a_loop_over_queries_and_keys(new: int, past: int, window: int | None) -> None:
    assert visible_pairs(new, past, window) == pairs_by_loop(new, past, window)
    assert cached_tokens(past, new, window) == cached_by_loop(new, past, window)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 300), st.lists(st.integers(1, 60), min_size=1, max_size=8), st.none() | st.integers(1, 128))
def test_a_prompt_in_chunks_has_the_pairs_of_the_whole(past: int, chunks: list[int], window: int | None) -> None:
    starts = [past + sum(chunks[:i]) for i in range(len(chunks))]
    parts = sum(visible_pairs(new, start, window) for new, start in zip(chunks, starts, strict=True))
    assert parts == visible_pairs(sum(chunks), past, window)


@pytest.mark.parametrize("key", ["llama-3.1-8b", "gemma-3-4b", "gpt-oss-20b", "qwen3-next-80b-a3b", "jamba-v0.1"])
def test_a_prompt_in_chunks_costs_the_flops_and_writes_the_cache_of_the_whole(key: str) -> None:
    model, prompt, chunk = load_model(key, "q4_k_m"), 3000, 512
    whole = list(step_operators(model, Step(prompt, ((40, 1),), 0), CACHE))
    parts = [
        op
        for start in range(0, prompt, chunk)
        for op in step_operators(model, Step(min(chunk, prompt - start), ((40 + start, 1),), 0), CACHE)
    ]
    for kind in (Kind.MATMUL, Kind.ATTENTION, Kind.RECURRENCE):
        assert total_flops(parts, kind) == pytest.approx(total_flops(whole, kind), rel=1e-12)

    def written(found: list[Operator]) -> float:
        return sum(op.kv_write for op in found if op.kind is Kind.ATTENTION)

    assert written(parts) == pytest.approx(written(whole), rel=1e-12)


def expected_distinct_by_enumeration(total: int, active: int, tokens: int) -> float:
    """Exact for routing that picks `active` distinct experts per token, all sets equally likely."""
    choices = list(combinations(range(total), active))
    outcomes = [len(set().union(*picked)) for picked in product(choices, repeat=tokens)]
    return sum(outcomes) / len(outcomes)


@pytest.mark.parametrize(
    ("total", "active", "tokens"),
    [(4, 1, 1), (4, 2, 1), (4, 2, 3), (5, 3, 2), (6, 1, 4), (3, 3, 2), (8, 2, 2)],
)
def test_distinct_experts_of_small_cases_are_exact(total: int, active: int, tokens: int) -> None:
    exact = expected_distinct_by_enumeration(total, active, tokens)
    assert distinct_experts(total, active, tokens) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("total", "active", "tokens"), [(128, 8, 1), (128, 8, 16), (256, 8, 64), (32, 4, 7)])
def test_distinct_experts_agree_with_sampled_routing(total: int, active: int, tokens: int) -> None:
    source, rounds = random.Random(7), 800
    counts = [
        len({expert for _ in range(tokens) for expert in source.sample(range(total), active)}) for _ in range(rounds)
    ]
    mean = sum(counts) / rounds
    deviation = math.sqrt(sum((count - mean) ** 2 for count in counts) / rounds)
    assert abs(distinct_experts(total, active, tokens) - mean) <= 4 * deviation / math.sqrt(rounds) + 1e-9


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 512), st.data(), st.integers(0, 5000))
def test_distinct_experts_never_exceed_what_can_be_touched(total: int, data: st.DataObject, tokens: int) -> None:
    active = data.draw(st.integers(1, total))
    found = distinct_experts(total, active, tokens)
    slack = 1 + 1e-12
    assert 0 <= found <= min(total, active * tokens) * slack
    assert found >= min(active, active * tokens) / slack
    assert distinct_experts(total, active, tokens + 1) >= found / slack


def test_one_token_touches_exactly_its_active_experts_and_many_touch_all() -> None:
    assert distinct_experts(128, 8, 1) == pytest.approx(8, rel=1e-12)
    assert distinct_experts(128, 8, 1e6) == 128
    assert distinct_experts(128, 8, 0) == 0


def layer_with(mixer: Attention | LatentAttention | Recurrence) -> Layer:
    tensor = Tensor("blk.0.attn_output.weight", Role.ATTN_OUT, 0, 64, 32, 1, "f16", 64 * 32 * 2)
    return Layer(0, mixer, None, (tensor,))


def attention_of(mixer: Attention | LatentAttention, step: Step, cache: CacheFormat = CACHE) -> Operator:
    return next(op for op in mixer_operators(layer_with(mixer), step, cache) if op.kind is Kind.ATTENTION)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 64),
    st.integers(1, 64),
    st.none() | st.integers(1, 40),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 4)), min_size=1, max_size=3),
)
def test_attention_equals_a_loop_over_heads_sequences_queries_and_keys(
    kv_heads: int,
    group: int,
    key_width: int,
    value_width: int,
    window: int | None,
    new: int,
    groups: list[tuple[int, int]],
) -> None:
    heads = kv_heads * group
    op = attention_of(
        Attention(heads, kv_heads, key_width, value_width, window),
        Step(new, tuple(groups), 0),
        CacheFormat(2.0, 1.0625),
    )
    pairs = sum(count * pairs_by_loop(new, past, window) for past, count in groups)
    token = kv_heads * (key_width * 2.0 + value_width * 1.0625)
    sequences = sum(count for _, count in groups)
    read = sum(count * cached_by_loop(new, past, window) for past, count in groups)
    assert op.flops == pytest.approx(2 * heads * (key_width + value_width) * pairs, rel=1e-12)
    assert op.scores == heads * pairs
    assert op.kv_write == pytest.approx(sequences * new * token, rel=1e-12)
    assert op.kv_read == pytest.approx(read * token, rel=1e-12)
    assert op.group == group


def test_latent_attention_reads_one_latent_for_all_heads() -> None:
    """DeepSeek-V3: 512 + 64 elements per token and layer; absorbed, each head scores 576 wide and sums 512 wide."""
    model = load_model("deepseek-v3", "q4_k_m")
    mixer = model.layers[3].mixer
    assert isinstance(mixer, LatentAttention)
    op = attention_of(mixer, Step.decode(1, 999))
    assert op.kv_read == 1000 * 576 * 2
    assert op.kv_write == 576 * 2
    assert op.flops == 1000 * 128 * 2 * (576 + 512)
    per_token = sum(CACHE.token_bytes(layer) for layer in model.layers)
    assert per_token == len(model.layers) * 576 * 2


def test_sparse_attention_reads_only_what_it_selects() -> None:
    mixer = LatentAttention(4, 32, 8, 16, 16, selected=100)
    dense = LatentAttention(4, 32, 8, 16, 16)
    near, far = Step.decode(3, 50), Step.decode(3, 5000)
    assert attention_of(mixer, near).kv_read == attention_of(dense, near).kv_read
    assert attention_of(mixer, far).kv_read == 3 * 100 * 40 * 2
    assert attention_of(mixer, far).flops == 3 * 100 * 4 * 2 * (32 + 8 + 32)


def test_cache_bytes_of_known_models() -> None:
    """Llama 3.1 8B: 2 x 8 heads x 128 x 2 bytes x 32 layers = 131,072 bytes per token in 16 bits."""
    model = load_model("llama-3.1-8b", "q4_k_m")
    assert sum(CACHE.token_bytes(layer) for layer in model.layers) == 131_072
    q8 = CacheFormat(34 / 32, 34 / 32)
    assert sum(q8.token_bytes(layer) for layer in model.layers) == 131_072 / 2 * 34 / 32
    assert sum(CACHE.sequence_bytes(layer, 1000) for layer in model.layers) == 131_072_000


def test_a_sliding_window_keeps_no_more_than_its_window() -> None:
    layer = layer_with(Attention(8, 4, 64, 64, 128))
    assert CACHE.sequence_bytes(layer, 1000, full_window=True) == 128 * 4 * 128 * 2
    assert CACHE.sequence_bytes(layer, 100, full_window=True) == 100 * 4 * 128 * 2
    assert CACHE.sequence_bytes(layer, 1000) == 1000 * 4 * 128 * 2


def test_a_recurrence_keeps_a_state_whatever_the_context() -> None:
    layer = layer_with(Recurrence(1000, 7000))
    near, far = (
        next(op for op in mixer_operators(layer, Step(5, ((past, 3),), 0), CACHE) if op.kind is Kind.RECURRENCE)
        for past in (0, 100_000)
    )
    assert near == far
    assert near.flops == 7000 * 15
    assert near.kv_read == near.kv_write == 4 * 1000 * 3
    assert near.part is Part.KV
    assert CACHE.token_bytes(layer) == 0
    assert CACHE.sequence_bytes(layer, 10) == CACHE.sequence_bytes(layer, 10**6) == 4000


def test_experts_share_products_and_count_distinct_matrices() -> None:
    tensor = Tensor("blk.0.ffn_up_exps.weight", Role.EXPERT_UP, 0, 32, 16, 8, "f16", 8 * 32 * 16 * 2)
    layer = Layer(0, Recurrence(1, 1), Experts(8, 2), (tensor,))
    (op,) = ffn_operators(layer, 3)
    distinct = 8 * (1 - (6 / 8) ** 3)
    assert op.flops == 2 * 3 * 2 * 32 * 16
    assert op.matrices == pytest.approx(distinct)
    assert op.m == pytest.approx(6 / distinct)
    assert op.weight_bytes == pytest.approx(distinct * 32 * 16 * 2)
    assert op.activation_bytes == 2 * 6 * (32 + 16)
    assert part_of(tensor) is Part.EXPERT_UP


def test_embedding_and_logits() -> None:
    tied, untied = load_model("qwen2.5-0.5b", "f16"), load_model("llama-3.1-8b", "f16")
    assert tied.tied
    assert not untied.tied
    step = Step.prefill(100, 0, 3)
    for model in (tied, untied):
        assert embedding_operator(model, step).weight_bytes == 300 * model.hidden * 2
        op = output_operator(model, step)
        assert op.flops == 2 * 3 * model.vocabulary * model.hidden
        assert op.weight_bytes == model.vocabulary * model.hidden * 2


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(DENSE + ROUTED), st.integers(1, 64), st.integers(0, 4000))
def test_a_batch_reads_weights_once_and_the_cache_once_per_sequence(key: str, batch: int, context: int) -> None:
    model = load_model(key, "q4_k_m")
    layer = model.layers[-1]
    one = mixer_operators(layer, Step.decode(1, context), CACHE)
    many = mixer_operators(layer, Step.decode(batch, context), CACHE)
    for single, shared in zip(one, many, strict=True):
        assert shared.flops == pytest.approx(batch * single.flops, rel=1e-12)
        assert shared.weight_bytes == single.weight_bytes
        assert shared.kv_read == pytest.approx(batch * single.kv_read, rel=1e-12)
        assert shared.kv_write == pytest.approx(batch * single.kv_write, rel=1e-12)
