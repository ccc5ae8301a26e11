"""The Python interface: examples that run, the commands' names, and an import that loads nothing."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import stowplan
from stowplan.errors import InputError, UnknownName
from stowplan.whatif import api


@pytest.mark.parametrize("name", [name for name in stowplan.__all__ if not name.startswith("_")])
def test_examples_run(name: str) -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    examples = finder.find(getattr(api, name), name, globs={})
    assert examples and all(each.examples for each in examples), "every function shows how it is used"
    for each in examples:
        assert runner.run(each).failed == 0


def test_importing_loads_nothing_and_modules_stay_modules() -> None:
    code = (
        "import sys, stowplan; before = sorted(m for m in sys.modules if m.startswith('stowplan.'));"
        "from stowplan.plan import Plan; import stowplan.plan as module;"
        "print(before, stowplan.plan.Plan is Plan, module.__name__, callable(stowplan.plan), callable(stowplan.whatif))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] True stowplan.plan True True"


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="optimise"):
        _ = stowplan.optimise
    with pytest.raises(UnknownName, match="contxt"):
        stowplan.plan("llama-3.1-8b", on="t4-16", contxt=3)
    with pytest.raises(InputError, match="on="):
        stowplan.predict("llama-server -m Qwen3-8B-Q4_K_M.gguf")
    with pytest.raises(InputError, match="on="):
        stowplan.whatif("llama-3.1-8b")


def test_a_plan_goes_through_every_door(tmp_path: Path) -> None:
    planned = stowplan.plan("llama-3.1-8b", quant="q4_k_m", on="t4-16", context=4096, set=["kv=q8_0"])
    assert planned.plan.settings["cache_k"] == "q8_0"
    path = tmp_path / "plan.json"
    path.write_text(planned.plan.model_dump_json())
    told = stowplan.predict(planned.plan)
    assert told == stowplan.predict(path)
    assert told.decode_tokens_per_s == planned.prediction.decode_tokens_per_s
    slower = stowplan.predict(planned.plan, set=["gpu.bandwidth=200GB/s"])
    assert slower.decode_tokens_per_s < told.decode_tokens_per_s
    found = stowplan.sweep(planned.plan, {"gpu.bandwidth": ["200GB/s", "320GB/s"]})
    assert found.base.outcome.figure("decode_tokens_per_s") == told.decode_tokens_per_s
    assert found.base.scenario.settings == (("cache_k", "q8_0"), ("cache_v", "q8_0"), *found.base.scenario.settings[2:])
