"""Accelerate, FlexGen and LMCache themselves take what is exported for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.exports.plain_plans import SPEC, plain_plan
from tests.exports.python_engines import talk
from tests.strategies import machine_of, model_of

from stowplan.exports.accelerate import MAP, AccelerateExporter
from stowplan.exports.base import Names
from stowplan.exports.lmcache import LmCacheExporter, LmCacheSettings
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.predict import make_setup
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.accelerate_map import ModulePlaces, module_names
from stowplan.systems.flexgen_policy import edge_groups, homes, layer_groups
from stowplan.systems.llama_cpp import LlamaCpp

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen3_moe"])
def test_accelerate_puts_modules_where_the_map_says_and_generates_the_same(
    torch_python: Path, kind: str, tmp_path: Path
) -> None:
    """The CPU plays the GPU; host memory is not told apart from it, so the map's two places are GPU and disk."""
    folder = tmp_path / "checkpoint"
    talk(torch_python, "host_accelerate.py", ["make", kind, str(folder)])
    model = load_model(str(folder))
    setup = make_setup(machine_of(SPEC), replace(model), Accelerate())
    layers = ("gpu0", "disk", "disk", "gpu0", "ram", "disk")
    edges = ("gpu0", "gpu0") if kind == "opt" else ("gpu0", "disk")
    places = ModulePlaces(edges[0], layers, edges[1])
    plan = Accelerate().plan(setup, Workload(prompt=5, generate=12), places)
    exporter = AccelerateExporter()
    files = exporter.files(setup, exporter.nearest(setup, plan))
    (tmp_path / MAP).write_text(files.contents[MAP])
    answer = talk(torch_python, "host_accelerate.py", ["run", str(folder), str(tmp_path / MAP)])[0]
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


def test_flexgen_rounds_as_we_do(flexgen_python: Path) -> None:
    pairs = [(0, 100), (20, 80), (30, 70), (10, 20), (50, 50), (100, 0), (0, 0), (33, 33), (7, 61), (60, 25)]
    words = ["facebook/opt-30b", *(str(number) for pair in pairs for number in pair)]
    model = model_of("opt-30b", "f16")
    attention, mlp = layer_groups(model.layers[3])
    first, last = edge_groups(model)
    ours = {"input": first, "attention": attention, "mlp": mlp}
    for (gpu, cpu), answer in zip(pairs, talk(flexgen_python, "host_flexgen.py", words), strict=True):
        for kind, group in ours.items():
            theirs = [home for home, _ in answer[kind]]
            assert list(homes(group, gpu, cpu)) == theirs, (kind, gpu, cpu)
            assert [piece.elements for piece in group.pieces] == [size for _, size in answer[kind]]
        assert sum(size for _, size in answer["output"]) == last.elements
        assert set(homes(last, gpu, cpu)) <= {"gpu0", "ram", "disk"}


def test_lmcache_reads_what_we_write(lmcache_python: Path, tmp_path: Path) -> None:
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
    for case, answer in zip(cases, talk(lmcache_python, "host_lmcache.py", [str(path) for path in paths]), strict=True):
        for name, value in case.model_dump(mode="json", exclude_none=True).items():
            theirs = answer[name]
            assert theirs == value or (name == "local_disk" and str(theirs) in str(value)), name
