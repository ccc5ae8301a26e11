"""Engines that tests run for real: found where a variable of the environment says, or built once into a cache folder.

Nothing is downloaded unless ``STOWPLAN_TEST_NETWORK=1`` allows it. The cache folder is ``STOWPLAN_TEST_CACHE``, by
default ``~/.cache/stowplan-tests``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

_SDIST = "llama-cpp-python==0.3.36"
"""Its source distribution holds the engine's whole source, llama-bench included."""
_ACCELERATE = ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0")
_CLOCK = Path(__file__).parent / "cpu_clock.c"


def cache() -> Path:
    """Folder of what was built or installed before."""
    named = os.environ.get("STOWPLAN_TEST_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "stowplan-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def llama_bench() -> Path:
    """llama.cpp's own benchmark; skips the test with a reason where it cannot be had."""
    named = os.environ.get("STOWPLAN_TEST_LLAMA_BENCH")
    found = Path(named) if named else cache() / "llama-bench"
    if found.is_file():
        return found
    _needs_network("llama-bench", "STOWPLAN_TEST_LLAMA_BENCH")
    for tool in ("cmake", "ninja", "cc", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"llama-bench is not here, and there is no {tool} to build it")
    work = cache() / "llama.cpp-source"
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            _SDIST,
            "-d",
            str(work),
        ]
    )
    archive = next(work.glob("*.tar.gz"))
    with tarfile.open(archive) as source:
        source.extractall(work, filter="data")
    vendored = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF"]
    _run(["cmake", "-S", str(vendored), "-B", str(work / "build"), "-G", "Ninja", *options])
    _run(["cmake", "--build", str(work / "build"), "--target", "llama-bench", "-j2"])
    shutil.copy2(work / "build" / "bin" / "llama-bench", found)
    shutil.rmtree(work)
    return found


def accelerate_python() -> Path:
    """A Python that has torch, transformers and accelerate; skips the test with a reason where it cannot be had."""
    named = os.environ.get("STOWPLAN_TEST_ACCELERATE")
    found = Path(named) if named else cache() / "accelerate" / "bin" / "python"
    if found.is_file():
        return found
    _needs_network("a Python with torch and accelerate", "STOWPLAN_TEST_ACCELERATE")
    _run([sys.executable, "-m", "venv", str(cache() / "accelerate")])
    _run([str(found), "-m", "pip", "install", "-q", *_ACCELERATE])
    return found


def own_time(folder: Path) -> dict[str, str]:
    """Environment in which a program with one computing thread measures its own time on the core."""
    library = folder / "cpu_clock.so"
    if not library.is_file():
        _run(["cc", "-O2", "-shared", "-fPIC", str(_CLOCK), "-o", str(library)])
    return {**os.environ, "LD_PRELOAD": str(library)}


def _needs_network(what: str, variable: str) -> None:
    if os.environ.get("STOWPLAN_TEST_NETWORK") != "1":
        pytest.skip(f"{what} is not here; name it with {variable}, or allow downloads with STOWPLAN_TEST_NETWORK=1")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} {command[1]} failed: {done.stderr.strip()[-300:]}")


class Silent:
    """A watcher of a suite that tells nothing."""

    def started(self, entry: object, left_s: float) -> None:
        """Nothing is told."""

    def finished(self, record: object) -> None:
        """Nothing is told."""

    def skipped(self, skipped: object) -> None:
        """Nothing is told."""
