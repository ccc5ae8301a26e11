"""Several memory nodes: who touches pages first, what crosses between sockets, and what that does to decode."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import machine_of, model_of

from stowplan.errors import DoesNotFit, InputError, NotExpressible
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.planner.commands import Hints, Understood, understand
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_nodes import Reach, spread
from stowplan.systems.llama_cpp_settings import LlamaCppSettings, settings_of
from stowplan.systems.numactl import read_numactl

SERVER = "2x xeon-platinum-8480 + ddr5-4800x16:1TiB"
ONE = "xeon-platinum-8480 + ddr5-4800x8:512GiB"
MODEL = model_of("llama-3.3-70b", "q8_0")


def read(command: str, spec: str = SERVER, changes: tuple[str, ...] = ()) -> Understood:
    words = shlex.split(command.replace("RUN", "llama-server -m model.gguf -c 4096 -fit off -ngl 0"))
    machine = load_machine(spec, changes) if changes else machine_of(spec)
    return understand(words, machine, Hints(model=MODEL.key, quant="q8_0", loaded=MODEL))


def decode(command: str, spec: str = SERVER, changes: tuple[str, ...] = ()) -> float:
    meant = read(command, spec, changes)
    return LlamaCpp().evaluate(meant.setup, meant.plan).decode_s


def reach(nodes: int, **chosen: object) -> Reach:
    machine = load_machine(SERVER, [f"memory.nodes={nodes}"])
    return Reach.of(machine, LlamaCppSettings.model_validate(chosen), figures_for(machine, "llama.cpp"))


def test_one_socket_reads_as_before() -> None:
    machine = machine_of(ONE)
    for chosen in ({}, {"numa": "isolate"}, {"numactl": "interleave"}, {"numa": "distribute", "load_mode": "mmap"}):
        settings = LlamaCppSettings.model_validate(chosen)
        assert Reach.of(machine, settings, figures_for(machine, "llama.cpp")) == Reach(56)


def test_pages_lie_where_they_are_touched_first() -> None:
    loaded, touched = reach(2), reach(2, numa="distribute", load_mode="mmap")
    assert (loaded.remote, loaded.crossing, loaded.memory) == (0.5, 0.5, 0.5)
    assert touched.memory == 1.0 and 0 < touched.remote < 0.2
    # mapped, but populated by the thread that loads: nothing says otherwise without --numa
    assert reach(2, load_mode="mmap") == loaded
    # repacked in place: the pages stay where the loading thread put them
    assert reach(2, numa="distribute", engine="ik_llama.cpp", repacked=True) == loaded


def test_interleaved_pages_use_all_memory_and_cross_half_the_time() -> None:
    by_tool, by_firmware = reach(2, numactl="interleave"), reach(1)
    assert by_tool == by_firmware
    assert (by_tool.remote, by_tool.crossing, by_tool.memory) == (0.5, 0.25, 1.0)


def test_clusters_of_a_socket_serve_an_operator_alone() -> None:
    assert reach(8).memory == 1 / 8
    assert reach(8, numactl="bind") == Reach(14, memory=1 / 8)
    assert reach(1, numa="isolate") == reach(1)  # with one node there is nothing to isolate


@pytest.mark.parametrize(
    ("channels", "nodes", "sets"), [(24, 1, 1), (24, 2, 2), (24, 8, 8), (23, 1, 8), (23, 2, 8), (22, 2, 8), (20, 1, 1)]
)
def test_channels_that_cannot_be_interleaved_fill_one_after_another(channels: int, nodes: int, sets: int) -> None:
    spec = f"2x epyc-9355 + ddr5-6400x{channels}:736GiB"
    machine = load_machine(spec, [f"memory.nodes={nodes}"])
    assert machine.interleave_sets == sets
    loaded = Reach.of(machine, LlamaCppSettings(load_mode="none"), figures_for(machine, "llama.cpp"))
    assert loaded.memory == (1.0 if sets == 1 else 1 / sets)
    assert loaded.remote == 0.5
    spread_pages = LlamaCppSettings(load_mode="none", numactl="interleave")
    assert Reach.of(machine, spread_pages, figures_for(machine, "llama.cpp")).memory == (
        nodes / sets if sets > 1 else 1.0
    )


def test_an_odd_number_of_channels_matters_in_one_socket_too() -> None:
    odd = load_machine("epyc-9355 + ddr5-6400x11:704GiB")
    assert Reach.of(odd, LlamaCppSettings(), figures_for(odd, "llama.cpp")) == Reach(32, memory=0.25)
    for whole in (
        "epyc-9355 + ddr5-6400x10:640GiB",
        "epyc-9355 + ddr5-6400x1:64GiB",
        "core-i7-12700 + ddr5-5600x1:32GiB",
    ):
        assert load_machine(whole).interleave_sets == 1


@given(
    nodes=st.sampled_from([1, 2, 4, 8]),
    numa=st.sampled_from([None, "distribute", "isolate", "numactl"]),
    numactl=st.sampled_from([None, "interleave", "bind"]),
    load_mode=st.sampled_from(["mmap", "none"]),
)
@settings(deadline=None, max_examples=60)
def test_what_crosses_was_read_remotely(nodes: int, numa: str, numactl: str, load_mode: str) -> None:
    found = reach(nodes, numa=numa, numactl=numactl, load_mode=load_mode)
    assert 0 <= found.crossing <= found.remote <= 0.5 or found.crossing == found.remote
    assert 1 / 8 <= found.memory <= 1
    assert found.waiting(1.0) == found.barrier(1.0) == 1.0
    assert found.waiting(2.0) == 1.0 + found.remote


def test_decode_on_two_sockets_is_bound_where_bytes_pass() -> None:
    one = decode("RUN --no-mmap -t 56", ONE)
    bound = decode("numactl -N 0 -m 0 RUN --no-mmap -t 56")
    assert bound == pytest.approx(one, rel=1e-9)
    loaded = decode("RUN --no-mmap --numa distribute")
    interleaved = decode("numactl --interleave=all RUN --no-mmap --numa distribute")
    touched = decode("RUN --numa distribute")
    assert touched <= interleaved < loaded
    assert loaded > 0.9 * one  # a second socket without its memory brings little


def test_a_narrow_link_limits_interleaved_pages_and_not_touched_ones() -> None:
    narrow = ("socket_link.bandwidth=20GB/s",)
    interleaved, touched = "numactl -i all RUN --numa distribute", "RUN --numa distribute"
    assert decode(interleaved, changes=narrow) > 1.5 * decode(interleaved)
    assert decode(touched, changes=narrow) < 1.3 * decode(touched)


def test_numactl_is_read_and_written() -> None:
    meant = read("numactl --interleave=all RUN --numa distribute")
    assert settings_of(meant.plan).numactl == "interleave"
    assert LlamaCpp().command(meant.setup, meant.plan).startswith("numactl --interleave=all llama-server ")
    again = read(LlamaCpp().command(meant.setup, meant.plan).replace("\\\n", " "))
    assert settings_of(again.plan).numactl == "interleave"
    assert settings_of(again.plan).numa == "distribute"


def test_pages_on_one_node_must_fit_there() -> None:
    meant = read("numactl -N 0 -m 0 RUN --no-mmap")
    assert LlamaCpp().evaluate(meant.setup, meant.plan).memory["ram"].capacity == 512 * 2**30
    with pytest.raises(DoesNotFit, match="host memory lacks"):
        decode("numactl -N 0 -m 0 RUN --no-mmap", changes=("memory.capacity=128GiB",))
    assert decode("numactl -N 0 RUN --no-mmap", changes=("memory.capacity=128GiB",)) > 0


def test_threads_on_one_node_are_isolated() -> None:
    meant = read("numactl -N 0 RUN --no-mmap")
    assert (settings_of(meant.plan).numa, settings_of(meant.plan).numactl) == ("isolate", None)


def test_the_environment_may_say_it() -> None:
    assert settings_of(read("LLAMA_ARG_NUMA=isolate numactl -i all RUN").plan).numa == "isolate"


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ("llama-server -ngl 1", None),
        ("numactl -N 0 -m 0 llama-server", "bind"),
        ("numactl --cpunodebind=1 llama-server", "threads"),
        ("numactl --physcpubind=0-55,112-167 --membind=0 llama-server", "bind"),
        ("/usr/bin/numactl -i all -- llama-server", "interleave"),
        ("numactl --interleave=all --cpunodebind=0 llama-server", "interleave"),
    ],
)
def test_policies_of_numactl(words: str, policy: str | None) -> None:
    found = read_numactl(words.split())
    assert (found.policy, found.warning) == (policy, None)
    assert found.command[0] == "llama-server"


def test_what_numactl_says_only_in_part_is_warned_of() -> None:
    assert "0-3" in (read_numactl(["numactl", "-i", "0-3", "llama-cli"]).warning or "")
    assert "--cpunodebind=0,1" in (read_numactl(["numactl", "-N", "0,1", "llama-cli"]).warning or "")
    for words, told in (
        ("numactl -i", "list"),
        ("numactl -i x llama-cli", "must be"),
        ("numactl -i all", "no command"),
    ):
        with pytest.raises(InputError, match=told):
            read_numactl(words.split())
    with pytest.raises(NotExpressible, match="--hardware"):
        read_numactl(["numactl", "--hardware"])


def test_plans_spread_weights_over_all_nodes() -> None:
    assert spread(machine_of(ONE), "none") == {}
    assert spread(machine_of(SERVER), "mmap") == {"numa": "distribute"}
    assert spread(machine_of(SERVER), "none") == {"numa": "distribute", "numactl": "interleave"}
