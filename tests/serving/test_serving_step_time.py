"""Compiled step times against the engine's own prices, and the tables against the function."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.ops import Step
from stowplan.plan import Workload
from stowplan.serving.compile_step_time import Range, _as_batch, _held_out, compile_step_time
from stowplan.serving.step_time import ChunkTerm, DecodePiece, StepTime
from stowplan.systems.accelerate_execution import AccelerateRun, AccelerateSettings
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCppRun
from stowplan.systems.llama_cpp_offload import TILE_QUERIES
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces, SerialRun

SPAN = Range(tokens=4096, context=16384, batch=128)
CASES = {
    "all on an H100": ("h100-sxm", "llama-3.1-8b", "f16", 0, {}),
    "half in host memory": ("rtx-4090-desktop-128", "llama-3.1-70b", "q4_k_m", 40, {}),
    "cache in host memory": ("rtx-4090-desktop-128", "llama-3.1-8b", "q4_k_m", 0, {"kv_offload": False}),
    "experts and windows, threshold of ik": ("rtx-4090-desktop-128", "gpt-oss-120b", "mxfp4", 20, "ik_llama.cpp"),
    "windows": ("rtx-3090-desktop-64", "gemma-3-27b", "q4_k_m", 20, {}),
    "latent attention": ("epyc-9355-rtx-5090-768", "deepseek-v3", "q4_k_m", 40, {}),
    "sparse attention": ("epyc-9355-rtx-5090-768", "deepseek-v3.2", "q4_k_m", 61, {}),
    "recurrent layers": ("dual-rtx-3090-desktop-128", "jamba-v0.1", "q4_k_m", 10, {}),
    "no GPU": ("cpu-laptop-32", "llama-3.2-3b", "q4_k_m", 28, {}),
}


@cache
def _compiled(case: str) -> tuple[SerialRun, list[LayerPlaces], str, StepTime]:
    machine_name, model_name, quant, on_cpu, settings_or_engine = CASES[case]
    machine, model = load_machine(machine_name), load_model(model_name, quant)
    given_settings = {"engine": settings_or_engine} if isinstance(settings_or_engine, str) else settings_or_engine
    knobs = LlamaCppSettings.model_validate(given_settings)
    run = LlamaCppRun(Setup(machine, model, figures_for(machine, "llama.cpp")), Workload(), knobs)
    layers = []
    for index in range(len(model.layers)):
        patterns = run.patterns(run.classes[run.class_of(index)])
        home = RAM if index < on_cpu else "gpu0"
        experts_out = [p for p in patterns if p.mixer == home]
        layers.append(experts_out[-1 if index % 2 else 0])
    output = "gpu0" if machine.gpus else RAM
    return run, layers, output, compile_step_time(run, layers, output, SPAN)


@pytest.mark.parametrize("case", CASES)
def test_the_error_that_is_reported_is_small(case: str) -> None:
    """One sequence alone runs another attention kernel on GPUs, and the CPU's kernel is chosen by the tokens of each
    sequence; everything else is within 0.2 %.
    """
    run, layers, output, compiled = _compiled(case)
    worst = 0.0
    for step in _held_out(SPAN):
        error = abs(compiled.seconds(*_as_batch(step)) / run.step_price(layers, output, step).seconds - 1.0)
        worst = max(worst, error)
        tiles = run.attention_changes_at(layers) == TILE_QUERIES and step.new < TILE_QUERIES <= step.tokens
        alone = 0.3 if step.sequences == 1 and step.new == 1 else 0.03 if tiles and step.new > 1 else 0.002
        assert error < alone, step
    assert compiled.largest_error == pytest.approx(worst)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12)
@given(data=st.data())
def test_steps_anywhere_agree_with_the_engine(case: str, data: st.DataObject) -> None:
    run, layers, output, compiled = _compiled(case)
    context = data.draw(st.integers(0, SPAN.context))
    if data.draw(st.booleans()):
        batch = data.draw(st.integers(2, SPAN.batch))
        step, found = Step.decode(batch, context), compiled.seconds(batch, batch * context)
    else:
        sequences = data.draw(st.integers(1, 4))
        tokens = data.draw(st.integers(2, SPAN.tokens // sequences))
        step = Step.prefill(tokens, context, sequences)
        found = compiled.seconds(0, 0, [(tokens, context)] * sequences)
    tiles = run.attention_changes_at(layers) == TILE_QUERIES and 1 < step.new < TILE_QUERIES <= step.tokens
    assume(not tiles)  # the CPU's kernel is chosen by the tokens of each sequence
    assert found == pytest.approx(run.step_price(layers, output, step).seconds, rel=0.01)


def test_steps_of_few_tokens_have_attention_of_their_own_where_layers_move_to_the_gpu() -> None:
    compiled = {case: _compiled(case)[-1] for case in CASES}
    assert {case for case, each in compiled.items() if each.few is None} == {"all on an H100"}
    found = compiled["half in host memory"]
    assert found.few is not None and found.few.below == 32
    copied, read = found.of(32).decode[0].per_token, found.of(31).decode[0].per_token
    assert copied > 2.0 * read, "a cache that is copied page by page comes more slowly than the CPU reads it"


@pytest.mark.parametrize("case", ["half in host memory", "cache in host memory", "no GPU"])
def test_steps_that_never_have_many_tokens_keep_the_attention_of_few(case: str) -> None:
    run, layers, output, _ = _compiled(case)
    compiled = compile_step_time(run, layers, output, Range(tokens=16, context=16384, batch=8))
    assert compiled.few is None
    for tokens, past in ((2, 0), (9, 300), (16, 9000)):
        exact = run.step_price(layers, output, Step.prefill(tokens, past)).seconds
        assert compiled.seconds(0, 0, [(tokens, past)]) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("place", ["gpu0", RAM])
def test_an_eager_framework_compiles_too(place: str) -> None:
    machine, model = load_machine("rtx-3090-desktop-64"), load_model("opt-1.3b", "f16")
    run = AccelerateRun(Setup(machine, model, figures_for(machine, "accelerate")), Workload(), AccelerateSettings())
    layers = [run.layer_at(layer, place) for layer in model.layers]
    compiled = compile_step_time(run, layers, "gpu0", Range(2048, 2048, 64))
    assert compiled.largest_error < 0.002


def test_host_overhead_is_added_to_every_step() -> None:
    run, layers, output, compiled = _compiled("all on an H100")
    slower = compile_step_time(run, layers, output, SPAN, step_overhead_s=0.011)
    assert slower.seconds(5, 5000) - compiled.seconds(5, 5000) == pytest.approx(0.011, rel=0.01)
    assert slower.seconds(5, 5000, [(100, 3)]) - compiled.seconds(5, 5000, [(100, 3)]) == pytest.approx(0.011, rel=0.01)


@pytest.mark.parametrize("case", ["all on an H100", "half in host memory", "cache in host memory"])
def test_a_mixed_step_lies_between_its_parts(case: str) -> None:
    compiled = _compiled(case)[-1]
    decode, chunk = compiled.seconds(30, 30 * 2000), compiled.seconds(0, 0, [(500, 1000)])
    mixed = compiled.seconds(30, 30 * 2000, [(500, 1000)])
    assert chunk <= mixed <= decode + chunk
    # with the chunk, the weights are copied to the GPU, which takes less time than the CPU's products of 30 tokens
    assert (mixed < decode) == (case == "half in host memory")


@pytest.mark.parametrize("case", CASES)
def test_tables_hold_the_function(case: str) -> None:
    compiled = _compiled(case)[-1]
    body, logits = compiled.body_table(6000), compiled.logits_table(200)
    for count in (1, 31, 32, 33, 1000, 4096, 6000):
        whole = compiled.seconds(0, 0, [(count, 0)], rows=1)
        prompt = compiled.of(count).prompt_table(6000)
        assert body[count] + logits[1] + prompt[count] == pytest.approx(whole, rel=1e-12)
    assert compiled.seconds(190, 0, rows=190) == pytest.approx(
        body[190] + logits[190] + 190 * compiled.of(190).decode[0].per_sequence, rel=1e-12
    )


def test_senseless_step_times_are_refused() -> None:
    decode, chunk = (DecodePiece(0.0, 0.0, 0.0),), (ChunkTerm(None, None, ((0.0, 0.0, 0.0, 0.0),)),)
    with pytest.raises(InputError, match="body: needs two or more knots"):
        StepTime(((1, 1.0),), ((0, 0.0), (1, 0.0)), decode, chunk)
    with pytest.raises(InputError, match="logits"):
        StepTime(((1, 1.0), (2, 1.0)), ((1, 0.0), (1, 0.0)), decode, chunk)
    with pytest.raises(InputError, match="decode"):
        StepTime(((1, 1.0), (2, 1.0)), ((0, 0.0), (1, 0.0)), (DecodePiece(1.0, 0.0, 0.0),), chunk)
    with pytest.raises(InputError, match="chunk"):
        StepTime(((1, 1.0), (2, 1.0)), ((0, 0.0), (1, 0.0)), decode, (ChunkTerm(None, None, ()),))
