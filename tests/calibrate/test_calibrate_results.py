"""Results folders: lines are whole or absent, whatever interrupts a run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import BadFile
from stowplan_calibrate.results import Record, ResultsFolder, Skipped, read_results
from stowplan_calibrate.sampling import Sampled


def record(name: str = "host.read", threads: int = 1, seconds: tuple[float, ...] = (0.1, 0.2)) -> Record:
    sampled = Sampled(seconds, {"host clock": (3e9, 2.9e9)}, "budget", (1.0,) * len(seconds))
    return Record(name, "cpu", {"threads": threads}, {"bytes": 1e9}, sampled, "gcc 12", "2026-11-21T10:00:00+00:00")


@given(
    st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=9),
    st.dictionaries(st.text(min_size=1, max_size=9), st.integers(0, 2**40) | st.text(max_size=9), max_size=4),
)
def test_a_record_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], at: dict[str, int | str]
) -> None:
    folder = ResultsFolder(tmp_path_factory.mktemp("results"))
    written = replace(record(seconds=tuple(seconds)), parameters=at)
    folder.append(written)
    assert folder.read().records == (written,)


def test_later_points_replace_earlier_ones_and_skips_end_when_measured(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.append(Skipped("host.read", "cpu", "no compiler"))
    folder.append(Skipped("disk.read", "disk", "O_DIRECT is refused"))
    folder.append(record(seconds=(1.0,)))
    folder.append(record(seconds=(2.0,)))
    found = folder.read()
    assert [each.samples.seconds for each in found.records] == [(2.0,)]
    assert [each.name for each in found.skipped] == ["disk.read"]


def test_a_line_cut_short_is_ignored_and_mended(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.append(record(threads=1))
    with folder.lines.open("ab") as file:
        file.write(b'{"schema":"stowplan.measurement/1","kind":"rec')
    assert len(folder.read().records) == 1
    folder.append(record(threads=2))
    assert [each.parameters["threads"] for each in folder.read().records] == [1, 2]
    assert all(json.loads(line) for line in folder.lines.read_text().splitlines())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[]", "is not a measurement"),
        ('{"schema": "stowplan.measurement/9", "kind": "record"}', "stowplan.measurement/9"),
        ('{"schema": "stowplan.measurement/1", "kind": "record"}', "is not a measurement"),
        ("{" * 100_000, "is not a measurement"),
    ],
)
def test_foreign_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "measurements.jsonl").write_text(line + "\n")
    with pytest.raises(BadFile, match=words) as caught:
        read_results(tmp_path)
    assert "line 1" in str(caught.value)


def test_samples_that_are_no_times_are_refused(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.append(record())
    text = folder.lines.read_text()
    for bad in ("-0.1", "0.0", "NaN"):
        folder.lines.write_text(text.replace("[0.1,", f"[{bad},"))
        with pytest.raises(BadFile, match="positive"):
            folder.read()


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="calibrate run"):
        read_results(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on file sizes")
def test_a_full_disk_keeps_whole_lines_and_says_so(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_calibrate_results import record
        from stowplan.errors import BadFile
        from stowplan_calibrate.results import ResultsFolder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        folder = ResultsFolder(Path(sys.argv[1]))
        try:
            for threads in range(100):
                folder.append(record(threads=threads))
        except BadFile as error:
            print(error)
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ))
    assert "what was measured before is kept" in done.stdout
    kept = ResultsFolder(tmp_path).read().records
    assert 1 <= len(kept) < 10
    assert ResultsFolder(tmp_path).lines.read_bytes().endswith(b"\n")
