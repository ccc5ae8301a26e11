"""Accelerate: device maps in and out, and what a map costs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import simulate
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Plan, Workload
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.accelerate_map import ModulePlaces, read_map, write_map
from stowplan.systems.base import DISK, RAM, Setup

MACHINE = load_machine("2x titan-rtx + core-i9-10900x + ddr4-2666x4:32GiB + samsung-990-pro:4TB")
SYSTEM = Accelerate()


def _setup(model: str, quant: str = "f16") -> Setup:
    return Setup(MACHINE, load_model(model, quant), figures_for(MACHINE, "accelerate"))


OPT = _setup("opt-1.3b")
LAYERS = len(OPT.model.layers)
_PLACE = st.sampled_from(["gpu0", "gpu1", RAM, DISK])


@given(layers=st.lists(_PLACE, min_size=LAYERS, max_size=LAYERS), embedding=_PLACE, output=_PLACE)
@settings(deadline=None, max_examples=30)
def test_command_round_trip(layers: list[str], embedding: str, output: str) -> None:
    places = ModulePlaces(embedding, tuple(layers), output)
    assert read_map(OPT.model, write_map(OPT.model, places)) == places
    if not any(place.startswith("gpu") for place in (embedding, output, *layers)):
        return
    workload = Workload(prompt=8, generate=4)
    plan = SYSTEM.plan(OPT, workload, places)
    assert SYSTEM.parse(SYSTEM.command(OPT, plan), OPT, workload) == plan
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    evaluation = SYSTEM.evaluate(OPT, plan)
    assert simulate(SYSTEM.decode_graph(OPT, plan)).makespan == pytest.approx(evaluation.decode_s)


def test_names_follow_the_architecture() -> None:
    table = json.loads(write_map(OPT.model, ModulePlaces("gpu0", ("gpu0",) * (LAYERS - 1) + (RAM,), "gpu0")))
    assert table["model.decoder.embed_positions"] == 0
    assert table[f"model.decoder.layers.{LAYERS - 1}"] == "cpu"
    assert table["lm_head"] == 0
    llama = load_model("llama-2-7b", "f16")
    assert "model.layers.31" in json.loads(write_map(llama, ModulePlaces("gpu0", ("gpu0",) * 32, "gpu0")))


def test_prefixes_and_shares() -> None:
    assert set(read_map(OPT.model, '{"": "cuda:1"}').layers) == {"gpu1"}
    halves = read_map(OPT.model, '{"gpu0": 0.5, "cpu": 0.5}')
    assert halves.layers == tuple(sorted(halves.layers))
    assert halves.layers.count("gpu0") == pytest.approx(LAYERS / 2, abs=2)
    assert halves.embedding == halves.output == "gpu0"
    spread = read_map(OPT.model, '{"0,1": "rest"}')
    assert spread.layers.count("gpu0") == pytest.approx(LAYERS / 2, abs=2)
    sized = read_map(OPT.model, '{"0": "1GiB", "cpu": "0.5GiB", "disk": "rest"}')
    assert list(dict.fromkeys(sized.layers)) == ["gpu0", RAM, DISK]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"model": 0}', "lm_head has no device"),
        ('{"": "tpu"}', "'tpu' is no device"),
        ('{"": 7}', "GPU 7"),
        ('{"": 0, "model.decoder.layers.3.fc1": "cpu"}', "whole module"),
        ('{"": 0, "lm_head": "cpu"}', "put them together"),
        ('{"0": "lots", "cpu": "rest"}', "share from 0 to 1"),
    ],
)
def test_bad_maps_get_one_sentence(text: str, words: str) -> None:
    with pytest.raises(NotExpressible, match=words) as caught:
        SYSTEM.parse(text, OPT)
    assert "\n" not in str(caught.value)


def test_short_command_form() -> None:
    text = 'accelerate --device-map \'{"gpu0": 0.4, "cpu": 0.6}\' --dtype fp16 --prompt 128 --generate 16 --batch 2'
    plan = SYSTEM.parse(text, OPT)
    assert (plan.workload.prompt, plan.workload.generate, plan.workload.batch) == (128, 16, 2)
    with pytest.raises(NotExpressible, match="--dtype fp32"):
        SYSTEM.parse(text.replace("fp16", "fp32"), OPT)
    with pytest.raises(NotExpressible, match="--turbo"):
        SYSTEM.parse(f"{text} --turbo 1", OPT)


def test_offloaded_bytes_cross_the_link_every_step() -> None:
    workload = Workload(prompt=8, generate=4)
    plan = SYSTEM.plan(OPT, workload, ModulePlaces("gpu0", ("gpu0",) * (LAYERS - 5) + (RAM,) * 5, "gpu0"))
    layer = sum(tensor.bytes for tensor in OPT.model.layers[0].tensors)
    for graph in (SYSTEM.decode_graph(OPT, plan), SYSTEM.prefill_graph(OPT, plan)):
        delivered = simulate(graph).delivered
        assert delivered["gpu0.h2d"] == pytest.approx(5 * layer)
        assert "host.cores" not in delivered


def test_disk_modules_stay_in_the_page_cache_if_they_fit() -> None:
    workload = Workload(prompt=8, generate=4)
    small = SYSTEM.plan(OPT, workload, ModulePlaces("gpu0", ("gpu0",) * (LAYERS - 5) + (DISK,) * 5, "gpu0"))
    assert "disk.read" not in SYSTEM.evaluate(OPT, small).decode_shares
    big = _setup("opt-30b")
    split = ModulePlaces("gpu0", ("gpu0",) * 14 + ("gpu1",) * 14 + (DISK,) * 20 + (RAM,) * 0, "gpu0")
    held = SYSTEM.plan(big, workload, split)
    assert "disk.read" not in SYSTEM.evaluate(big, held).decode_shares
    wide = ModulePlaces("gpu0", ("gpu0",) * 14 + (DISK,) * 34, "gpu0")
    assert SYSTEM.evaluate(big, SYSTEM.plan(big, workload, wide)).decode_shares["disk.read"] > 0


def test_cache_is_where_the_layer_computes() -> None:
    plan = SYSTEM.plan(OPT, Workload(), ModulePlaces("gpu1", ("gpu1",) * (LAYERS - 1) + (RAM,), "gpu1"))
    assert plan.layers[-1].places["kv"] == "gpu1"
    assert plan.settings["main"] == 1


def test_too_much_for_a_gpu() -> None:
    big = _setup("opt-30b")
    with pytest.raises(DoesNotFit, match="gpu0 would hold"):
        SYSTEM.evaluate(big, SYSTEM.plan(big, Workload(), ModulePlaces("gpu0", ("gpu0",) * 48, "gpu0")))


def test_quantised_weights_are_refused() -> None:
    setup = Setup(MACHINE, load_model("llama-2-7b", "q4_k_m"), OPT.figures)
    with pytest.raises(NotExpressible, match="q4_k_m"):
        SYSTEM.parse('{"": 0}', setup)


def test_fp32_moves_twice_the_bytes() -> None:
    wide = _setup("opt-1.3b", "f32")
    places = ModulePlaces("gpu0", (RAM,) * LAYERS, "gpu0")
    workload = Workload(prompt=8, generate=4)
    halves = [simulate(SYSTEM.decode_graph(s, SYSTEM.plan(s, workload, places))).delivered for s in (OPT, wide)]
    assert halves[1]["gpu0.h2d"] == pytest.approx(2 * halves[0]["gpu0.h2d"], rel=2e-3)
