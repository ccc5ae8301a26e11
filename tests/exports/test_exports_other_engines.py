"""Accelerate, FlexGen, LMCache and KTransformers themselves take what is exported for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.exports.engines import deepspeed, flexgen, kt_kernel, lmcache, talk, torch_environment
from tests.strategies import machine_of, model_of

from stowplan.exports.accelerate import MAP, AccelerateExporter
from stowplan.exports.base import Names
from stowplan.exports.deepspeed import DeepSpeedExporter, DeepSpeedSettings
from stowplan.exports.flat_yaml import read_yaml
from stowplan.exports.ktransformers import CONFIG, EXPERTS, MAKER, KTransformersExporter, ranges
from stowplan.exports.lmcache import LmCacheExporter, LmCacheSettings
from stowplan.exports.places import part_bytes
from stowplan.models import load_model
from stowplan.plan import Plan, Workload, run_lengths
from stowplan.planner.predict import make_setup
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.accelerate_map import ModulePlaces, module_names
from stowplan.systems.base import Setup
from stowplan.systems.flexgen_policy import edge_groups, homes, layer_groups
from stowplan.systems.llama_cpp import LlamaCpp

pytestmark = pytest.mark.slow
SPEC = "rtx-3090 + epyc-7742 + ddr4-3200x8:512GiB + samsung-990-pro:4TB"


def plain_plan(setup: Setup, system: str, settings: dict[str, object]) -> Plan:
    layers = [dict.fromkeys((*part_bytes(layer), "kv"), "gpu0") for layer in setup.model.layers]
    return Plan(
        system=system,
        machine=setup.machine.spec,
        model=setup.model.key,
        quant=setup.model.quant,
        workload=Workload(prompt=64, generate=16),
        layers=run_lengths(layers),
        embedding="gpu0",
        output="gpu0",
        settings=settings,
    )


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen3_moe"])
def test_accelerate_puts_modules_where_the_map_says_and_generates_the_same(kind: str, tmp_path: Path) -> None:
    """The CPU plays the GPU; host memory is not told apart from it, so the map's two places are GPU and disk."""
    python = torch_environment()
    folder = tmp_path / "checkpoint"
    talk(python, "host_accelerate.py", ["make", kind, str(folder)])
    model = load_model(str(folder))
    setup = make_setup(machine_of(SPEC), replace(model), Accelerate())
    layers = ("gpu0", "disk", "disk", "gpu0", "ram", "disk")
    edges = ("gpu0", "gpu0") if kind == "opt" else ("gpu0", "disk")
    places = ModulePlaces(edges[0], layers, edges[1])
    plan = Accelerate().plan(setup, Workload(prompt=5, generate=12), places)
    exporter = AccelerateExporter()
    files = exporter.files(setup, exporter.nearest(setup, plan))
    (tmp_path / MAP).write_text(files.contents[MAP])
    answer = talk(python, "host_accelerate.py", ["run", str(folder), str(tmp_path / MAP)])[0]
    names = module_names(model)
    expected = {f"{names.layers}.{index}.": place for index, place in enumerate(layers)}
    expected |= {f"{name}.": edges[0] for name in names.embeddings}
    expected |= {f"{name}.": edges[1] for name in (*names.norms, names.head)}
    assert len(answer["where"]) > 6 * 6
    for name, device in answer["where"].items():
        place = next(place for prefix, place in expected.items() if name.startswith(prefix))
        assert device == ("meta" if place == "disk" else "cpu"), name
    assert answer["dispatched"] == answer["plain"]
    assert len(set(answer["plain"])) > 4
    assert exporter.read(files.contents[MAP], setup, Names.of(plan)) == plan


def test_flexgen_rounds_as_we_do() -> None:
    pairs = [(0, 100), (20, 80), (30, 70), (10, 20), (50, 50), (100, 0), (0, 0), (33, 33), (7, 61), (60, 25)]
    words = ["facebook/opt-30b", *(str(number) for pair in pairs for number in pair)]
    model = model_of("opt-30b", "f16")
    attention, mlp = layer_groups(model.layers[3])
    first, last = edge_groups(model)
    ours = {"input": first, "attention": attention, "mlp": mlp}
    for (gpu, cpu), answer in zip(pairs, talk(flexgen(), "host_flexgen.py", words), strict=True):
        for kind, group in ours.items():
            theirs = [home for home, _ in answer[kind]]
            assert list(homes(group, gpu, cpu)) == theirs, (kind, gpu, cpu)
            assert [piece.elements for piece in group.pieces] == [size for _, size in answer[kind]]
        assert sum(size for _, size in answer["output"]) == last.elements
        assert set(homes(last, gpu, cpu)) <= {"gpu0", "ram", "disk"}


