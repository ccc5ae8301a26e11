"""The host library computes what it claims to time, and refuses what it cannot; disks without O_DIRECT are named."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from stowplan_calibrate.building import CannotMeasure, build, find_compiler
from stowplan_calibrate.host import compute, disk, memory, nodes
from stowplan_calibrate.host.library import HostLibrary, load_host_library
from stowplan_calibrate.measuring import Opener, Surroundings
from stowplan_calibrate.sensors import host_sensors

Blocks = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler is here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOWPLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_host_library()


def surroundings(folder: Path, library: HostLibrary | None, memory_bytes: float = 2e8) -> Surroundings:
    return Surroundings(cores=2, memory=memory_bytes, folder=folder, quick=True, library=library)


def quantised(rng: np.random.Generator, rows: int, columns: int, kind: str) -> tuple[Blocks, np.ndarray]:
    """Blocks of 32 with a 16-bit float scale (upper half of a float), and the matrix that they stand for."""
    blocks = rows * columns // 32
    scales = (rng.integers(0x3C00, 0x3C80, blocks).astype(np.uint32) << 16).view(np.float32)
    head = (scales.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(blocks, 2)
    if kind == "q8_0":
        codes = rng.integers(-127, 128, (blocks, 32)).astype(np.int8)
        stored, plain = codes.view(np.uint8), codes.astype(np.float64)
    else:
        stored = rng.integers(0, 256, (blocks, 16)).astype(np.uint8)
        plain = np.hstack([stored & 15, stored >> 4]).astype(np.float64) - 8
    matrix = (plain * scales[:, None].astype(np.float64)).reshape(rows, columns)
    return np.ascontiguousarray(np.hstack([head, stored])), matrix


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("threads", [1, 2])
def test_gemv_multiplies(library: HostLibrary, kind: str, threads: int) -> None:
    rng = np.random.default_rng(3)
    rows, columns = 96, 576
    x = rng.standard_normal(columns).astype(np.float32)
    if kind in ("f32", "bf16"):
        floats = rng.standard_normal((rows, columns)).astype(np.float32)
        half = (floats.view(np.uint32) >> 16).astype(np.uint16)
        stored = floats if kind == "f32" else half
        matrix = floats if kind == "f32" else (half.astype(np.uint32) << 16).view(np.float32)
    else:
        stored, matrix = quantised(rng, rows, columns, kind)  # type: ignore[assignment]
    y = np.zeros(rows, np.float32)
    number = compute.GEMV_FORMATS[kind]
    assert stored.nbytes == rows * columns / 32 * compute.BLOCK_BYTES[kind]
    taken = library.seconds(
        "stow_gemv", number, stored.ctypes.data, x.ctypes.data, y.ctypes.data, rows, columns, threads
    )
    wanted = matrix.astype(np.float64) @ x.astype(np.float64)
    scale = np.abs(matrix).astype(np.float64) @ np.abs(x).astype(np.float64)
    assert taken.seconds > 0.0
    assert np.all(np.abs(y - wanted) <= 0.02 * scale)  # x itself is rounded to 8 bits


def test_gemm_multiplies(library: HostLibrary) -> None:
    rng = np.random.default_rng(4)
    m, n, k = 12, 64, 300
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    c = np.full((m, n), 7.0, np.float32)
    library.seconds("stow_gemm", a.ctypes.data, b.ctypes.data, c.ctypes.data, m, n, k, 2)
    assert np.allclose(c, a @ b, atol=1e-3)
    with pytest.raises(CannotMeasure, match="gemm"):
        library.seconds("stow_gemm", a.ctypes.data, b.ctypes.data, c.ctypes.data, 5, n, k, 1)


def test_attention_attends(library: HostLibrary) -> None:
    rng = np.random.default_rng(5)
    heads, shared, width, context = 4, 2, 64, 50
    q = rng.standard_normal((heads, width)).astype(np.float32)
    floats = rng.standard_normal((2, shared, context, width)).astype(np.float32)
    half = (floats.view(np.uint32) >> 16).astype(np.uint16)
    keys, values = (half.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    out = np.zeros((heads, width), np.float32)
    stored = [np.ascontiguousarray(each) for each in half]
    addresses = (q.ctypes.data, stored[0].ctypes.data, stored[1].ctypes.data, out.ctypes.data)
    library.seconds("stow_attention", *addresses, heads, shared, width, context, 2)
    for head in range(heads):
        scores = keys[head // 2] @ q[head]
        weights = np.exp(scores - scores.max())
        assert np.allclose(out[head], weights @ values[head // 2] / weights.sum(), atol=1e-3)


def test_memory_kernels_touch_what_they_say(library: HostLibrary) -> None:
    b, c = np.arange(100_003, dtype=np.float32), np.ones(100_003, np.float32)
    a = np.zeros_like(b)
    library.seconds("stow_triad", a.ctypes.data, b.ctypes.data, c.ctypes.data, a.size, 2)
    assert np.array_equal(a, b + 3)
    library.seconds("stow_copy", a.ctypes.data, b.ctypes.data, a.size, 2)
    assert np.array_equal(a, b)


def test_clock_and_peak_are_those_of_a_processor(library: HostLibrary) -> None:
    chain = library.seconds("stow_chain", 200_000, 1)
    hertz = 200_000 * compute.CHAIN_ADDS / (chain.seconds * chain.running)
    assert 0.5e9 < hertz < 8e9
    fma = library.seconds("stow_fma", 100_000, 1)
    flops = 2 * 100_000 * compute.FMA_CHAINS * library.vector_width / (fma.seconds * fma.running)
    assert 1.0 < flops / hertz < 4.5 * library.vector_width


OPENERS: dict[str, Opener] = {
    "reads": memory.reads,
    "copies": memory.copies,
    "triads": memory.triads,
    "faults": memory.anonymous_faults,
    "clocks": compute.clocks,
    "peaks": compute.peaks,
    "gemv": compute.gemv,
    "attention": compute.attention,
    "mapped": disk.mapped,
}


@pytest.mark.parametrize("name", list(OPENERS))
def test_every_measurement_yields_points_that_run(library: HostLibrary, tmp_path: Path, name: str) -> None:
    with OPENERS[name](surroundings(tmp_path, library)) as points:
        assert points
        assert len({str(point.parameters) for point in points}) == len(points)
        for point in points[:2]:
            taken = point.run()
            assert taken.seconds > 0.0
            assert 0.0 <= taken.running <= 1.0
            assert all(amount > 0.0 for amount in point.amounts.values())
    assert not list(tmp_path.iterdir())


def test_numpy_stands_in_for_the_library(tmp_path: Path) -> None:
    around = surroundings(tmp_path, None)
    for opener in (memory.reads, memory.copies, memory.triads, compute.gemv, compute.gemm):
        with opener(around) as points:
            assert all(point.parameters["kernel"] == "numpy" for point in points)
            assert points[0].run().seconds > 0.0
    with pytest.raises(CannotMeasure, match="no C compiler"), compute.clocks(around):
        pass


def test_direct_reads_and_writes_or_a_sentence(library: HostLibrary, tmp_path: Path) -> None:
    for opener in (disk.reads, disk.writes):
        try:
            with opener(surroundings(tmp_path, library)) as points:
                assert points[0].run().seconds > 0.0
        except CannotMeasure as error:
            assert "O_DIRECT is refused" in str(error) or "MiB are free" in str(error)
        assert not list(tmp_path.iterdir())


def test_a_memory_file_system_refuses_direct_reads(library: HostLibrary) -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        pytest.skip("no writable memory file system is here")
    path = folder / f"stowplan-test-{os.getpid()}"
    path.write_bytes(bytes(2**16))
    try:
        taken = library.raw("stow_disk", os.fsencode(path), 2**16, 2**12, 1, 1, 0, 1, 0)
    finally:
        path.unlink()
    if taken > 0:  # tmpfs takes O_DIRECT since Linux 6.6
        disk.refuse_without_direct(path, taken)
        taken = -float(errno.EINVAL)
    with pytest.raises(CannotMeasure, match=r"/dev/shm: O_DIRECT is refused .* --folder"):
        disk.refuse_without_direct(path, taken)
    with pytest.raises(CannotMeasure, match="it fails"):
        disk.refuse_without_direct(path, -float(errno.EIO))


def test_too_little_room_is_said_before_anything_is_written(
    library: HostLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 2**20, 2**20))
    with pytest.raises(CannotMeasure, match="1 MiB are free"), disk.reads(surroundings(tmp_path, library)):
        pass
    assert not list(tmp_path.iterdir())


def test_no_permission_is_said(library: HostLibrary, tmp_path: Path) -> None:
    missing = tmp_path / "absent"
    with pytest.raises(CannotMeasure, match="no test file can be written"), disk.mapped(surroundings(missing, library)):
        pass


def test_nodes_are_read_from_recorded_files(tmp_path: Path) -> None:
    for number, cores in ((0, "0-3,8"), (1, "4-7")):
        folder = tmp_path / f"node{number}"
        folder.mkdir()
        (folder / "cpulist").write_text(f"{cores}\n")
        (folder / "meminfo").write_text(f"Node {number} MemTotal:       1024 kB\nNode {number} MemFree: 3 kB\n")
    found = nodes.read_nodes(tmp_path)
    assert [(node.number, node.cores, node.memory) for node in found] == [
        (0, (0, 1, 2, 3, 8), 2.0**20),
        (1, (4, 5, 6, 7), 2.0**20),
    ]
    assert nodes.read_nodes(tmp_path / "absent") == ()
    assert nodes.parse_cores("x,-3,9999999-2,1") == (1,)


def test_clocks_are_read_from_recorded_files(tmp_path: Path) -> None:
    for number, kilohertz in ((0, 3_000_000), (1, 2_000_000)):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
    assert host_sensors(tmp_path) == {"host clock": 2.5e9}
    text = tmp_path / "cpuinfo"
    text.write_text("cpu MHz\t\t: 2400.5\ncpu MHz\t\t: 2600.5\n")
    assert host_sensors(tmp_path / "absent", text) == {"host clock": 2.5005e9}
    assert host_sensors(tmp_path / "absent", tmp_path / "absent") == {}


def test_no_compiler_and_one_that_refuses_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotMeasure, match="no C compiler is here"):
        find_compiler(["stow-no-such-compiler"], "C compiler")
    monkeypatch.setenv("STOWPLAN_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "broken.c"
    source.write_text("int main( { }\n")
    if shutil.which("cc"):
        with pytest.raises(CannotMeasure, match="cannot build broken"):
            build(str(shutil.which("cc")), [], [source], "broken")
    assert not list((tmp_path / "cache").rglob("broken*.tmp")) and not list((tmp_path / "cache").rglob(".broken*"))


def test_built_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    monkeypatch.setenv("STOWPLAN_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "one.c"
    source.write_text("int main(void) { return 0; }\n")
    first = build(compiler, ["-O0"], [source], "one")
    written = first.stat().st_mtime_ns
    assert build(compiler, ["-O0"], [source], "one") == first
    assert first.stat().st_mtime_ns == written
    source.write_text("int main(void) { return 1; }\n")
    assert build(compiler, ["-O0"], [source], "one") != first
