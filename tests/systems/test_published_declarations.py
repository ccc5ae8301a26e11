"""Every declaration: small, sourced, loadable by name; and the recipe, followed for one more system."""

from __future__ import annotations

from pathlib import Path

import pytest

from stowplan.errors import DoesNotFit, InputError, NotExpressible, UnknownName
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.published import variants
from stowplan.systems import list_systems, load_system, published
from stowplan.systems.base import Setup
from stowplan.systems.mechanisms.policy import Policy, Weights
from stowplan.systems.published import load_published, published_keys
from stowplan.systems.published.base import Constant, Published, changed, differences, one_of
from stowplan.systems.published.system import PublishedSystem, policy_of

FOLDER = Path(published.__file__).parent
TWENTY = {
    "W1": "flexgen", "W2": "accelerate", "W3": "zero-inference", "W4": "llama.cpp", "W5": "vllm-offload", "W6": "endor",
    "W7": "pipo", "W8": "hetegen", "W9": "flexinfer", "M1": "mixtral-offloading", "M2": "ktransformers",
    "M3": "moe-infinity", "M4": "fate", "M6": "hobbit", "M9": "hybrimoe", "K1": "headinfer", "K2": "instinfer",
    "K3": "infinigen", "K14": "h2o", "K15": "kivi",
}  # fmt: skip
LOOPED = [key for key in published_keys() if load_published(key).existing is None]


def setup_of(system: PublishedSystem, machine: str, model: str, quant: str = "bf16") -> Setup:
    return system.setup(load_machine(machine), load_model(model, quant))


def test_the_first_twenty_are_there() -> None:
    assert set(TWENTY.values()) <= set(published_keys())
    assert len(set(published_keys())) == len(published_keys())


@pytest.mark.parametrize("key", published_keys())
def test_a_declaration_is_short_sourced_and_found_by_name(key: str) -> None:
    found = load_published(key)
    assert found.key == key and found.paper and found.idea
    module = next(path for path in FOLDER.glob("*.py") if f'key="{key}"' in path.read_text(encoding="utf-8"))
    assert len(module.read_text(encoding="utf-8").splitlines()) < 150
    for constant in (*found.constants, *found.figures.values()):
        assert constant.kind in ("datasheet", "fitted", "assumed") and len(constant.where) > 5
    if found.existing is not None:
        assert found.existing in list_systems()
    else:
        assert found.mechanisms(), "a system without mechanisms is the baseline"
        assert load_system(key).title == found.title


@pytest.mark.parametrize("key", LOOPED)
def test_numbers_of_a_policy_are_stated_with_their_source(key: str) -> None:
    """What is neither a place, a yes or no, nor a number of layers or parts is some fact of the paper."""
    found = load_published(key)
    structural = {"gpu", "ram", "prefetch", "pieces", "slices", "lookahead", "batches", "whole_layers"}
    numbers = [
        value
        for path, value in differences(Policy(), found.policy).items()
        if isinstance(value, float) and path.rpartition(".")[2] not in structural
    ]
    stated = [constant.value for constant in (*found.constants, *found.figures.values())]
    # A hand-over, a layer and an expert may share one statement; a number may also be one of several tried values.
    assert all(value in stated or value == 1.0 for value in numbers)


@pytest.mark.parametrize("key", LOOPED)
def test_a_plan_is_read_back_as_the_policy_that_made_it(key: str) -> None:
    system = PublishedSystem(load_published(key), with_hardware=True)
    setup = setup_of(system, "rtx-4090-desktop-512", "deepseek-v2-lite" if system.declared.needs else "opt-6.7b", "f16")
    try:
        best = variants(system, setup, Workload(prompt=64, generate=8))[0]
    except (DoesNotFit, NotExpressible):
        best = variants(system, setup_of(system, "a100-80gb-sxm", "opt-6.7b", "f16"), Workload(prompt=64))[0]
        setup = setup_of(system, "a100-80gb-sxm", "opt-6.7b", "f16")
    again = best.plan.model_validate_json(best.plan.model_dump_json())
    assert policy_of(again) == best.policy
    assert system.evaluate(setup, again) == best.evaluation