def test_lmcache_reads_what_we_write(tmp_path: Path) -> None:
    setup = make_setup(machine_of(SPEC), model_of("llama-3.1-8b", "bf16"), LlamaCpp())
    cases = [
        LmCacheSettings(),
        LmCacheSettings(chunk_size=64, local_cpu=False, max_local_cpu_size=12.5),
        LmCacheSettings(local_disk="file:///nvme/a b/", max_local_disk_size=100.5, cache_policy="LFU"),
        LmCacheSettings(extra_config={"use_odirect": True}),
    ]
    exporter, paths = LmCacheExporter(), []
    for number, case in enumerate(cases):
        plan = exporter.nearest(setup, plain_plan(setup, "lmcache", case.model_dump(mode="json")))
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(exporter.files(setup, plan).contents["lmcache.yaml"])
    for case, answer in zip(cases, talk(lmcache(), "host_lmcache.py", [str(path) for path in paths]), strict=True):
        for name, value in case.model_dump(mode="json", exclude_none=True).items():
            theirs = answer[name]
            assert theirs == value or (name == "local_disk" and str(theirs) in str(value)), name


def test_deepspeed_reads_what_we_write(tmp_path: Path) -> None:
    setup = make_setup(machine_of(SPEC), model_of("llama-3.1-8b", "bf16"), LlamaCpp())
    exporter, paths = DeepSpeedExporter(), []
    cases: list[dict[str, object]] = [
        {"offload_param": {"device": "cpu", "pin_memory": True}, "param_persistence_threshold": 12345},
        {"offload_param": {"device": "nvme", "nvme_path": "/nvme/a b", "buffer_size": 1e9, "buffer_count": 7}},
        {"offload_param": {"device": "none"}, "aio": {"block_size": 262144, "queue_depth": 32, "single_submit": True}},
    ]
    plans = [exporter.nearest(setup, plain_plan(setup, "deepspeed", case)) for case in cases]
    for number, plan in enumerate(plans):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(exporter.files(setup, plan).contents["ds_config.json"])
    answers = talk(deepspeed(), "host_deepspeed.py", [str(path) for path in paths])
    for plan, answer in zip(plans, answers, strict=True):
        stated = DeepSpeedSettings.model_validate(plan.settings)
        assert (answer["stage"], answer["threshold"]) == (3, stated.param_persistence_threshold)
        for name, value in stated.offload_param.model_dump(exclude_none=True).items():
            assert answer["offload_param"][name] == value, name
        for name, value in stated.aio.model_dump().items():
            assert answer["aio"][name] == value, name


@pytest.mark.parametrize("chosen", [{1: {0, 1, 2}}, {3: {7, 9, 63}, 4: set(range(64)), 26: {5}}, {5: {1}, 6: {1}}])
def test_ktransformers_chooses_exactly_the_experts_of_the_plan(chosen: dict[int, set[int]], tmp_path: Path) -> None:
    setup = make_setup(machine_of(SPEC), model_of("deepseek-v2-lite", "fp8"), LlamaCpp())
    stated: dict[str, object] = {"experts": {str(layer): ranges(frozenset(ids)) for layer, ids in chosen.items()}}
    exporter = KTransformersExporter()
    plan = exporter.nearest(setup, plain_plan(setup, "ktransformers", stated))
    files = exporter.files(setup, plan)
    for name in (EXPERTS, MAKER):
        (tmp_path / name).write_text(files.contents[name])
    flags = read_yaml(files.contents[CONFIG], CONFIG)
    python = kt_kernel()
    talk(python, str(tmp_path / MAKER), [])
    words = [str(tmp_path / str(flags["init-expert-location"])), str(flags["kt-gpu-experts-ratio"]), "26"]
    answer = talk(python, "host_kt.py", words)[0]
    assert len(answer) == 27
    assert {layer: set(ids) for layer, ids in enumerate(answer) if ids} == chosen
