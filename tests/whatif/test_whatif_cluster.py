"""The same sweep through clusters of this machine: byte for byte what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from stowplan.errors import InputError
from stowplan.whatif.axes import Axis
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.store import Store
from stowplan.whatif.sweep import Sweep, Workers, run_sweep

pytestmark = pytest.mark.slow

BASE = Scenario(model="llama-3.1-8b", quant="q4_k_m", machine="rtx-3060-desktop-32")
AXES = [Axis("gpu.memory", ("5GiB", "8GiB", "12GiB")), Axis("memory.bandwidth", ("40GB/s", "50GB/s"))]


def texts(found: Sweep) -> list[str]:
    return [found.base.outcome.text, *(row.outcome.text for row in found.rows)]


@pytest.mark.filterwarnings("ignore")  # those of the cluster's own packages
def test_dask_gives_the_same_bytes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        address = cluster.scheduler_address.removeprefix("tcp://")
        found = run_sweep(BASE, AXES, workers=Workers(cluster=f"dask://{address}", store=tmp_path / "s.sqlite"))
    assert texts(found) == texts(run_sweep(BASE, AXES))
    assert len(Store(tmp_path / "s.sqlite")) == 7


@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    found = run_sweep(BASE, AXES, workers=Workers(cluster="ray", store=tmp_path / "s.sqlite"))
    assert texts(found) == texts(run_sweep(BASE, AXES))


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_answer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'dask'")
    with pytest.raises(InputError, match="nobody answers there"):
        run_sweep(BASE, AXES, workers=Workers(cluster="dask://127.0.0.1:9", store=tmp_path / "s.sqlite"))
