"""Planning for vLLM: every split is tried, and host memory is used only where a model does not fit."""

from __future__ import annotations

import pytest

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Planned, Request
from stowplan.systems.vllm import Vllm


def planned(model: str, machine: str, quant: str = "bf16", batch: int = 1, **settings: object) -> Planned:
    setup = make_setup(load_machine(machine), load_model(model, quant), Vllm())
    return plan_for("vllm", Request(setup, (model, quant), Workload(batch=batch), settings=settings))


def test_the_best_split_is_no_slower_than_any_other() -> None:
    found = planned("llama-2-70b", "hgx-h100-8")
    assert found.plan.settings["tensor_parallel"] == 8
    assert [each.title for each in found.alternatives][:1] == ["--tensor-parallel-size 4"]
    assert all(each.cost >= found.cost for each in found.alternatives)
    assert found.prediction.decode_tokens_per_s > max(each.decode_tokens_per_s for each in found.alternatives)


def test_weights_stay_on_the_gpu_where_they_fit_and_as_many_as_fit_where_not() -> None:
    assert planned("llama-3.1-8b", "h100-sxm").plan.settings["cpu_offload_gib"] == 0
    found = planned("llama-2-70b", "h100-sxm")
    offloaded = found.plan.settings["cpu_offload_gib"]
    use = found.prediction.memory_bytes["gpu0"]
    assert offloaded > 50
    assert use.used <= use.capacity < use.used + 2**31
    with pytest.raises(DoesNotFit):
        planned("llama-2-70b", "h100-sxm", tensor_parallel=1, cpu_offload_gib=offloaded - 2)


def test_what_the_user_fixed_is_kept() -> None:
    found = planned("llama-2-7b", "hgx-h100-8", tensor_parallel=2, max_num_seqs=64)
    assert found.plan.settings["tensor_parallel"] == 2
    assert found.plan.settings["max_num_seqs"] == 64
    assert not found.alternatives


def test_what_cannot_run_is_said_in_a_sentence() -> None:
    with pytest.raises(NotExpressible, match="needs a GPU"):
        planned("llama-2-7b", "cpu-laptop-32")
    with pytest.raises(NotExpressible, match="q4_k weights are not known"):
        planned("llama-2-7b", "h100-sxm", "q4_k_m")
    with pytest.raises(NotExpressible, match="max_num_seqs"):
        planned("llama-2-7b", "h100-sxm", max_num_seqs=0)
    with pytest.raises(DoesNotFit, match="no room"):
        planned("qwen3-235b-a22b", "rtx-3060-desktop-32")
