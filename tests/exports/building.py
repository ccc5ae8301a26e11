"""A cache folder outside the repository in which real engines are built once, each under its pins.

``STOWPLAN_ENGINES`` names another cache folder; ``STOWPLAN_ENGINES=off`` skips every test that needs one. What
cannot be built here (no registry, no compiler, not enough time) skips the tests that need it, with the reason.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_READY = "ready.json"
_LAST_WORDS_S = 10


class OutOfReachError(Exception):
    """A registry or a tool is not there, or it takes too long."""


def _root() -> Path:
    named = os.environ.get("STOWPLAN_ENGINES", "")
    if named == "off":
        pytest.skip("STOWPLAN_ENGINES=off: real engines are not asked for")
    return Path(named) if named else Path.home() / ".cache" / "stowplan-engines"


def run(words: Sequence[str], folder: Path, limit_s: float, **environment: str) -> None:
    """Run a command to its end.

    Raises:
        OutOfReachError: it is not there, failed, or took longer than the limit.
    """
    if shutil.which(words[0]) is None:
        raise OutOfReachError(f"there is no {words[0]} here")
    name = " ".join(words[:3])
    with (
        tempfile.TemporaryFile() as said,  # a pipe would be held open by whatever the command leaves behind
        subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            process.terminate()  # first: pip and ninja end their own children
            try:
                process.wait(_LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise OutOfReachError(f"{name} took more than {limit_s:g} s") from error
        if code != 0:
            said.seek(0)
            raise OutOfReachError(f"{name} failed: {said.read().decode(errors='replace')[-300:]}")


@contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def built(name: str, pins: Sequence[Sequence[str]], build: Callable[[Path], None]) -> Path:
    """Folder of what was built; built when its pins have changed, the test skipped when that fails."""
    root, stated = _root(), json.dumps(pins)
    try:
        with _alone(root, name):
            folder = root / name
            ready = folder / _READY
            if ready.is_file() and ready.read_text() == stated:
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            build(folder)
            ready.write_text(stated)
            return folder
    except (OutOfReachError, OSError) as error:
        pytest.skip(f"{name} cannot be built: {error}")


def unpack_debian(packages: str, folder: Path) -> None:
    """Put the files of Debian's packages under a folder, not into the system.

    Raises:
        OutOfReachError: not a Debian, or another release of it.
    """
    archives = folder / "archives"
    archives.mkdir()
    run(["apt-get", "download", *packages.split()], archives, 120)
    for archive in sorted(archives.glob("*.deb")):
        run(["dpkg-deb", "-x", str(archive), str(folder)], folder, 60)
    shutil.rmtree(archives)
