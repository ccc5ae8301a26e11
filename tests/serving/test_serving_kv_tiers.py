"""Places for cached blocks: what users write, and what a machine makes of it, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from stowplan.errors import DoesNotFit, InputError
from stowplan.machines import list_keys, load_machine
from stowplan.models import load_model
from stowplan.plan import MemoryUse, Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.serving.from_plan import Serving, engine_of
from stowplan.serving.from_vllm import vllm_engine
from stowplan.serving.kv_tiers import Place, parse_place, tiers_of
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.systems.vllm_settings import VllmSettings

GIB = 2.0**30
BLOCK = 2.0 * 2**20


def setup_of(machine: str) -> Setup:
    return make_setup(load_machine(machine), load_model("llama-3.1-8b", "q4_k_m"), load_system("llama.cpp"))


@pytest.fixture(scope="module")
def desktop() -> Setup:
    return setup_of("rtx-4090-desktop-128")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host=64GiB", Place("host", 64 * GIB)),
        ("disk=1TB", Place("disk", 1e12)),
        ("disk=1TB@3GB/s", Place("disk", 1e12, 3e9)),
        (" remote = 10 TB @ 25 GB/s + 1 ms ", Place("remote", 1e13, 25e9, 1e-3)),
        ("host=1GB@10GB/s+0ms", Place("host", 1e9, 10e9, 0.0)),
    ],
)
def test_places_are_read(text: str, expected: Place) -> None:
    assert parse_place(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tape=1TB", "'tape=1TB' is not a place"),
        ("host", "'host' is not a place"),
        ("=1GB", "is not a place"),
        ("Host=1GB", "is not a place"),
        ("host=", "not a quantity"),
        ("host=64", "has no unit"),
        ("host=64GB/s", "expected bytes"),
        ("host=-1GB", "not negative"),
        ("disk=1TB@", "not a quantity"),
        ("disk=1TB+1ms", "has the unit"),
        ("disk=1TB@1GB", "expected bytes/s"),
        ("disk=1TB@1GB/s+1", "has no unit"),
        ("disk=1TB@0GB/s", "rate of 0"),
        ("remote=1TB", "lacks the rate of the store"),
        ("x" * 500, "is not a place"),
    ],
)
def test_other_words_get_one_sentence(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        parse_place(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_tiers_by_hand(desktop: Setup) -> None:
    places = [parse_place(text) for text in ("remote=1TB@10GB/s+2ms", "host=4GiB", "disk=100GB")]
    host, disk, remote = tiers_of(desktop, places, BLOCK, None)
    value = desktop.figures.value
    up, down = value("gpu0.h2d.pinned"), value("gpu0.d2h.pinned")
    assert (host.name, host.blocks) == ("host", 2048)
    assert host.read == {"gpu0.h2d": BLOCK / up}
    assert (host.write_s_per_block, host.latency_s) == (BLOCK / down, 0.0)
    assert (disk.name, disk.blocks) == ("disk", int(100e9 // BLOCK))
    assert disk.read == {"disk.read": BLOCK / value("disk.read"), "gpu0.h2d": BLOCK / up}
    assert disk.write_s_per_block == BLOCK / value("disk.write")
    assert disk.latency_s == value("disk.latency")
    assert (remote.name, remote.latency_s) == ("remote", 2e-3)
    assert remote.read == {"network": BLOCK / 10e9, "gpu0.h2d": BLOCK / up}


def test_rates_and_latencies_of_the_user_replace_the_machine_s(desktop: Setup) -> None:
    host, disk = tiers_of(desktop, [parse_place("host=1GiB@5GB/s+1us"), parse_place("disk=1GB@1GB/s+3ms")], BLOCK, None)
    assert host.read == {"gpu0.h2d": BLOCK / 5e9} and host.write_s_per_block == BLOCK / 5e9
    assert host.latency_s == 1e-6
    assert disk.read["disk.read"] == BLOCK / 1e9 and disk.write_s_per_block == BLOCK / 1e9
    assert disk.latency_s == 3e-3


def test_gpus_that_share_a_block_fill_the_tiers_together_and_copy_side_by_side(desktop: Setup) -> None:
    places = [parse_place(text) for text in ("host=4GiB", "disk=100GB", "remote=1TB@10GB/s")]
    alone, shared = (tiers_of(desktop, places, BLOCK, None, gpus) for gpus in (1, 4))
    for one, four in zip(alone, shared, strict=True):
        assert four.blocks == one.blocks // 4
        assert four.read["gpu0.h2d"] == one.read["gpu0.h2d"]
    assert shared[1].read["disk.read"] == 4 * alone[1].read["disk.read"]
    assert shared[2].write_s_per_block == 4 * alone[2].write_s_per_block


def test_what_the_machine_lacks_is_told(desktop: Setup) -> None:
    def refused(*places: str, block: float = BLOCK, host: MemoryUse | None = None, setup: Setup = desktop) -> str:
        with pytest.raises((InputError, DoesNotFit)) as caught:
            tiers_of(setup, [parse_place(text) for text in places], block, host)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'disk' is given twice" in refused("disk=1GB", "host=1GB", "disk=2GB")
    assert "holds 1.82 TiB" in refused("disk=4TB")
    assert "is more than the" in refused("host=1TB")
    assert "less than one block of 2.00 MiB" in refused("host=1MB")
    assert "keeps no cache" in refused("host=1GB", block=0.0)
    assert "has no GPU" in refused("host=1GB", setup=setup_of("cpu-laptop-32"))
    diskless = dataclasses.replace(desktop, machine=dataclasses.replace(desktop.machine, disks=()))
    assert "has no disk" in refused("disk=1GB", setup=diskless)


def test_host_memory_is_shared_with_weights_and_system(desktop: Setup) -> None:
    use = MemoryUse(used=100 * GIB, capacity=128 * GIB)
    (tier,) = tiers_of(desktop, [parse_place("host=28GiB")], BLOCK, use)
    assert tier.blocks == 28 * 512
    with pytest.raises(DoesNotFit, match=r"30\.0 GiB is more than the 28\.0 GiB .* beside weights and cache in RAM"):
        tiers_of(desktop, [parse_place("host=30GiB")], BLOCK, use)
    machine = desktop.machine
    free = machine.memory.capacity.value - machine.reserved.value
    assert tiers_of(desktop, [Place("host", free)], BLOCK, None)
    with pytest.raises(DoesNotFit, match="is more than"):
        tiers_of(desktop, [Place("host", free + GIB)], BLOCK, None)


@pytest.mark.parametrize("name", ["strix-halo-128", "dgx-spark-128", "macbook-m4-max-128"])
def test_one_memory_holds_the_gpu_s_blocks_and_the_host_s(name: str) -> None:
    """What is copied within it is read and written, what comes from outside is written once, beside the weights."""
    setup = setup_of(name)
    dram = setup.figures.value("host.dram")
    places = [parse_place(text) for text in ("host=1GiB", "remote=1TB@10GB/s")]
    host, remote = tiers_of(setup, places, BLOCK, None)
    assert host.read == {"gpu0.hbm": BLOCK / (dram / 2)}
    assert host.write_s_per_block == BLOCK / (dram / 2)
    assert remote.read == {"network": BLOCK / 10e9, "gpu0.hbm": BLOCK / dram}


@pytest.mark.parametrize("engine_name", ["llama.cpp", "vllm"])
def test_a_full_cache_of_the_gpu_leaves_little_of_one_memory(engine_name: str) -> None:
    """What the host tier may have and what weights and the full cache of the GPU take come to no more than there is."""
    setup = make_setup(load_machine("strix-halo-128"), load_model("llama-3.1-8b", "bf16"), load_system(engine_name))
    if engine_name == "vllm":
        setup = make_setup(load_machine("dgx-spark-128"), setup.model, load_system("vllm"))
        engine = vllm_engine(setup, VllmSettings()).engine
    else:
        plan = plan_for("llama.cpp", Request(setup, ("llama-3.1-8b", "bf16"), Workload(prompt=512, generate=128))).plan
        engine = engine_of(setup, plan, Serving(max_running=16, budget=512, context=4096))
    assert engine.host is not None
    block = engine.token_bytes * engine.limits.block_tokens
    capacity, system = setup.machine.memory.capacity.value, setup.machine.reserved.value
    held = setup.model.weight_bytes + engine.cache_tokens * engine.token_bytes + system
    assert held <= engine.host.used <= capacity
    left = capacity - engine.host.used
    (tier,) = tiers_of(setup, [Place("host", left)], block, engine.host)
    assert tier.blocks * block + held <= capacity
    with pytest.raises(DoesNotFit, match="beside model and cache of the GPU, which shares it"):
        tiers_of(setup, [Place("host", left + GIB)], block, engine.host)


def test_every_machine_with_gpu_has_figures_for_every_tier() -> None:
    for name in list_keys("machine"):
        setup = setup_of(name)
        if setup.machine.gpus:
            texts = ["host=64MiB", "remote=1TB@1GB/s", *(["disk=1GB"] if setup.machine.disks else [])]
            tiers = tiers_of(setup, [parse_place(text) for text in texts], BLOCK, None)
            assert len(tiers) == len(texts)
