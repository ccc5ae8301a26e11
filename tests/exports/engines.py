"""llama.cpp for the tests: its prebuilt libraries with a software GPU, and its RPC backend with processes as GPUs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from tests.exports.building import built, run, unpack_debian

NPM = "@node-llama-cpp/linux-x64-vulkan@3.22.1"  # llama.cpp v0.5.0
SOURCES = "llama-cpp-python==0.3.36"  # carries the sources of llama.cpp 0c1e57098, v0.5.0
DEBIAN = (
    "mesa-vulkan-drivers libvulkan1 libllvm15 libz3-4 libwayland-client0 libxcb1 libxcb-randr0 libxcb-dri3-0 "
    "libxcb-present0 libxcb-sync1 libxcb-xfixes0 libxcb-shm0 libxshmfence1 libx11-xcb1 libxau6 libxdmcp6 libbsd0 "
    "libmd0 libdrm2 libdrm-amdgpu1 libelf1 libedit2 libxml2 libtinfo6 libicu72"
)
_NO_VULKAN = {"VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent"}


@dataclass(frozen=True, slots=True)
class LlamaCppBuild:
    """A build of llama.cpp whose GPUs are software: folder of its libraries, environment to run it in."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, task: str, words: Sequence[str], gpus: int = 1) -> subprocess.CompletedProcess[str]:
        """``load``, ``generate`` or ``fit`` with a command's words (see `llama_host`), on so many software GPUs."""
        program = [sys.executable, str(Path(__file__).with_name("llama_host.py")), str(self.folder), task, *words]
        devices = {"GGML_VK_VISIBLE_DEVICES": ",".join(["0"] * gpus)} if gpus else _NO_VULKAN
        environment = {**self.environment, **devices}
        return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)


@cache
def llama_cpp() -> LlamaCppBuild:
    """llama.cpp's prebuilt libraries from npm, with Mesa's software Vulkan as GPU; 330 MB, half a minute."""
    folder = built("llama-cpp", [NPM, DEBIAN], _build_llama_cpp)
    libraries = next(folder.glob("node_modules/@node-llama-cpp/*/bins/*"))
    shared = folder / "root" / "usr" / "lib" / "x86_64-linux-gnu"
    driver = str(folder / "driver.json")
    environment = {"LD_LIBRARY_PATH": str(shared), "VK_ICD_FILENAMES": driver, "VK_DRIVER_FILES": driver}
    return LlamaCppBuild(libraries, {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), **environment})


def _build_llama_cpp(folder: Path) -> None:
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--fetch-retries=1", "--prefix", "."]
    run([*npm, NPM], folder, 180)
    (folder / "root").mkdir()
    unpack_debian(DEBIAN, folder / "root")
    driver = folder / "root" / "usr" / "lib" / "x86_64-linux-gnu" / "libvulkan_lvp.so"
    icd = {"file_format_version": "1.0.0", "ICD": {"api_version": "1.1.230", "library_path": str(driver)}}
    (folder / "driver.json").write_text(json.dumps(icd))


@dataclass(frozen=True, slots=True)
class RemoteGpus:
    """Two processes that play GPUs, reached over the loopback interface."""

    build: LlamaCppBuild
    library: Path
    endpoints: tuple[str, ...]

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the GPUs' buffers."""
        return tuple(f"RPC{index}[{endpoint}]" for index, endpoint in enumerate(self.endpoints))

    def run(self, task: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """As `LlamaCppBuild.run`, with these GPUs."""
        return self.build.run(task, [str(self.library), "--rpc", ",".join(self.endpoints), *words], gpus=0)


@contextmanager
def remote_gpus(count: int = 2) -> Iterator[RemoteGpus]:
    """llama.cpp with its RPC backend (compiled from its sources, some 6 s) and as many servers as GPUs are wanted."""
    build = llama_cpp()
    library = built("llama-cpp-rpc", [NPM, SOURCES], _build_rpc) / "libggml-rpc.so"
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    endpoints = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    host = str(Path(__file__).with_name("llama_host.py"))
    environment = {**build.environment, **_NO_VULKAN}
    servers = [
        subprocess.Popen(
            [sys.executable, host, str(build.folder), "serve", str(library), endpoint],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for endpoint in endpoints
    ]
    try:
        for endpoint in endpoints:
            _wait_for(endpoint)
        yield RemoteGpus(build, library, endpoints)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _wait_for(endpoint: str) -> None:
    name, _, port = endpoint.partition(":")
    for _ in range(600):
        try:
            socket.create_connection((name, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"no server at {endpoint} within a minute")


def _build_rpc(folder: Path) -> None:
    run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", SOURCES],
        folder,
        600,
    )
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        wanted = [each for each in archive.getmembers() if "/vendor/llama.cpp/ggml/" in each.name]
        archive.extractall(folder, members=wanted, filter="data")
    ggml = next(folder.glob("*/vendor/llama.cpp/ggml"))
    base = llama_cpp().folder
    flags = "-O1 -std=c++17 -fPIC -shared -DGGML_BACKEND_DL -DGGML_BACKEND_BUILD -DGGML_BACKEND_SHARED -DGGML_SHARED"
    sources = [str(ggml / "src" / "ggml-rpc" / name) for name in ("ggml-rpc.cpp", "transport.cpp")]
    include = [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}", f"-L{base}", "-l:libggml-base.so"]
    run(["g++", *flags.split(), *sources, "-o", "libggml-rpc.so", *include], folder, 600)
