"""FlexGen's rounding, its refusals, and its command line out and in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import NotExpressible
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Plan, Workload
from stowplan.systems.base import DISK, RAM, Setup
from stowplan.systems.flexgen import Flexgen
from stowplan.systems.flexgen_policy import (
    GPU,
    FlexgenSettings,
    Group,
    Piece,
    cache_shares,
    checked,
    homes,
    layer_groups,
    weight_shares,
)

MACHINE = load_machine("t4 + xeon-skylake-cloud-16c + ddr4-2666x6:208GiB")
SETUP = Setup(MACHINE, load_model("opt-30b", "f16"), figures_for(MACHINE, "flexgen"))
SYSTEM = Flexgen()


@pytest.mark.parametrize(
    ("gpu", "cpu", "expected"),
    [
        (20, 80, {GPU: 0.083, RAM: 0.917}),
        (30, 70, {GPU: 0.417, RAM: 0.583}),
        (10, 20, {RAM: 0.417, DISK: 0.583}),
        (70, 20, {GPU: 0.583, RAM: 0.417}),
        (100, 0, {GPU: 1.0}),
        (0, 0, {DISK: 1.0}),
    ],
)
def test_realised_shares_of_a_layer(gpu: int, cpu: int, expected: dict[str, float]) -> None:
    shares = weight_shares(layer_groups(SETUP.model.layers[0]), gpu, cpu)
    for tier in (GPU, RAM, DISK):
        assert shares.get(tier, 0.0) == pytest.approx(expected.get(tier, 0.0), abs=1e-3)


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    gpu=st.integers(0, 100),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_rounding_agrees_with_midpoints_in_floats(sizes: list[int], gpu: int, share: float) -> None:
    cpu = int((100 - gpu) * share)
    group = Group("mlp", tuple(Piece(None, size, matrix=True) for size in sizes))
    found = homes(group, gpu, cpu)
    start = 0
    for size, home in zip(sizes, found, strict=True):
        middle = 100 * (start + size / 2) / sum(sizes)
        start += size
        edges = (100 - gpu - cpu, 100 - gpu)
        if min(abs(middle - edge) for edge in edges) > 1e-9:
            assert home == (DISK if middle < edges[0] else RAM if middle < edges[1] else GPU)
    order = {DISK: 0, RAM: 1, GPU: 2}
    assert [order[home] for home in found] == sorted(order[home] for home in found)


def test_cache_is_rounded_down_to_whole_sequences() -> None:
    two = FlexgenSettings(percent=(0, 100, 30, 70, 100, 0), gpu_batch_size=7)
    assert cache_shares(two) == {GPU: 2 / 7, RAM: 5 / 7}
    three = FlexgenSettings(percent=(0, 100, 30, 30, 100, 0), gpu_batch_size=7)
    assert cache_shares(three) == {GPU: 2 / 7, RAM: 2 / 7, DISK: 3 / 7}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"percent": (60, 50, 100, 0, 100, 0)}, "weights have 60 [+] 50 = 110 %"),
        ({"percent": (100, 0, 100, 0, 50, 50)}, "hidden states"),
        ({"percent": (100, 0, 50, 50, 100, 0), "compress_cache": True}, "compressed cache"),
        ({"compress_cache": True, "cpu_cache_compute": True}, "uncompressed cache"),
    ],
)
def test_combinations_that_flexgen_refuses(changes: dict[str, object], words: str) -> None:
    with pytest.raises(NotExpressible, match=words):
        checked(FlexgenSettings.model_validate(changes))


def _percentages() -> st.SearchStrategy[tuple[int, int, int, int, int, int]]:
    pair = st.integers(0, 100).flatmap(lambda gpu: st.tuples(st.just(gpu), st.integers(0, 100 - gpu)))
    hidden = st.sampled_from([(100, 0), (0, 100), (0, 0)])
    return st.tuples(pair, pair, hidden).map(lambda t: (*t[0], *t[1], *t[2]))


@given(
    percent=_percentages(),
    size=st.integers(1, 200),
    batches=st.integers(1, 20),
    flags=st.tuples(*[st.booleans()] * 5),
    prompt=st.integers(1, 2048),
    generate=st.integers(1, 256),
)
@settings(deadline=None, max_examples=40)
def test_command_round_trip(
    percent: tuple[int, int, int, int, int, int],
    size: int,
    batches: int,
    flags: tuple[bool, ...],
    prompt: int,
    generate: int,
) -> None:
    chosen = FlexgenSettings(
        percent=percent,
        gpu_batch_size=size,
        num_gpu_batches=batches,
        cpu_cache_compute=flags[0],
        compress_weight=flags[1],
        overlap=flags[2],
        sep_layer=flags[3],
        pin_weight=flags[4],
    )
    plan = SYSTEM.plan(SETUP, Workload(prompt=prompt, generate=generate), chosen)
    assert SYSTEM.parse(SYSTEM.command(SETUP, plan), SETUP) == plan
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--model facebook/opt-30b --percent 1 2 3", "--percent"),
        ("--model facebook/opt-66b", "opt-66b is not opt-30b"),
        ("--model facebook/opt-30b --turbo", "--turbo"),
        ("--model facebook/opt-30b --attn-sparsity 0.5", "attn-sparsity"),
        ("--model facebook/opt-30b --gpu-batch-size 0", "at least 1"),
        ("--model facebook/opt-30b --percent 200 0 0 0 0 0", "from 0 to 100"),
        ("--model facebook/opt-30b --overlap maybe", "True nor False"),
    ],
)
def test_bad_commands_get_one_sentence(text: str, words: str) -> None:
    with pytest.raises(NotExpressible, match=words) as caught:
        SYSTEM.parse(text, SETUP)
    assert "\n" not in str(caught.value)


def test_only_opt_has_a_command() -> None:
    setup = Setup(MACHINE, load_model("llama-2-7b", "f16"), SETUP.figures)
    plan = SYSTEM.plan(setup, Workload(prompt=64, generate=8), FlexgenSettings(percent=(50, 50, 100, 0, 100, 0)))
    assert SYSTEM.evaluate(setup, plan).decode_s > 0
    with pytest.raises(NotExpressible, match="OPT models only"):
        SYSTEM.command(setup, plan)


def test_plan_whose_places_are_not_what_the_rounding_gives() -> None:
    plan = SYSTEM.plan(SETUP, Workload(), FlexgenSettings(percent=(20, 80, 0, 100, 0, 100)))
    moved = plan.model_copy(update={"settings": plan.settings | {"percent": [30, 70, 0, 100, 0, 100]}})
    with pytest.raises(NotExpressible, match="--percent 30 70"):
        SYSTEM.evaluate(SETUP, moved)
