"""A sweep plans what `plan` plans, whoever works; what is finished stays finished; nothing is planned twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stowplan.errors import BadFile, InputError, UnknownName
from stowplan.planner.dispatch import plan_for
from stowplan.whatif.axes import Axis
from stowplan.whatif.outcome import Outcome
from stowplan.whatif.pool import plan_jobs, run_jobs
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.store import Store
from stowplan.whatif.sweep import Sweep, Workers, in_batches, run_sweep
from stowplan.whatif.workshop import Fingerprints, Workshop

BASE = Scenario(model="llama-3.1-8b", quant="q4_k_m", machine="rtx-3060-desktop-32")
AXES = [Axis("gpu.memory", ("5GiB", "8GiB", "12GiB")), Axis("memory.bandwidth", ("40GB/s", "50GB/s"))]


def texts(found: Sweep) -> list[str]:
    return [found.base.outcome.text, *(row.outcome.text for row in found.rows)]


def test_a_variant_is_what_plan_plans(tmp_path: Path) -> None:
    found = run_sweep(BASE, [*AXES, Axis("context", ("4096", "100"))], workers=Workers(store=tmp_path / "s.sqlite"))
    assert len(found.rows) == 12
    assert found.planned == 13
    for row in found.rows[::2]:
        system, request = Workshop().request(row.scenario)
        planned = plan_for(system, replace(request, alternatives=True))
        assert row.outcome.cost_s == planned.cost
        assert row.outcome.plan == planned.plan.model_dump(mode="json")
        assert row.outcome.figure("decode_tokens_per_s") == planned.prediction.decode_tokens_per_s
        low, high = (row.outcome.interval or {})["ttft_s"]
        assert (low, high) == (planned.prediction.interval["ttft_s"].low, planned.prediction.interval["ttft_s"].high)
    assert all("at least 640" in (row.outcome.error or "") for row in found.rows[1::2])


def test_order_and_company_do_not_matter() -> None:
    forwards = run_sweep(BASE, AXES)
    backwards = run_sweep(BASE, [replace(axis, values=axis.values[::-1]) for axis in AXES[::-1]])
    alone = [Workshop().outcome(row.scenario).text for row in forwards.rows]
    assert alone == texts(forwards)[1:]
    there = {frozenset(row.scenario.changes): row.outcome.text for row in forwards.rows}
    back = {frozenset(row.scenario.changes): row.outcome.text for row in backwards.rows}
    assert there.keys() == back.keys()
    changes = {frozenset(row.scenario.changes): row for row in backwards.rows}
    for key, text in there.items():
        plan, other = Outcome.parse(text), changes[key].outcome
        assert replace(plan, plan=None) == replace(other, plan=None)  # the plans list their overrides in another order


def test_what_is_known_is_not_planned_again(tmp_path: Path) -> None:
    store = tmp_path / "kept.sqlite"
    told: list[tuple[int, int]] = []
    first = run_sweep(BASE, AXES[:1], workers=Workers(store=store))
    second = run_sweep(
        BASE, AXES, workers=Workers(store=store), progress=lambda done, total: told.append((done, total))
    )
    third = run_sweep(BASE, AXES, workers=Workers(store=store))
    assert (first.planned, second.planned, third.planned) == (4, 6, 0)
    assert texts(second) == texts(third)
    assert told[0] == (1, 7) and told[-1] == (7, 7)
    assert len(Store(store)) == 10


def test_equal_variants_are_planned_once() -> None:
    found = run_sweep(BASE, [Axis("quant", ("q4_k_m", "Q4_K_M")), Axis("batch", ("1", "01"))])
    assert len(found.rows) == 4
    assert found.planned == 3


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    alone = run_sweep(BASE, AXES)
    together = run_sweep(BASE, AXES, workers=Workers(count=2, store=tmp_path / "s.sqlite"))
    assert texts(alone) == texts(together)
    assert len(Store(tmp_path / "s.sqlite")) == 7


_KILLED = """
import sys
from pathlib import Path
from stowplan.whatif.axes import Axis
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.sweep import Workers, run_sweep
base = Scenario(model="llama-3.1-8b", quant="q4_k_m", machine="rtx-3060-desktop-32")
axes = [Axis("gpu.memory", tuple(f"{n}GiB" for n in range(4, 40)))]
run_sweep(base, axes, workers=Workers(int(sys.argv[2]), store=Path(sys.argv[1])))
"""


@pytest.mark.parametrize("cluster", [None, "dask://127.0.0.1:1"])
def test_batches_hold_relatives_and_are_small_at_the_end(cluster: str | None) -> None:
    jobs = [(str(number), f"scenario {number}") for number in range(500)]
    kin: dict[str, tuple[object, ...]] = {key: (int(key) % 5,) for key, _ in jobs}
    batches = in_batches(jobs, kin, Workers(2, cluster))
    assert sorted(job for batch in batches for job in batch) == sorted(jobs)
    assert all(len({kin[key] for key, _ in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == (32 if cluster is None else 8)
    assert [len(batch) for batch in batches[-4:]] == [1, 1, 1, 1]
    assert len(batches) < (60 if cluster is None else 100)


def test_after_a_kill_only_the_rest_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "killed.sqlite"
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(path), "1"], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and (not path.exists() or not _finished(path)):
                time.sleep(0.05)
        finally:
            process.kill()
    done = _finished(path)
    assert 0 < done < 37, "killed before the end"
    axes = [Axis("gpu.memory", tuple(f"{n}GiB" for n in range(4, 40)))]
    rest = run_sweep(BASE, axes, workers=Workers(store=path))
    assert rest.planned == 37 - done
    assert all(row.outcome.error is None for row in rest.rows)


def _finished(path: Path) -> int:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM outcome").fetchone()[0])
    except sqlite3.OperationalError:  # not yet a store
        return 0


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    alone = run_sweep(BASE, AXES)
    killer = multiprocessing.get_context("spawn").Process(target=_kill_a_worker, args=(os.getpid(),))
    killer.start()
    try:
        axes = [Axis("gpu.memory", tuple(f"{n}GiB" for n in range(4, 40)))]
        found = run_sweep(BASE, axes, workers=Workers(count=2, store=tmp_path / "s.sqlite"))
    finally:
        killer.join(timeout=60)
    assert len(found.rows) == 36
    assert all(row.outcome.error is None for row in found.rows)
    assert found.base.outcome.text == alone.base.outcome.text
    assert killer.exitcode == 0


def _kill_a_worker(parent: int) -> None:
    """Kill the first process of the pool that has worked for a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in (task / "children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                worked = sum(map(int, Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
                if b"loky.backend.popen" in command and worked > 120:
                    os.kill(int(child), signal.SIGKILL)
                    return
        time.sleep(0.02)
    raise AssertionError("no worker appeared")


def _write_rows(path: str, start: int) -> None:
    store = Store(Path(path))
    for n in range(start, start + 60):
        store.put([(f"key{n}", "scenario", f"outcome{n}")])


def test_two_processes_write_to_one_store(tmp_path: Path) -> None:
    path = tmp_path / "shared.sqlite"
    Store(path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_rows, args=(str(path), start)) for start in (0, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = Store(path)
    assert len(store) == 90
    assert store.get([f"key{n}" for n in range(1000)]) == {f"key{n}": f"outcome{n}" for n in range(90)}


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    path.write_text("dear diary" * 200)
    with pytest.raises(BadFile, match=r"notes\.sqlite.*another file"):
        Store(path)
    with pytest.raises(BadFile, match="cannot be used"):
        Store(tmp_path / "no" / "folder.sqlite")
    assert path.read_text() == "dear diary" * 200


def test_keys_tell_contents_apart(tmp_path: Path) -> None:
    fingerprints = Fingerprints(Workshop())
    scenarios = [
        BASE,
        BASE.with_change("gpu.memory", "8GiB"),
        BASE.with_workload("batch", 2),
        replace(BASE, quant=None),
    ]
    assert len({fingerprints.key(each) for each in scenarios}) == 4
    assert fingerprints.key(BASE) == Fingerprints(Workshop()).key(Scenario.parse(BASE.text))
    own = tmp_path / "own.toml"
    text = 'name = "own"\ngpus = ["rtx-3060"]\ncpu = "ryzen-5-5600"\nmemory = "ddr4-3200x2:32GiB"\n'
    own.write_text(text)
    before = fingerprints.key(replace(BASE, machine=str(own)))
    own.write_text(text.replace("32GiB", "64GiB"))
    assert Fingerprints(Workshop()).key(replace(BASE, machine=str(own))) != before


def test_a_base_that_does_not_exist_is_told_before_anything_is_planned() -> None:
    with pytest.raises(UnknownName, match=r"llama-3\.1-8b"):
        run_sweep(replace(BASE, model="llama-3.1-8bb"), AXES)
    with pytest.raises(UnknownName, match="rtx-3060"):
        run_sweep(replace(BASE, machine="rtx-3060-desktop-33"), AXES)
    broken = run_sweep(BASE, [Axis("quant", ("q4_k_m", "q44"))])
    assert "q44" in (broken.rows[1].outcome.error or "")
    assert broken.rows[0].outcome.error is None


@pytest.mark.parametrize("cluster", ["dask://", "dask://host", "http://host:80", "dask://host:port", "spark://h:1"])
def test_a_cluster_that_cannot_be_is_told(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give dask://host:port"):
        list(run_jobs([], workers=1, cluster=cluster, store=tmp_path / "s.sqlite"))


def test_jobs_come_back_as_plain_text() -> None:
    key, scenario, outcome = plan_jobs([("k", BASE.text)])[0]
    assert (key, Scenario.parse(scenario)) == ("k", BASE)
    assert Outcome.parse(outcome).error is None
