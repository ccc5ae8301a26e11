"""Programs and libraries that are compiled where they will run, and kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stowplan.errors import StowplanError

CACHE_VARIABLE = "STOWPLAN_CACHE"
_COMPILE_SECONDS = 300
_MOST_TOLD = 600


class CannotMeasure(StowplanError):
    """Something that a measurement needs is absent or refused on this computer; the message says what and why."""


def cache_folder() -> Path:
    """Where built programs are kept: the folder that STOWPLAN_CACHE names, else the user's own cache."""
    named = os.environ.get(CACHE_VARIABLE, "")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "stowplan"


def find_compiler(names: Sequence[str], kind: str) -> str:
    """Path of the first compiler of `names` that is there.

    Raises:
        CannotMeasure: none is.
    """
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise CannotMeasure(f"no {kind} is here ({', '.join(names)}); install one or skip what needs it")


def build(
    compiler: str, flags: Sequence[str], sources: Sequence[Path], name: str, libraries: Sequence[str] = ()
) -> Path:
    """The program or library made from `sources`, compiled at most once for the same compiler, flags and processor.

    Args:
        compiler: path of the compiler.
        flags: put before the sources; `libraries`: put after them.
        sources: the first is compiled with the others; headers beside them count for what the result is kept under.
        name: file name of the result.

    Raises:
        CannotMeasure: the compiler refuses or hangs, or the cache folder cannot be written.
    """
    folder = cache_folder() / f"{name}-{_fingerprint(compiler, [*flags, *libraries], sources)}"
    result = folder / name
    if result.is_file():
        return result
    partial = folder / f".{name}.{os.getpid()}"
    command = [compiler, *flags, *(str(each) for each in sources), "-o", str(partial), *libraries]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
        if done.returncode != 0:
            told = " ".join((done.stderr or done.stdout).split())[:_MOST_TOLD]
            raise CannotMeasure(f"{Path(compiler).name} cannot build {name}: {told}")
        partial.replace(result)
    except OSError as error:
        raise CannotMeasure(f"{folder}: {name} cannot be built there ({error.strerror or error})") from error
    except subprocess.TimeoutExpired as error:
        raise CannotMeasure(f"{Path(compiler).name} took more than {_COMPILE_SECONDS} s to build {name}") from error
    finally:
        partial.unlink(missing_ok=True)
    return result


def compiler_version(compiler: str) -> str:
    """First line of what a compiler says of itself; its name where it says nothing."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Path(compiler).name
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[-1 if "nvcc" in compiler else 0].strip() if lines else Path(compiler).name


def _fingerprint(compiler: str, flags: Sequence[str], sources: Sequence[Path]) -> str:
    """Hash of all that decides the result: sources and headers, compiler, flags, and this very processor."""
    digest = hashlib.sha256()
    headers = sorted({path for source in sources for path in source.parent.glob("*.h")})
    for path in [*sources, *headers]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    facts = [compiler, compiler_version(compiler), *flags, platform.machine(), _processor()]
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Model and instruction sets as Linux lists them: a cache that moves to another processor is not used there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features"))))
