"""What people read, compared with golden files.

The figures are made up, so that a new calibration changes nothing here. After a change of the wording, run
``STOWPLAN_UPDATE_GOLDEN=1 pytest tests/cli`` and read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stowplan.cli.answers import plan_answer, prediction_answer
from stowplan.cli.tables import WIDTH, Line
from stowplan.figures import Figures
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Interval, MemoryUse, Place, PlacedLayers, Plan, Prediction, Rest, Solver, Workload
from stowplan.planner.result import Alternative, Planned
from stowplan.systems.base import Setup

GOLDEN = Path(__file__).parent / "golden"
GIB = 2.0**30
RATES = {"host.dram": 70e9, "gpu0.hbm": 900e9, "gpu0.h2d": 24e9, "disk.faults": 3.5e9}


def workload() -> Workload:
    return Workload(prompt=2048, generate=256, context=32768)


def plan() -> Plan:
    def layers(first: int, last: int, experts: str) -> PlacedLayers:
        places: dict[str, Place] = {"attention": "gpu0", "kv": "gpu0"}
        matrices: dict[str, Place] = dict.fromkeys(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), experts)
        return PlacedLayers(first=first, last=last, places=places | matrices)

    return Plan(
        system="llama.cpp",
        machine="rtx-4090-desktop-128",
        model="qwen3-235b-a22b",
        quant="q4_k_m",
        workload=workload(),
        layers=[layers(0, 81, "ram"), layers(82, 93, "gpu0")],
        embedding="ram",
        output="gpu0",
        settings={"cache_k": "q8_0", "cache_v": "q8_0"},
    )


def prediction() -> Prediction:
    def rest(kind: str) -> Rest:
        return Rest(name=kind, value=1.0, kind=kind, source="made up", sd=0.1, elasticity=0.5)

    return Prediction(
        system="llama.cpp",
        machine="RTX 4090 24 GiB + Ryzen 9 7950X, 128 GiB DDR5-5600 (2 ch) + 990 PRO",
        model="Qwen3 235B-A22B",
        quant="q4_k_m",
        workload=workload(),
        decode_tokens_per_s=6.1,
        per_request_tokens_per_s=6.1,
        prefill_tokens_per_s=218.0,
        request_tokens_per_s=5.0,
        ttft_s=9.4,
        tpot_s=1 / 6.1,
        interval={
            "decode_tokens_per_s": Interval(low=5.2, high=6.9),
            "prefill_tokens_per_s": Interval(low=178.0, high=259.0),
            "ttft_s": Interval(low=7.9, high=11.5),
            "tpot_s": Interval(low=0.145, high=0.192),
        },
        bottleneck="host.dram",
        prefill_bottleneck="gpu0.h2d",
        time_shares={"host.dram": 0.74, "gpu0.hbm": 0.2, "overhead": 0.06},
        prefill_shares={"gpu0.h2d": 1.0},
        memory_bytes={
            "gpu0": MemoryUse(used=22.6 * GIB, capacity=24 * GIB),
            "ram": MemoryUse(used=139 * GIB, capacity=128 * GIB),
        },
        rests_on=[rest("measured"), rest("datasheet"), rest("datasheet"), rest("assumed")],
        solver=Solver(
            name="highs", status="optimal", objective=51.0, bound=50.99, gap=0.0002, seconds=0.06, programmes=5
        ),
        command="llama-server -m Qwen3-235B-A22B-Q4_K_M.gguf -c 32768 \\\n    -ngl 99 --n-cpu-moe 82",
        warnings=["pages of the model file are read again from the SSD in every step"],
    )


def planned() -> Planned:
    return Planned(
        plan=plan(),
        prediction=prediction(),
        cost=51.0,
        alternatives=[
            Alternative("micro-batch 512", 6.0, 12.0, 54.0),
            Alternative("llama.cpp's own choice (--fit on, -ub 512)", 4.1, 19.0, 81.0, default=True),
        ],
        worth={"gpu0": 1.1 / GIB, "ram": 0.0},
        batch_curve=[(1, 6.1, 1 / 6.1, 9.4), (2, 9.0, 2 / 9, 12.0)],
    )


def setup() -> Setup:
    return Setup(load_machine("rtx-4090-desktop-128"), load_model("qwen3-235b-a22b", "q4_k_m"), Figures({}))


ANSWERS = {
    "plan": lambda: plan_answer(setup(), planned(), "request", RATES, 0.164),
    "predict": lambda: prediction_answer(setup(), plan(), prediction(), RATES, {0: 7.0, 16384: 5.0, 32768: 3.9}),
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_answer_reads_as_agreed(name: str) -> None:
    text = "\n".join(line.text for line in ANSWERS[name]()) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("STOWPLAN_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(ANSWERS))
def test_lines_keep_to_the_width_and_to_ascii(name: str) -> None:
    lines: list[Line] = ANSWERS[name]()
    assert max(len(line.text) for line in lines if line.style != "verbatim") <= WIDTH
    assert all(line.text.isascii() for line in lines)
    assert all(line.text == line.text.rstrip() for line in lines if line.style != "verbatim")


def test_answer_comes_before_everything_else() -> None:
    texts = [line.text for line in ANSWERS["plan"]() if line.text]
    assert "Qwen3 235B-A22B" in texts[0]
    assert texts[1].split()[:3] == ["decode", "6.10", "tok/s"]
    assert texts[2].split()[0] == "limit"
