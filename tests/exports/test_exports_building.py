"""Engines are built once under their pins; what cannot be built here skips with its reason, in bounded time."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from tests.exports import python_engines
from tests.exports.building import OutOfReachError, built, run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STOWPLAN_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def test_an_engine_is_built_again_when_its_pins_change_and_only_then(cache: Path) -> None:
    made: list[Path] = []
    for pins in ([("a==1",)], [("a==1",)], [("a==2",)]):
        assert built("engine", pins, made.append) == cache / "engine"
    assert len(made) == 2


def test_a_half_built_engine_is_built_again(cache: Path) -> None:
    def cut_off(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built("engine", ["a==1"], cut_off)
    assert not (built("engine", ["a==1"], lambda folder: None) / "half").exists()


def test_what_fails_is_skipped_with_its_reason(cache: Path) -> None:
    for words, reason in (
        (["no-such-tool"], "engine cannot be built: there is no no-such-tool here"),
        (["sh", "-c", "echo no room left; exit 3"], "failed: no room left"),
    ):
        with pytest.raises(pytest.skip.Exception, match=reason):
            built("engine", ["a==1"], partial(run, words, limit_s=60))


def test_a_command_that_takes_too_long_ends_with_the_children_that_hold_its_output(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(OutOfReachError, match=r"sh -c sleep 20 & sleep 20 took more than 0\.5 s"):
        run(["sh", "-c", "sleep 20 & sleep 20"], tmp_path, 0.5)
    assert time.monotonic() - start < 15


def test_real_engines_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOWPLAN_ENGINES", "off")
    with pytest.raises(pytest.skip.Exception, match="not asked for"):
        built("engine", ["a==1"], lambda folder: None)


@pytest.mark.slow
def test_without_a_registry_python_engines_are_skipped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(pytest.skip.Exception, match=r"torch cannot be built: .*pip install"):
        python_engines.torch_python()
    assert not (cache / "torch" / "ready.json").exists()
