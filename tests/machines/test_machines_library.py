"""Every shipped file, and the user's own folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stowplan.errors import BadFile, UnknownName
from stowplan.machines import library, load_machine
from stowplan.machines.library import FOLDERS, list_keys, load_fields
from stowplan.machines.schema import PartKind

PARTS = [(kind, key) for kind in FOLDERS for key in list_keys(kind)]
NAMED_MACHINES = (
    "rtx-4090-desktop-128",
    "rtx-4090-desktop-512",
    "rtx-3090-desktop-64",
    "t4-16",
    "a100-80gb-sxm",
    "h100-sxm",
    "h200-sxm",
    "cpu-laptop-32",
)


@pytest.mark.parametrize(("kind", "key"), PARTS, ids=str)
def test_every_shipped_file_is_valid(kind: PartKind, key: str) -> None:
    assert load_fields(kind, key)[0] == key
    assert re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", key)


@pytest.mark.parametrize("key", list_keys("machine"))
def test_every_machine_composes(key: str) -> None:
    machine = load_machine(key)
    assert machine.key == machine.spec == key
    assert len(machine.pcie) == len(machine.gpus)
    assert 0 < machine.reserved.value < machine.memory.capacity.value


def test_counts() -> None:
    least = {"gpu": 34, "cpu": 22, "memory": 12, "disk": 9, "link": 12, "machine": 22}
    for kind, count in least.items():
        assert len(list_keys(kind)) >= count, kind  # type: ignore[arg-type]
    assert set(NAMED_MACHINES) <= set(list_keys("machine"))


def test_a_key_names_one_kind_of_part() -> None:
    keys = [key for kind in FOLDERS if kind != "machine" for key in list_keys(kind)]
    assert len(keys) == len(set(keys))


def test_links_and_memory_that_parts_name_exist() -> None:
    for key in list_keys("gpu"):
        gpu = library.load_gpu(key)
        assert gpu.peer_link is None or library.has_part("link", gpu.peer_link)
        assert gpu.unified or library.has_part("link", f"pcie-{gpu.pcie_generation}.0")
    for key in list_keys("cpu"):
        link = library.load_cpu(key).socket_link
        assert link is None or library.has_part("link", link), key
        for name in library.load_cpu(key).measured:
            kind = name.partition(":")[2].rpartition("x")[0]
            assert library.has_part("memory", kind), (key, name)


def test_memory_kinds_move_eight_bytes_a_transfer() -> None:
    for key in list_keys("memory"):
        speed = float(key.rpartition("-")[2])
        memory = library.load_memory(key, 2, library.given(1e9))
        assert memory.channel_bandwidth.value == pytest.approx(speed * 8e6, rel=1e-3)


def test_peaks_are_ordered_and_reported_names_are_unique() -> None:
    reported: dict[str, str] = {}
    for key in list_keys("gpu"):
        peaks = library.load_gpu(key).peaks
        ladder = [peaks[name].value for name in ("fp32", "fp16", "fp8", "fp4") if name in peaks]
        assert ladder == sorted(ladder), key
        for name in load_fields("gpu", key)[1].get("reported", ()):
            assert reported.setdefault(library.normalised(name), key) == key


def test_achieved_never_beats_the_datasheet() -> None:
    for key in list_keys("gpu"):
        gpu = library.load_gpu(key)
        if "read_bandwidth" in gpu.measured:
            assert 0.5 < gpu.measured["read_bandwidth"].value / gpu.bandwidth.value < 1.0, key
        for name in ("fp16", "bf16", "fp8"):
            if f"gemm_{name}" in gpu.measured:
                assert gpu.measured[f"gemm_{name}"].value < 1.05 * gpu.peaks[name].value, key


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"rtx-4090") as caught:
        library.load_gpu("rtx-409")
    assert "rtx-4090" in caught.value.nearest
    for hostile in ("../../etc/passwd", "a/b", "", "x" * 500, "rtx-4090\0"):
        with pytest.raises(UnknownName):
            library.load_gpu(hostile)


def test_own_folder_adds_and_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = library.find_file("gpu", "rtx-4090").read_text()
    (tmp_path / "gpus").mkdir()
    (tmp_path / "gpus" / "rtx-4090.toml").write_text(shipped.replace('"24 GiB"', '"48 GiB"'))
    (tmp_path / "gpus" / "my-gpu.toml").write_text(shipped)
    monkeypatch.setenv(library.PROFILES_VARIABLE, str(tmp_path))
    assert library.load_gpu("rtx-4090").memory.value == 48 * 2**30
    assert library.load_gpu("my-gpu").key == "my-gpu"
    assert "my-gpu" in list_keys("gpu")
    assert "rtx-3090" in list_keys("gpu")
    assert load_machine("rtx-4090-desktop-128").gpus[0].memory.value == 48 * 2**30


def test_missing_file_is_one_sentence() -> None:
    with pytest.raises(BadFile, match=r"nowhere\.toml: cannot be read"):
        load_machine("nowhere.toml")


def test_normalised_names_match_what_systems_report() -> None:
    assert library.find_reported("gpu", "NVIDIA GeForce RTX 4090") == "rtx-4090"
    assert library.find_reported("gpu", "NVIDIA H100 80GB HBM3") == "h100-sxm"
    assert library.find_reported("gpu", "NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert library.find_reported("cpu", "AMD Ryzen 9 7950X 16-Core Processor") == "ryzen-9-7950x"
    assert library.find_reported("cpu", "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz") == "xeon-gold-6148"
