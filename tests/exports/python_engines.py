"""Engines written in Python: pinned virtual environments that share one torch, and programs that talk inside them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.exports.building import built, run, unpack_debian

_HERE = Path(__file__).parent
_STEP_S = 600
_PIP = ("install", "-q", "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=30")
_TORCH = ("torch==2.13.0", "numpy", "accelerate==1.15.0", "transformers==5.23.0", "safetensors")
_VLLM = ("vllm==0.33.0", "xgrammar==0.2.8")
_VLLM_NEEDS = (
    "regex cachetools psutil sentencepiece requests tqdm blake3 py-cpuinfo huggingface_hub tokenizers protobuf "
    "fastapi starlette aiohttp openai pydantic orjson prometheus_client pillow prometheus-fastapi-instrumentator "
    "tiktoken lm-format-enforcer==0.11.3 llguidance outlines_core==0.2.14 lark==1.2.2 apache-tvm-ffi "
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
_LIBAIO = "libaio-dev libaio1"
_KT = ("kt-kernel==0.7.2",)


def _environment(name: str, steps: Sequence[Sequence[str]], torch: Path | None) -> Path:
    """Interpreter of a virtual environment; each step is a list of arguments of ``pip install``.

    With the interpreter `torch`, the packages of its environment are seen from this one.
    """

    def build(folder: Path) -> None:
        run([sys.executable, "-m", "venv", str(folder)], folder.parent, 120)
        if torch is not None:
            packages = next((torch.parents[1] / "lib").glob("python3.*/site-packages"))
            own = next((folder / "lib").glob("python3.*/site-packages"))
            (own / "shared.pth").write_text(f"{packages}\n")
        for step in steps:
            run([str(folder / "bin" / "pip"), *_PIP, *step], folder, _STEP_S)

    return built(name, steps, build) / "bin" / "python"


def torch_python() -> Path:
    """Interpreter with torch, transformers and Accelerate."""
    return _environment("torch", [_TORCH], None)


def vllm_python(torch: Path) -> Path:
    """Interpreter with vLLM, its compiled kernels unused; Triton, a gigabyte that it can do without, is left out."""
    return _environment("vllm", [("--no-deps", *_VLLM), _VLLM_NEEDS.split()], torch)


def sglang_python(torch: Path) -> Path:
    """Interpreter with SGLang's Python; it imports Triton, which xgrammar brings."""
    return _environment("sglang", [("--no-deps", *_SGLANG), _SGLANG_NEEDS.split()], torch)


def lmcache_python(torch: Path) -> Path:
    """Interpreter with LMCache's Python."""
    return _environment("lmcache", [("--no-deps", *_LMCACHE), _LMCACHE_NEEDS.split()], torch)


def flexgen_python(torch: Path) -> Path:
    """Interpreter with FlexGen."""
    return _environment("flexgen", [("--no-deps", *_FLEXGEN), ("tqdm", "pulp", "attrs")], torch)


def kt_python(torch: Path) -> Path:
    """Interpreter with KTransformers' CPU kernels."""
    return _environment("kt", [("--no-deps", *_KT), ("gguf", "pyyaml", "psutil")], torch)


def deepspeed_python(torch: Path) -> Path:
    """Interpreter with DeepSpeed, nothing of it compiled."""
    sources = ("--no-deps", "--no-build-isolation", *_DEEPSPEED)
    return _environment("deepspeed", [_DEEPSPEED_NEEDS.split(), sources], torch)


def deepspeed_parts(deepspeed: Path) -> tuple[Path, str]:
    """Folder of DeepSpeed's compiled reader of disks, and the folder of the library that it needs."""
    program = _HERE / "deepspeed_ops.py"
    digest = hashlib.sha256(program.read_bytes()).hexdigest()

    def build(folder: Path) -> None:
        unpack_debian(_LIBAIO, folder)
        paths = {"CPATH": str(folder / "usr" / "include"), "LIBRARY_PATH": _libraries(folder)}
        tools = f"{deepspeed.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        words = [str(deepspeed), str(program), str(folder)]
        run(words, folder, _STEP_S, PATH=tools, LD_LIBRARY_PATH=_libraries(folder), **paths)

    folder = built("deepspeed-parts", [_TORCH, _DEEPSPEED, _LIBAIO, digest], build)
    return folder, _libraries(folder)


def _libraries(folder: Path) -> str:
    return str(folder / "usr" / "lib" / "x86_64-linux-gnu")


def talk(python: Path, script: str, words: Sequence[str], **environment: str) -> list[Any]:
    """The lines of JSON that one of the hosts prints.

    Fails when the host does.
    """
    program = [str(python), str(_HERE / script), *words]
    given = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(program, capture_output=True, text=True, timeout=900, check=False, env=given)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
