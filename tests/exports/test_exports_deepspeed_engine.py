"""DeepSpeed itself reads what is exported for it, and puts every parameter where the plan says."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.exports.plain_plans import SPEC, plain_plan
from tests.exports.python_engines import talk
from tests.strategies import machine_of, model_of

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Names
from stowplan.exports.deepspeed import CONFIG, DeepSpeedExporter, DeepSpeedSettings
from stowplan.exports.places import layers_of, part_bytes
from stowplan.models import load_model
from stowplan.ops import output_tensor
from stowplan.plan import Plan, run_lengths
from stowplan.planner.predict import make_setup
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp

MIB = 1 << 20
FUSED = {"ffn_gate_exps": "experts_in", "ffn_up_exps": "experts_in", "ffn_down_exps": "experts_out"}
OF_PARAMETERS = {
    "experts.gate_up_proj": "experts_in",
    "experts.down_proj": "experts_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Bytes = Counter[tuple[str, str]]  # by layer and part as "3 attention", or "embedding", and by tier


@pytest.mark.slow
def test_deepspeed_reads_what_we_write(deepspeed_python: Path, tmp_path: Path) -> None:
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
        paths[-1].write_text(exporter.files(setup, plan).contents[CONFIG])
    answers = talk(deepspeed_python, "host_deepspeed.py", [str(path) for path in paths])
    for plan, answer in zip(plans, answers, strict=True):
        stated = DeepSpeedSettings.model_validate(plan.settings)
        assert (answer["stage"], answer["threshold"]) == (3, stated.param_persistence_threshold)
        for name, value in stated.offload_param.model_dump(exclude_none=True).items():
            assert answer["offload_param"][name] == value, name
        for name, value in stated.aio.model_dump().items():
            assert answer["aio"][name] == value, name


def wanted_in(setup: Setup, place: str) -> Plan:
    """A plan of no engine, with all weights in one place."""
    layers = [dict.fromkeys((*part_bytes(layer), "kv"), place) for layer in setup.model.layers]
    plan = plain_plan(setup, "any", {})
    return plan.model_copy(update={"layers": run_lengths(layers), "embedding": place, "output": place})


def by_plan(setup: Setup, plan: Plan) -> Bytes:
    """Bytes by part and tier, as the plan says."""
    found: Bytes = Counter()
    for layer, places in zip(setup.model.layers, layers_of(setup.model, plan), strict=True):
        for part, size in part_bytes(layer).items():
            place = places[part]
            for tier, share in ({place: 1.0} if isinstance(place, str) else place).items():
                found[f"{layer.index} {FUSED.get(part, part)}", tier] += round(share * size)
    for name, tensor in (("embedding", setup.model.tensors[0]), ("output", output_tensor(setup.model))):
        found[name, getattr(plan, name)] += tensor.bytes
    return found


def by_engine(where: Mapping[str, Mapping[str, Any]], *, pinned: bool) -> Bytes:
    """Bytes by part and tier, as the engine's own parameters and files say after tokens were generated."""
    found: Bytes = Counter()
    for name, seen in where.items():
        size = 2 * seen["elements"]
        assert seen["whole"] == seen["persists"], name  # what does not stay on the GPU has left it again
        if seen["persists"]:
            tier = "gpu0"
        elif seen["location"] == "nvme":
            tier = "disk"
            assert (seen["bytes"], seen["file"]) == (0, size), name
        else:
            tier = "ram"
            assert (seen["bytes"], seen["location"], seen["pinned"]) == (size, None, pinned), name
        found[part_of_parameter(name), tier] += size
    return found


