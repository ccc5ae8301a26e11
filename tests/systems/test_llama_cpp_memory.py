"""Bytes that llama.cpp allocates, against what its own allocator said."""

from __future__ import annotations

import pytest

from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.predict import make_setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

_MIB = 2.0**20


def test_cache_and_buffers_equal_the_allocator_of_llama_cpp() -> None:
    """llama-fit-params on a Qwen3-235B-A22B header, --cpu-moe, 8192 tokens, micro-batch 512.

    It printed 1504 MiB of cache and 304 of compute buffer on the device, 152 of compute buffer in host memory.
    """
    setup = make_setup(load_machine("rtx-4090-desktop-512"), load_model("qwen3-235b-a22b", "q4_k_m"), LlamaCpp())
    workload = Workload(prompt=512, generate=128, context=8192)
    run = LlamaCppRun(setup, workload, LlamaCppSettings(op_offload=False))
    layers, output = experts_in_ram(run, len(setup.model.layers))
    memory = run.memory(layers, "ram", output)
    assert memory["gpu0"].parts["cache"] == 1504 * _MIB
    assert memory["gpu0"].parts["buffers"] == pytest.approx(304 * _MIB, rel=0.02)
    assert memory["ram"].parts["buffers"] == pytest.approx(152 * _MIB, rel=0.02)
    assert "cache" not in memory["ram"].parts