def test_a_figure_may_hold_on_chips_of_one_process_only() -> None:
    system = PublishedSystem(load_published("moe-lightning"))
    old, new = (setup_of(system, machine, "mixtral-8x7b").figures for machine in ("t4-16", "l4-cloud"))
    assert old.value("pytorch.gpu.gemm_routed") > 1.0 and new.get_value("pytorch.gpu.gemm_routed") is None
    assert old.value("pytorch.gpu.gemm_tile") == new.value("pytorch.gpu.gemm_tile") == 64
    assert not any("@" in name for name in old)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(UnknownName, match="headinfer"):
        load_system("headinfr")
    with pytest.raises(UnknownName):
        load_published("nothing")
    with pytest.raises(InputError, match="no field"):
        changed(Policy(), {"cache.colour": 1})
    system = PublishedSystem(load_published("headinfer"))
    setup = setup_of(system, "rtx-4090-desktop-128", "opt-6.7b", "f16")
    plan = variants(system, setup, Workload(prompt=64))[0].plan
    with pytest.raises(NotExpressible, match="settings"):
        system.evaluate(setup, plan.model_copy(update={"settings": {**plan.settings, "colour": 1}}))
    with pytest.raises(NotExpressible, match="research code"):
        system.command(setup, plan)


def test_systems_say_what_they_need() -> None:
    mixture = PublishedSystem(load_published("fate"))
    with pytest.raises(NotExpressible, match="routed experts, which"):
        variants(mixture, setup_of(mixture, "rtx-4090-desktop-128", "llama-3.1-8b"), Workload())
    drives = PublishedSystem(load_published("instinfer"))
    with pytest.raises(NotExpressible, match="computational drives"):
        variants(drives, setup_of(drives, "rtx-4090-desktop-128", "opt-6.7b", "f16"), Workload())
    sparse = PublishedSystem(load_published("endor"))
    with pytest.raises(NotExpressible, match="16-bit"):
        variants(sparse, setup_of(sparse, "rtx-4090-desktop-128", "llama-3.1-8b", "q4_k_m"), Workload())
    whole = PublishedSystem(load_published("kivi"))
    with pytest.raises(DoesNotFit, match="GPU memory lacks"):
        variants(whole, setup_of(whole, "rtx-4090-desktop-128", "llama-3.3-70b"), Workload())


def test_a_newcomer_adds_a_system_with_the_recipe() -> None:
    """MARLIN's weights (row W12): 4 bits moved and multiplied without restoring them, on the recipe's fields alone."""
    marlin = Published(
        key="marlin",
        title="MARLIN",
        paper="Frantar et al., 2024, arXiv:2408.11743",
        idea="4-bit weights that products read as stored",
        policy=Policy(weights=Weights(gpu=0.0, ram=1.0, prefetch=1, stored=0.266)),
        choices=(one_of("weights.prefetch", 1, 2),),
        fills=("weights",),
        quality="4-bit groups of 128",
        constants=(Constant("stored bytes per byte", 0.266, "datasheet", "4 bits and an fp16 scale per group of 128"),),
    )
    system, plain = PublishedSystem(marlin), PublishedSystem(load_published("pipo"))
    workload = Workload(prompt=32, generate=32)
    small, large = (
        variants(each, setup_of(each, "rtx-4090-desktop-128", "llama-2-13b", "f16"), workload)[0]
        for each in (system, plain)
    )
    assert small.policy.weights.gpu == 1.0 > large.policy.weights.gpu
    assert small.evaluation.memory["gpu0"].parts["weights"] == pytest.approx(0.266 * 25.4e9, rel=0.02)
    assert small.evaluation.decode_s < large.evaluation.decode_s
    assert {"weights.stored", "weights.prefetch"} <= set(marlin.mechanisms())


def test_the_recipe_was_followed_for_more_systems() -> None:
    extra = set(published_keys()) - set(TWENTY.values()) - {"kvquant"}  # K15 names both KIVI and KVQuant
    assert extra == {"xquant", "moe-lightning"}
    assert "validate/published_cases" in (published.__doc__ or "")
