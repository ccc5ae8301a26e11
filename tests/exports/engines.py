"""Real engines for the tests: pinned, built once into a cache folder outside the repository, skipped when out of reach.

``STOWPLAN_ENGINES`` names another cache folder; ``STOWPLAN_ENGINES=off`` skips every test that needs one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_READY = "ready.json"
NPM = "@node-llama-cpp/linux-x64-vulkan@3.22.1"  # llama.cpp v0.5.0
SOURCES = "llama-cpp-python==0.3.36"  # carries the sources of llama.cpp 0c1e57098, v0.5.0
DEBIAN = (
    "mesa-vulkan-drivers libvulkan1 libllvm15 libz3-4 libwayland-client0 libxcb1 libxcb-randr0 libxcb-dri3-0 "
    "libxcb-present0 libxcb-sync1 libxcb-xfixes0 libxcb-shm0 libxshmfence1 libx11-xcb1 libxau6 libxdmcp6 libbsd0 "
    "libmd0 libdrm2 libdrm-amdgpu1 libelf1 libedit2 libxml2 libtinfo6 libicu72"
)
_NO_VULKAN = {"VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent"}
TORCH = ("torch==2.13.0", "numpy", "accelerate==1.15.0", "transformers==5.23.0", "safetensors")


class OutOfReachError(Exception):
    """A registry or a tool is not there."""


def _root() -> Path:
    named = os.environ.get("STOWPLAN_ENGINES", "")
    if named == "off":
        pytest.skip("STOWPLAN_ENGINES=off: real engines are not asked for")
    return Path(named) if named else Path.home() / ".cache" / "stowplan-engines"


def _run(words: Sequence[str], folder: Path, limit_s: int) -> None:
    if shutil.which(words[0]) is None:
        raise OutOfReachError(f"there is no {words[0]} here")
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=limit_s)
    except subprocess.CalledProcessError as error:
        raise OutOfReachError(
            f"{' '.join(words[:3])} failed: {error.stderr.decode(errors='replace')[-300:]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise OutOfReachError(f"{' '.join(words[:3])} took more than {limit_s} s") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _built(name: str, pins: object, build: Callable[[Path], None]) -> Path:
    """Folder of an environment; built when its pins have changed, skipped when that fails."""
    root = _root()
    try:
        with _alone(root):
            folder = root / name
            ready = folder / _READY
            if ready.is_file() and json.loads(ready.read_text()) == pins:
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            build(folder)
            ready.write_text(json.dumps(pins))
            return folder
    except (OutOfReachError, OSError) as error:
        pytest.skip(f"{name} cannot be built: {error}")


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
    folder = _built("llama-cpp", [NPM, DEBIAN], _build_llama_cpp)
    libraries = next(folder.glob("node_modules/@node-llama-cpp/*/bins/*"))
    shared = folder / "root" / "usr" / "lib" / "x86_64-linux-gnu"
    driver = str(folder / "driver.json")
    environment = {"LD_LIBRARY_PATH": str(shared), "VK_ICD_FILENAMES": driver, "VK_DRIVER_FILES": driver}
    return LlamaCppBuild(libraries, {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), **environment})


def _build_llama_cpp(folder: Path) -> None:
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--fetch-retries=1", "--prefix", "."]
    _run([*npm, NPM], folder, 180)
    packages = folder / "packages"
    packages.mkdir()
    _run(["apt-get", "download", *DEBIAN.split()], packages, 120)
    for package in sorted(packages.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder / "root")], folder, 60)
    shutil.rmtree(packages)
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
    library = _built("llama-cpp-rpc", [NPM, SOURCES], _build_rpc) / "libggml-rpc.so"
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
    _run(
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
    _run(["g++", *flags.split(), *sources, "-o", "libggml-rpc.so", *include], folder, 600)


def python_environment(name: str, steps: Sequence[Sequence[str]], *, shared: bool = True) -> Path:
    """Interpreter of a virtual environment; each step is a list of arguments of ``pip install``.

    With `shared`, torch comes from one environment that all of them use.
    """
    below = torch_environment().parents[1] if shared else None

    def build(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)], folder.parent, 120)
        if below is not None:
            packages = next((below / "lib").glob("python3.*/site-packages"))
            own = next((folder / "lib").glob("python3.*/site-packages"))
            (own / "shared.pth").write_text(f"{packages}\n")
        for step in steps:
            _run([str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *step], folder, 1200)

    return _built(name, [list(step) for step in steps], build) / "bin" / "python"


@cache
def torch_environment() -> Path:
    """Interpreter with torch for the CPU, transformers and Accelerate; 1.2 GB, about a minute."""
    return python_environment("torch", [TORCH], shared=False)


_VLLM = ("vllm==0.33.0",)
_VLLM_NEEDS = (
    "regex cachetools psutil sentencepiece requests tqdm blake3 py-cpuinfo huggingface_hub tokenizers protobuf "
    "fastapi starlette aiohttp openai pydantic orjson prometheus_client pillow prometheus-fastapi-instrumentator "
    "tiktoken lm-format-enforcer==0.11.3 llguidance outlines_core==0.2.14 lark==1.2.2 xgrammar==0.2.8 "
    "typing_extensions filelock partial-json-parser jsonschema pyzmq msgspec mistral_common "
    "opencv-python-headless pyyaml einops compressed-tensors==0.17.0 depyf==0.20.0 cloudpickle watchfiles "
    "python-json-logger ninja pybase64 cbor2 ijson setproctitle oss-harmony anthropic "
    "model-hosting-container-standards mcp opentelemetry-sdk opentelemetry-api uvloop numba==0.65.0 uvicorn"
)
_SGLANG = ("sglang==0.5.23",)
_SGLANG_NEEDS = (
    "aiohttp anthropic blobfile==3.0.0 compressed-tensors distro einops fastapi gguf interegular IPython "
    "llguidance mistral_common msgspec ninja numba openai openai-harmony orjson outlines==0.1.11 packaging "
    "partial_json_parser pillow prometheus-client psutil pybase64 pydantic python-dateutil python-multipart pyzmq "
    "regex requests scipy sentencepiece setproctitle tiktoken tokenizers tqdm uvicorn uvloop watchfiles "
    "xgrammar==0.2.7 xxhash zstandard nvidia-ml-py easydict datasets"
)
_LMCACHE = ("lmcache==0.5.6",)
_LMCACHE_NEEDS = (
    "pyyaml requests numba aiofile aiofiles aiohttp msgspec psutil py-cpuinfo pyzmq sortedcontainers "
    "prometheus_client cachetools httpx blake3 opentelemetry-api opentelemetry-sdk fastapi"
)
_FLEXGEN = ("flexgen==0.1.8",)
_DEEPSPEED = ("deepspeed==0.19.8",)
_DEEPSPEED_NEEDS = "setuptools wheel hjson msgpack ninja psutil py-cpuinfo pydantic einops"
_KT = ("kt-kernel==0.7.2",)


@cache
def vllm() -> Path:
    """Interpreter with vLLM, its compiled kernels unused; 2 GB, about three minutes."""
    return python_environment("vllm", [("--no-deps", *_VLLM), _VLLM_NEEDS.split()])


@cache
def sglang() -> Path:
    """Interpreter with SGLang's Python; 1 GB, about two minutes."""
    return python_environment("sglang", [("--no-deps", *_SGLANG), _SGLANG_NEEDS.split()])


@cache
def lmcache() -> Path:
    """Interpreter with LMCache's Python."""
    return python_environment("lmcache", [("--no-deps", *_LMCACHE), _LMCACHE_NEEDS.split()])


@cache
def flexgen() -> Path:
    """Interpreter with FlexGen."""
    return python_environment("flexgen", [("--no-deps", *_FLEXGEN), ("tqdm", "pulp", "attrs")])


@cache
def kt_kernel() -> Path:
    """Interpreter with KTransformers' CPU kernels."""
    return python_environment("kt", [("--no-deps", *_KT), ("gguf", "pyyaml", "psutil")])


@cache
def deepspeed() -> Path:
    """Interpreter with DeepSpeed, whose extensions are compiled when they are first used."""
    steps = [_DEEPSPEED_NEEDS.split(), ("--no-deps", "--no-build-isolation", *_DEEPSPEED)]
    return python_environment("deepspeed", steps)


def talk(python: Path, script: str, words: Sequence[str], **environment: str) -> list[Any]:
    """The lines of JSON that one of the hosts prints.

    Fails when the host does.
    """
    program = [str(python), str(Path(__file__).parent / script), *words]
    given = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(program, capture_output=True, text=True, timeout=900, check=False, env=given)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
