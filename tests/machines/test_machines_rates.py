"""What parts reach: measured where measured, otherwise fitted, and never inconsistent."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.machines import SourceKind, list_keys, load_cpu, load_disk, load_gpu, load_machine
from stowplan.machines import rates as r


def test_measured_memory_is_used_for_its_own_configuration_only() -> None:
    own = r.dram_bandwidth(load_machine("epyc-9355 + ddr5-6400x12:768GiB"))
    assert (own.value, own.kind) == (598e9, SourceKind.MEASURED)
    both = r.dram_bandwidth(load_machine("2x epyc-9355 + ddr5-6400x24:768GiB"))
    assert both.value == 2 * own.value
    other = r.dram_bandwidth(load_machine("epyc-9355 + ddr5-4800x8:768GiB"))
    assert other.kind is SourceKind.FITTED
    assert other.value == pytest.approx(0.75 * 8 * 38.4e9)


def test_fabric_ceiling_binds() -> None:
    fast = r.dram_bandwidth(load_machine("ryzen-7-7800x3d + ddr5-6400x2:64GiB"))
    assert fast.value == pytest.approx(60e9)
    slow = r.dram_bandwidth(load_machine("ryzen-9-9950x + ddr5-5600x2:64GiB"))
    assert slow.value == pytest.approx(0.83 * 2 * 44.8e9)


def test_the_users_own_measurement_wins() -> None:
    for key in ("rtx-4090-desktop-128", "hgx-h100-8", "epyc-9355-rtx-5090-768"):
        number = r.dram_bandwidth(load_machine(key, ["memory.bandwidth=61GB/s"]))
        assert number.value == pytest.approx(61e9)
        assert (number.kind, number.source) == (SourceKind.MEASURED, "given by the user")


@settings(deadline=None, max_examples=80)
@given(cpu=st.sampled_from(list_keys("cpu")), channels=st.integers(1, 12), more=st.integers(1, 12))
def test_more_channels_never_read_slower(cpu: str, channels: int, more: int) -> None:
    for kind in list_keys("memory"):
        try:
            machine = load_machine(f"{cpu} + {kind}x1:32GiB")
        except InputError:
            continue
        few = load_machine(machine.spec, [f"memory.channels={channels}"])
        many = load_machine(machine.spec, [f"memory.channels={channels + more}"])
        assert r.dram_bandwidth(few).value <= r.dram_bandwidth(many).value


def test_copies_use_what_was_measured_on_that_link() -> None:
    spec = "rtx-4090 + epyc-9355 + ddr5-6400x12:768GiB"
    own = r.host_to_device(load_machine(spec))
    assert (own.value, own.kind) == (23.9e9, SourceKind.MEASURED)
    assert r.device_to_host(load_machine(spec)).value == 26.6e9
    assert r.host_to_device(load_machine(spec), pinned=False).value == 12.9e9
    narrow = r.host_to_device(load_machine(spec, ["gpu.pcie.lanes=4"]))
    assert narrow.value == pytest.approx(0.88 * 4 * 1.96923e9)
    assert narrow.kind is SourceKind.FITTED
    wide = load_machine(spec, ["gpu.pcie.generation=5"])
    assert r.host_to_device(wide).value == pytest.approx(0.88 * 63e9, rel=0.01)
    told = load_machine(spec, ["gpu.pcie.lanes=4", "gpu.h2d=7GB/s"])
    assert r.host_to_device(told).value == 7e9
    assert r.device_to_host(told).value == pytest.approx(0.88 * 4 * 1.96923e9)


@pytest.mark.parametrize("key", list_keys("machine"))
def test_every_machine_has_consistent_rates(key: str) -> None:
    machine = load_machine(key)
    dram = r.dram_bandwidth(machine)
    assert 0 < dram.value <= machine.memory.channels * machine.memory.channel_bandwidth.value
    for index, gpu in enumerate(machine.gpus):
        for copy in (r.host_to_device, r.device_to_host):
            pinned, pageable = copy(machine, index), copy(machine, index, pinned=False)
            assert 0 < pageable.value <= pinned.value <= dram.value
            assert pinned.value <= machine.pcie[index].bandwidth.value
        assert r.gpu_read_bandwidth(gpu).value <= gpu.bandwidth.value
        assert r.launch_overhead(gpu, graph=True).value <= r.launch_overhead(gpu).value
        for arithmetic in ("fp32", "fp16", "bf16", "fp8", "int8", "fp4"):
            assert r.peak(gpu, arithmetic).value > 0
    if len(machine.gpus) > 1:
        assert r.gpu_to_gpu(machine).value > 0
    for disk in machine.disks:
        assert 0 < r.page_fault_read(disk).value <= r.disk_read(disk).value
        assert r.page_fault_read(disk).value <= 6e9


def test_page_faults_stop_at_a_ceiling() -> None:
    assert r.page_fault_read(load_disk("intel-p4510")).value == pytest.approx(1.6e9)
    fast = load_machine("ryzen-9-7950x + ddr5-5600x2:64GiB + samsung-990-pro", ["disk.read=28GB/s"])
    assert r.page_fault_read(fast.disks[0]).value == 6e9


def test_missing_arithmetic_falls_to_a_wider_one() -> None:
    t4 = load_gpu("t4")
    assert r.peak(t4, "bf16") == t4.peaks["fp16"]
    assert r.peak(load_gpu("a100-80gb-sxm"), "fp8").value == 312e12
    with pytest.raises(InputError, match="no arithmetic"):
        r.peak(t4, "fp12")


def test_errors_name_the_machine() -> None:
    with pytest.raises(InputError, match="no GPU 3"):
        r.host_to_device(load_machine("t4-16"), 3)
    with pytest.raises(InputError, match="need two"):
        r.gpu_to_gpu(load_machine("t4-16"))


def test_every_rate_has_a_spread() -> None:
    machine = load_machine("rtx-4090-desktop-128")
    known = [r.dram_bandwidth(machine), r.host_to_device(machine), r.gpu_read_bandwidth(machine.gpus[0])]
    assert all(0 < r.relative_sd(number) < 1 for number in known)
    assert r.relative_sd(machine.gpus[0].bandwidth) == r.DEFAULT_SD[SourceKind.DATASHEET]


def test_bandwidth_override_keeps_the_reached_share() -> None:
    plain, twice = load_machine("t4-16"), load_machine("rtx-4090-desktop-128", ["gpu.bandwidth=2016GB/s"])
    assert r.gpu_read_bandwidth(plain.gpus[0]).value == pytest.approx(0.9 * 320e9)
    assert r.gpu_read_bandwidth(twice.gpus[0]).value == pytest.approx(2 * 921e9)
    assert r.gpu_read_bandwidth(twice.gpus[0]).kind is SourceKind.FITTED


def test_interleaving_over_two_skylakes_reaches_what_was_measured() -> None:
    # 130 GB/s interleaved over both sockets, 100 GB/s on each with a node of its own (ik_llama.cpp discussion 258);
    # half of what each socket reads crosses, in one of two directions
    machine = load_machine("2x xeon-gold-6138 + ddr4-2666x12:1TiB", ["memory.bandwidth=200GB/s"])
    link = r.socket_link(machine)
    assert link is not None
    assert min(r.dram_bandwidth(machine).value, 4 * link.value) == pytest.approx(130e9, rel=0.05)


@pytest.mark.parametrize("cpu", [key for key in list_keys("cpu") if key.startswith(("xeon", "epyc"))])
def test_another_sockets_memory_is_slower_than_ones_own(cpu: str) -> None:
    kind = "ddr5-4800" if load_cpu(cpu).memory_kind == "ddr5" else "ddr4-2666"
    spec = f"2x {cpu} + {kind}x{2 * load_cpu(cpu).memory_channels}:256GiB"
    link = r.socket_link(load_machine(spec))
    assert link is not None
    assert 0.2 < link.value / (r.dram_bandwidth(load_machine(spec)).value / 2) < 0.9
    assert r.socket_link(load_machine(f"{cpu} + {kind}x1:32GiB")) is None


def test_links_that_nobody_names_are_a_share_of_the_memory() -> None:
    machine = load_machine("2x ryzen-9-9950x + ddr5-5600x4:128GiB")
    link = r.socket_link(machine)
    assert link is not None
    assert link.value == pytest.approx(0.35 * r.dram_bandwidth(machine).value / 2)
