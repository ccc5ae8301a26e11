"""Machines from composition texts, and changes to them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import BadQuantity, InputError, UnknownName
from stowplan.machines import OVERRIDES, Machine, load_machine
from stowplan.machines import rates as r

DESKTOP = "rtx-4090 + ryzen-9-7950x + ddr5-5600x2:128GiB + samsung-990-pro"
GIB = 2**30


def rebuilt(machine: Machine) -> Machine:
    return load_machine(machine.spec, [f"{path}={value}" for path, value in machine.overrides])


def test_a_desktop_from_parts() -> None:
    machine = load_machine(DESKTOP)
    assert machine.gpus[0].memory.value == 24 * GIB
    assert (machine.memory.channels, machine.memory.capacity.value) == (2, 128 * GIB)
    assert (machine.pcie[0].key, machine.pcie[0].lanes) == ("pcie-4.0", 16)
    assert machine.disks[0].key == "samsung-990-pro"
    assert machine.peer is None
    named = load_machine("rtx-4090-desktop-128")
    assert (machine.gpus, machine.cpu, machine.memory, machine.disks) == (
        named.gpus,
        named.cpu,
        named.memory,
        named.disks,
    )


def test_counts_sockets_capacities_and_order() -> None:
    machine = load_machine("ddr5-6000x24:768GiB+2x epyc-9355 +2x rtx-3090+ rtx-5090 + 2x samsung-990-pro:4TB")
    assert [gpu.key for gpu in machine.gpus] == ["rtx-3090", "rtx-3090", "rtx-5090"]
    assert (machine.sockets, machine.cores) == (2, 64)
    assert [disk.capacity.value for disk in machine.disks] == [4e12, 4e12]
    assert machine.pcie[2].key == "pcie-5.0"


def test_no_disk_and_no_gpu_are_allowed() -> None:
    machine = load_machine("ryzen-9-7950x + ddr5-5600x2:64GiB")
    assert (machine.gpus, machine.pcie, machine.disks) == ((), (), ())


def test_desktop_lanes_are_shared_and_server_lanes_are_not() -> None:
    two = load_machine("2x rtx-3090 + ryzen-9-7950x + ddr5-5600x2:64GiB")
    assert [link.lanes for link in two.pcie] == [8, 8]
    three = load_machine("3x rtx-3090 + ryzen-9-7950x + ddr5-5600x2:64GiB")
    assert [link.lanes for link in three.pcie] == [4, 4, 4]
    server = load_machine("2x rtx-3090 + epyc-7742 + ddr4-3200x8:64GiB")
    assert [link.lanes for link in server.pcie] == [16, 16]


def test_a_link_is_the_lesser_of_both_ends() -> None:
    machine = load_machine("rtx-5090 + core-i9-10900x + ddr4-3200x4:64GiB")
    assert machine.pcie[0].key == "pcie-3.0"
    assert machine.pcie[0].bandwidth.value == pytest.approx(15.75e9, rel=0.01)


def test_unified_memory_is_a_share_of_the_host() -> None:
    machine = load_machine("apple-m3-ultra + apple-m3-ultra-cpu + lpddr5-6400x16:256GiB")
    assert machine.gpus[0].memory.value == pytest.approx(0.75 * 256 * GIB)
    more = load_machine(machine.spec, ["memory.capacity=512GiB"])
    assert more.gpus[0].memory.value == pytest.approx(0.75 * 512 * GIB)


def test_peers() -> None:
    hgx = load_machine("hgx-h100-8")
    assert hgx.peer is not None
    assert hgx.peer.key == "nvlink-4"
    assert load_machine("h100-sxm").peer is None
    bridged = load_machine("dual-rtx-3090-nvlink-256").peer
    assert bridged is not None
    assert bridged.key == "nvlink-3-bridge"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "needs a machine"),
        ("rtx-4090", "is a gpu, not a machine"),
        ("rtx-4090 + ddr5-5600x2:128GiB", "names no CPU"),
        ("rtx-4090 + ryzen-9-7950x", "names no memory"),
        ("rtx-4090 + ryzen-9-7950x + ddr5-5600", "channels and capacity"),
        ("rtx-4090 + ryzen-9-7950x + ddr5-5600x4:128GiB", "ddr5-5600x2:128GiB"),
        ("rtx-4090 + ryzen-9-7950x + ddr4-3200x2:128GiB", "takes ddr5"),
        ("rtx-4090 + ryzen-9-7950x + ddr5-5600x2:128", "has no unit"),
        ("rtx-4090 + ryzen-9-7950x + ddr5-5600x0:128GiB", "above zero"),
        ("rtx-4090 + ryzen-9-7950x + epyc-9355 + ddr5-5600x2:1GiB", "two CPUs"),
        ("ryzen-9-7950x + ddr5-5600x2:1GiB + ddr5-5600x2:1GiB", "two memories"),
        ("rtx-4090 + + ryzen-9-7950x", "empty part"),
        ("0x rtx-4090 + ryzen-9-7950x + ddr5-5600x2:1GiB", "between 1 and 64"),
        ("40x rtx-4090 + 40x rtx-3090 + ryzen-9-7950x + ddr5-5600x2:1GiB", "more than 64"),
        ("t4-16 + ryzen-9-7950x", "whole machine"),
        ("+" * 5000, "needs a machine"),
    ],
)
def test_parts_that_make_no_machine(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_machine(spec)
    assert "\n" not in str(caught.value)


def test_unknown_names_carry_the_nearest() -> None:
    with pytest.raises(UnknownName, match="rtx-4090-desktop"):
        load_machine("rtx-4090-desktop")
    with pytest.raises(UnknownName, match="samsung-990-pro"):
        load_machine(DESKTOP.replace("samsung-990-pro", "samsung-990pro"))
    with pytest.raises(UnknownName, match=r"gpu\.pcie\.lanes"):
        load_machine(DESKTOP, ["gpu.pci.lanes=4"])


def test_files_as_machines_and_parts(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_text(
        'name = "box"\ngpus = ["rtx-4090"]\ncpu = "own.toml"\nmemory = "ddr5-5600x2:64GiB"\n'
        'memory_bandwidth = { value = "61 GB/s", source = "measured", where = "here" }\n'
    )
    source = Path(__file__).parents[2] / "hwprofiles" / "cpus" / "ryzen-9-7950x.toml"
    (tmp_path / "own.toml").write_text('kind = "cpu"\n' + source.read_text())
    machine = load_machine(str(tmp_path / "box.toml"))
    assert (machine.key, machine.cpu.key) == ("box", "own")
    assert r.dram_bandwidth(machine).value == 61e9
    assert rebuilt(machine) == machine
    joined = load_machine(f"{tmp_path / 'own.toml'} + ddr5-5600x2:64GiB")
    assert joined.cpu.key == "own"


def test_overrides_do_what_they_say() -> None:
    machine = load_machine(
        "2x rtx-4090 + epyc-9355 + ddr5-6400x12:768GiB + samsung-990-pro + crucial-t700",
        [
            "gpu.memory=48GiB",
            "gpu1.memory=20GiB",
            "gpu.pcie.lanes=4",
            "gpu0.pcie.generation=5",
            "disk1.read=12GB/s",
            "memory.capacity=256GiB",
            "memory.channels=4",
            "cpu.cores=16",
            "reserved=8GiB",
            "gpu.fp16=100TFLOP/s",
        ],
    )
    assert [gpu.memory.value / GIB for gpu in machine.gpus] == [48, 20]
    assert [(link.key, link.lanes) for link in machine.pcie] == [("pcie-5.0", 4), ("pcie-4.0", 4)]
    assert machine.disks[0].read.value != 12e9 == machine.disks[1].read.value
    assert (machine.memory.channels, machine.cores) == (4, 16)
    assert machine.memory.capacity.value == 256 * GIB
    assert machine.reserved.value == 8 * GIB
    assert machine.gpus[0].peaks["fp16"].value == 100e12
    assert len(machine.overrides) == 10
    assert rebuilt(machine) == machine


def test_memory_of_a_gpu_that_shares_the_hosts_is_its_limit() -> None:
    machine = load_machine("strix-halo-128", ["gpu.memory=117GiB"])
    gpu = machine.gpus[0]
    assert gpu.unified_share is not None
    assert gpu.memory.value == pytest.approx(117 * GIB)
    assert gpu.unified_share.value * machine.memory.capacity.value == pytest.approx(117 * GIB)
    assert machine.memory.capacity == load_machine("strix-halo-128").memory.capacity
    assert rebuilt(machine) == machine
    with pytest.raises(InputError, match=r"gpu0\.memory=200 GiB: .* shares the 128 GiB of the host"):
        load_machine("strix-halo-128", ["gpu.memory=200GiB"])
    larger = load_machine("strix-halo-128", ["memory.capacity=256GiB", "gpu.memory=200GiB"])
    assert larger.gpus[0].memory.value == pytest.approx(200 * GIB)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gpu.memory", "path=value"),
        ("=4", "path=value"),
        ("gpu.memory=", "path=value"),
        ("gpu.memory=48", "has no unit"),
        ("gpu.memory=0GiB", "above zero"),
        ("gpu.memory=-1GiB", "not negative"),
        ("gpu7.memory=1GiB", "has 1 gpu"),
        ("disk3.read=1GB/s", "has 1 disk"),
        ("memory.channels=2.5", "whole number"),
        ("memory.channels=9e99", "larger than any"),
        ("gpu.pcie.lanes=4096", "PCIe joins"),
        ("gpu.pcie.generation=17", "pcie-17"),
        ("peer.bandwidth=1GB/s", "no link between GPUs"),
    ],
)
def test_wrong_overrides(override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_machine(DESKTOP, [override])
    with pytest.raises(InputError, match="has no gpu"):
        load_machine("cpu-laptop-32", ["gpu.memory=1GiB"])
    with pytest.raises(InputError, match="not PCIe"):
        load_machine("strix-halo-128", ["gpu.pcie.lanes=4"])
    with pytest.raises(BadQuantity):
        load_machine(DESKTOP, ["gpu.clock=1GiB"])


EXAMPLES = {
    "bytes": "33GiB",
    "bytes/s": "77GB/s",
    "flop/s": "50TFLOP/s",
    "seconds": "3us",
    "hertz": "2GHz",
    "watts": "300W",
    "money": "900USD",
    "count": "4",
}


@pytest.mark.parametrize("path", OVERRIDES)
def test_every_path_changes_the_machine(path: str) -> None:
    spec = "dual-rtx-3090-nvlink-256" if not path.startswith("socket_link") else "2x epyc-9355 + ddr5-6400x24:768GiB"
    text = f"{path}={EXAMPLES[OVERRIDES[path].dimension]}" if "generation" not in path else f"{path}=3"
    changed = load_machine(spec, [text])
    plain = load_machine(spec)
    same = [getattr(changed, name) == getattr(plain, name) for name in ("gpus", "cpu", "memory", "disks", "pcie")]
    same += [getattr(changed, name) == getattr(plain, name) for name in ("peer", "reserved", "nodes", "socket_link")]
    assert not all(same)
    assert rebuilt(changed) == changed


def test_memory_nodes_follow_sockets_unless_they_are_given() -> None:
    spec = "2x epyc-9355 + ddr5-6400x24:768GiB"
    assert [load_machine(spec, changes).nodes for changes in ([], ["memory.nodes=1"], ["memory.nodes=8"])] == [2, 1, 8]
    assert load_machine("epyc-9355 + ddr5-6400x12:768GiB").nodes == 1
    with pytest.raises(InputError, match=r"memory\.nodes=3"):
        load_machine(spec, ["memory.nodes=3"])
    with pytest.raises(InputError, match="one socket"):
        load_machine("epyc-9355 + ddr5-6400x12:768GiB", ["socket_link.bandwidth=100GB/s"])


def test_a_machine_file_may_divide_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('name = "server"\ncpu = "2x epyc-9355"\nmemory = "ddr5-6400x24:768GiB"\nmemory_nodes = 8\n')
    machine = load_machine(str(path))
    assert machine.nodes == 8
    assert machine.socket_link is not None and machine.socket_link.key == "xgmi-3-x4"


GPUS = st.sampled_from(["rtx-4090", "rtx-3090", "h100-sxm", "t4", "mi300x"])
CPUS = st.sampled_from(["epyc-9355", "epyc-9654", "xeon-platinum-8480", "ryzen-9-9950x"])


HOSTS = st.builds(
    lambda sockets, cpu, kind, size: f"{sockets}x {cpu} + {kind}x{2 * sockets}:{size}GiB",
    st.integers(1, 2),
    CPUS,
    st.sampled_from(["ddr5-4800", "ddr5-6000"]),
    st.integers(1, 4096),
)


@settings(deadline=None, max_examples=60)
@given(
    gpus=st.lists(st.tuples(st.integers(1, 4), GPUS), max_size=3),
    host=HOSTS,
    disk=st.sampled_from(["", " + samsung-990-pro", " + 2x crucial-t700:1TB"]),
    paths=st.lists(st.sampled_from(sorted(OVERRIDES)), max_size=5),
)
def test_spec_and_overrides_rebuild_the_machine(
    gpus: list[tuple[int, str]], host: str, disk: str, paths: list[str]
) -> None:
    spec = " + ".join([*(f"{count}x {name}" for count, name in gpus), host]) + disk
    changes = [f"{path}={EXAMPLES[OVERRIDES[path].dimension]}" for path in paths]
    try:
        machine = load_machine(spec, changes)
    except InputError:
        # A path for a device or link that this machine lacks.
        return
    assert rebuilt(machine) == machine
    for index in range(len(machine.gpus)):
        assert r.host_to_device(machine, index).value <= r.dram_bandwidth(machine).value * (1 + 1e-9)


@pytest.mark.parametrize("key", ["hgx-b200-8", "rtx-4090-desktop-128", "mac-studio-m3-ultra-512"])
def test_one_machine_loads_in_milliseconds(key: str) -> None:
    assert min(_seconds(key) for _ in range(10)) < 0.020


def _seconds(key: str) -> float:
    start = time.process_time()
    load_machine(key)
    return time.process_time() - start