def part_of_parameter(name: str) -> str:
    if "embed_tokens" in name or "lm_head" in name:
        return "embedding" if "embed_tokens" in name else "output"
    if "layers." not in name:
        return "norm"
    index = name.partition("layers.")[2].partition(".")[0]
    return f"{index} " + next((part for key, part in OF_PARAMETERS.items() if key in name), "attention")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_deepspeed_puts_parameters_where_the_plan_says_and_generates_the_same(
    deepspeed_python: Path, deepspeed_parts: tuple[Path, str], kind: str, tmp_path: Path
) -> None:
    """The exported program runs the exported configuration; the CPU plays the GPU, a folder the NVMe disk."""
    parts, libraries = deepspeed_parts
    environment = {"LD_LIBRARY_PATH": libraries, "MASTER_PORT": free_port()}
    checkpoint = tmp_path / "checkpoint"
    talk(deepspeed_python, "host_deepspeed_run.py", ["make", kind, str(checkpoint)], **environment)
    setup = make_setup(machine_of(SPEC), load_model(str(checkpoint)), LlamaCpp())
    exporter = DeepSpeedExporter()
    in_ram, on_disk = (exporter.nearest(setup, wanted_in(setup, place)) for place in ("ram", "disk"))
    plans = [in_ram, on_disk]
    coarse: dict[str, Any] = {"aio": {"block_size": 4 * MIB, "queue_depth": 4}, "param_persistence_threshold": 300_000}
    plans.append(exporter.nearest(setup, on_disk.model_copy(update={"settings": on_disk.settings | coarse})))
    programs = []
    for number, plan in enumerate(plans):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = json.loads(json.dumps(plan.settings))
        if settings["offload_param"]["device"] == "nvme":
            settings["offload_param"]["nvme_path"] = str(folder / "nvme")
        files = exporter.files(setup, plan.model_copy(update={"settings": settings}))
        for name, text in files.contents.items():
            (folder / name).write_text(text)
        programs.append(str(folder / "load.py"))
    words = ["run", str(checkpoint), str(parts), *programs]
    plain, *answers = talk(deepspeed_python, "host_deepspeed_run.py", words, **environment)
    assert len(set(plain["said"].split())) > 9
    for plan, answer in zip(plans, answers, strict=True):
        assert answer["said"] == plain["said"]
        param = plan.settings["offload_param"]
        assert answer["device"] == param["device"]
        seen = by_engine(answer["where"], pinned=param["pin_memory"])
        assert seen.pop(("norm", "gpu0")) > 0
        assert seen == +by_plan(setup, plan)
        assert answer["files"] == sum(size for (_, tier), size in seen.items() if tier == "disk")
    tiers = [{tier for _, tier in by_plan(setup, plan)} for plan in plans]
    assert [sorted(each) for each in tiers] == [["gpu0", "ram"], ["disk", "gpu0", "ram"], ["disk", "gpu0", "ram"]]
    assert by_plan(setup, plans[1]) != by_plan(setup, plans[2])


@pytest.mark.slow
def test_deepspeed_and_we_refuse_a_buffer_that_holds_no_parameter(
    deepspeed_python: Path, deepspeed_parts: tuple[Path, str], tmp_path: Path
) -> None:
    parts, libraries = deepspeed_parts
    environment = {"LD_LIBRARY_PATH": libraries, "MASTER_PORT": free_port()}
    checkpoint = tmp_path / "checkpoint"
    talk(deepspeed_python, "host_deepspeed_run.py", ["make", "llama", str(checkpoint)], **environment)
    setup = make_setup(machine_of(SPEC), load_model(str(checkpoint)), LlamaCpp())
    exporter = DeepSpeedExporter()
    plan = exporter.nearest(setup, wanted_in(setup, "disk"))
    contents = exporter.files(setup, plan).contents
    data = json.loads(contents[CONFIG])
    data["zero_optimization"]["offload_param"] |= {"nvme_path": str(tmp_path / "nvme"), "buffer_size": 1e6}
    (tmp_path / CONFIG).write_text(json.dumps(data))
    (tmp_path / "load.py").write_text(contents["load.py"])
    words = ["run", str(checkpoint), str(parts), str(tmp_path / "load.py")]
    answer = talk(deepspeed_python, "host_deepspeed_run.py", words, **environment)[1]
    assert "error" in answer
    with pytest.raises(InputError, match="buffer_size 1000000 is smaller than the largest parameter"):
        exporter.read(json.dumps(data), setup, Names.of(plan))


def test_a_buffer_holds_gate_and_up_of_all_experts() -> None:
    """transformers 5 keeps both in one parameter, so 8 x 2 x 14336 x 4096 elements of Mixtral are read at once."""
    setup = make_setup(machine_of(SPEC), model_of("mixtral-8x7b", "bf16"), LlamaCpp())
    exporter = DeepSpeedExporter()
    plan = exporter.nearest(setup, wanted_in(setup, "disk"))
    assert plan.settings["offload_param"]["buffer_size"] == 940e6
    assert "8.75 GiB of host memory" in " ".join(exporter.files(setup, plan).notes)
    settings = plan.settings | {"offload_param": plan.settings["offload_param"] | {"buffer_size": 9e8}}
    with pytest.raises(InputError, match="smaller than the largest parameter, 939524096 elements"):
        exporter.nearest(setup, plan.model_copy(update={"settings": settings}))


def test_host_memory_has_to_hold_the_readers_buffers() -> None:
    """Five buffers for the experts of a layer of DeepSeek-V3, 256 x 2 x 2048 x 7168 elements each, take 75 GB."""
    model = model_of("deepseek-v3", "bf16")
    for memory, fits in (("64GiB", False), ("128GiB", True)):
        machine = machine_of(f"rtx-3090 + epyc-7742 + ddr4-3200x8:{memory} + samsung-990-pro:4TB")
        setup = make_setup(machine, model, LlamaCpp())
        if fits:
            assert DeepSpeedExporter().nearest(setup, wanted_in(setup, "disk")).output == "disk"
        else:
            with pytest.raises(NotExpressible, match="neither RAM nor a disk"):
                DeepSpeedExporter().nearest(setup, wanted_in(setup, "disk"))
