"""Threads of the CPU backend: of decode, of batches, and of one socket."""

from __future__ import annotations

import shlex

import pytest
from tests.strategies import machine_of, model_of

from stowplan.errors import InputError
from stowplan.planner.commands import Hints, Understood, understand
from stowplan.systems.base import Evaluation
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_settings import settings_of

DESKTOP = "ryzen-9-7950x + ddr5-5200x2:64GiB"
SERVER = "2x xeon-platinum-8480 + ddr5-4800x16:1TiB"
MODEL = model_of("llama-3.1-8b", "q4_k_m")


def read(flags: str, spec: str = DESKTOP) -> Understood:
    command = f"llama-server -m model.gguf -c 4096 -fit off {flags}"
    return understand(shlex.split(command), machine_of(spec), Hints(model=MODEL.key, quant="q4_k_m", loaded=MODEL))


def evaluated(flags: str, spec: str = DESKTOP) -> Evaluation:
    meant = read(flags, spec)
    return LlamaCpp().evaluate(meant.setup, meant.plan)


def test_a_prompt_has_threads_of_its_own() -> None:
    few, both, many = evaluated("-t 4"), evaluated("-t 4 -tb 16"), evaluated("-t 16")
    assert both.decode_s == few.decode_s > many.decode_s
    assert both.prefill_s == pytest.approx(many.prefill_s, rel=1e-12)
    assert both.prefill_s < few.prefill_s


def test_sequences_that_decode_together_are_a_batch() -> None:
    both, many = evaluated("-t 4 -tb 16 -np 4"), evaluated("-t 16 -np 4")
    assert both.decode_s == pytest.approx(many.decode_s, rel=1e-12)


def test_threads_of_batches_are_read_and_written() -> None:
    meant = read("-t 4 --threads-batch 16")
    assert settings_of(meant.plan).threads_batch == 16
    assert "-t 4 -tb 16" in " ".join(LlamaCpp().command(meant.setup, meant.plan).split())
    with pytest.raises(InputError, match="-tb"):
        read("-tb 0")


def test_isolated_threads_have_the_cores_and_the_memory_of_one_socket() -> None:
    spread, isolated = evaluated("--numa distribute", SERVER), evaluated("--numa isolate", SERVER)
    one = evaluated("--numa isolate -t 56", SERVER)
    assert isolated.decode_s == one.decode_s > spread.decode_s
    assert isolated.prefill_s == one.prefill_s > spread.prefill_s
