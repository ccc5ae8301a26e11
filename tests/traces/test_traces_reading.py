"""Every family is read; bad files get one sentence with file and line, or are counted."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError, UnknownName
from stowplan.traces import lines as lines_module
from stowplan.traces.catalogue import catalogue
from stowplan.traces.reading import load_trace, read_trace
from stowplan.traces.rows import FAILURES, ReadOptions, parted
from stowplan.traces.trace import Blocks, Trace
from stowplan.traces.writing import write_trace

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
PLAIN = "arrival_s,prompt_tokens,output_tokens\n"
SKIP = ReadOptions(skip_bad=True)


def saved(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_burstgpt_counts_failures_and_starts_at_zero(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,0,0,0,Conversation log\n47,GPT-4,7,9,16,API log\n"
    path = saved(tmp_path, "b.csv", BURSTGPT + rows)
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 42.0]
    assert trace.prompt_tokens.tolist() == [472, 7]
    assert dict(trace.dropped) == {FAILURES: 1}
    kept = read_trace(path, ReadOptions(keep_failures=True))
    assert kept.output_tokens.tolist() == [18, 1, 9]
    assert kept.prompt_tokens.tolist() == [472, 1, 7]
    assert "failed requests kept" in kept.origin


def test_columns_are_found_by_name_and_sessions_become_numbers(tmp_path: Path) -> None:
    header = "Session ID,Response tokens,Timestamp,Elapsed time,Request tokens,Model,Total tokens,Log Type\r\n"
    rows = "a,1,10.5,3,4,m,5,l\r\nb,2,11,3,4,m,5,l\r\na,3,11,3,4,m,5,l\r\nnan,3,12,3,4,m,5,l\r\n"
    trace = read_trace(saved(tmp_path, "b.csv", header + rows))
    assert trace.session is not None
    assert trace.session.tolist() == [0, 1, 0, -1]
    assert trace.arrival_s.tolist() == [0.0, 0.5, 0.5, 1.5]


def test_azure_times_of_both_years(tmp_path: Path) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    old = read_trace(
        saved(tmp_path, "a.csv", header + "2023-11-16 23:59:59.9799600,8,1\n2023-11-17 00:00:01.0319600,9,2\n")
    )
    new = read_trace(
        saved(tmp_path, "n.csv", header + "2024-05-10 00:00:00+00:00,8,1\n2024-05-10 00:00:01.052000+00:00,9,2\n")
    )
    assert old.arrival_s[1] == pytest.approx(1.052, abs=1e-6)
    assert new.arrival_s[1] == pytest.approx(1.052, abs=1e-6)
    with pytest.raises(InputError, match=r"z\.csv:2: 'timestamp' is '2024-05-10 00:00:00\+02:00', which is not a date"):
        read_trace(saved(tmp_path, "z.csv", header + "2024-05-10 00:00:00+02:00,8,1\n"))


def test_mooncake_has_milliseconds_and_blocks_whose_size_is_found(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 1030, "output_length": 6, "hash_ids": [0, 1, 2]},
    ]
    path = saved(tmp_path, "m.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 512
    assert trace.prefix.of(1).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="blocks of 16 tokens"):
        read_trace(path, ReadOptions(block_tokens=16))


def test_lengths_without_arrivals(tmp_path: Path) -> None:
    path = saved(tmp_path, "s.csv", "num_prefill_tokens,num_decode_tokens,pd_ratio\n" + "74,918,0.08\n" * 400)
    assert set(read_trace(path).arrival_s.tolist()) == {0.0}
    poisson = read_trace(path, ReadOptions(rate=10.0, seed=1))
    assert poisson.rate == pytest.approx(10.0, rel=0.2)
    assert "synthetic Poisson" in poisson.origin
    with pytest.raises(InputError, match="above 0"):
        read_trace(path, ReadOptions(rate=-1.0))


def servegen(folder: Path) -> Path:
    """An archive with two clients."""
    probability = json.dumps({"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{7: 1.0}"}})
    files = {
        "d/chunk-0-trace.csv": "0,0.5,1.0,Gamma,1.0,2.0\n600,0,0,,0,0\n1200,0.1,2.0,Weibull,0.6,5.0\n",
        "d/chunk-0-dataset.json": probability,
        "d/chunk-3-trace.csv": "0,0.02,1.0,Gamma,1.0,50.0\n600,0,0,,0,0\n",
        "d/chunk-3-dataset.json": probability,
    }
    path = folder / "clients.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_servegen_clients_are_sampled_with_their_counts(tmp_path: Path) -> None:
    path = servegen(tmp_path)
    trace = read_trace(path, ReadOptions(seed=4))
    assert len(trace) == 300 + 60 + 12
    assert set(trace.prompt_tokens.tolist()) == {10, 20}
    assert set(trace.output_tokens.tolist()) == {7}
    assert "synthetic" in trace.origin
    assert trace.arrival_s.tolist() == read_trace(path, ReadOptions(seed=4)).arrival_s.tolist()
    assert len(read_trace(path, ReadOptions(duration_s=300.0))) == 150 + 6
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    assert read_trace(tmp_path / "d", ReadOptions(seed=4)).arrival_s.tolist() == trace.arrival_s.tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("a,b,c\n1,2,3\n", r"x:1: the columns 'a,b,c' are of no known trace"),
        ('{"a": 1}\n', r"x:1: the fields a are of no known trace"),
        ('{"a": \n', r"x:1: the line is not JSON"),
        (PLAIN, "holds no request"),
        (PLAIN + "0,1,1\n\nnan,1,1\n", r"x:4: arrival is nan, which is not a finite number"),
        (PLAIN + "0,1,1\n1,NaN,1\n", r"x:3: prompt tokens is nan"),
        (PLAIN + "-1,1,1\n", r"x:2: arrival is -1; it cannot be negative"),
        (PLAIN + "0,-1,1\n", r"x:2: prompt tokens is -1; it cannot be negative"),
        (PLAIN + "1e300,1,1\n", r"x:2: arrival is 1e\+300, which is too large"),
        (PLAIN + "1e999,1,1\n", r"x:2: arrival is inf"),
        (PLAIN + "0,1.5,1\n", r"x:2: prompt tokens is 1.5; tokens are whole numbers"),
        (PLAIN + "0,0,1\n", r"x:2: the prompt has no tokens"),
        (PLAIN + "0,1\n", r"x:2: 2 columns where the header has 3"),
        (PLAIN + "0,1,1,1\n", r"x:2: 4 columns where the header has 3"),
        (PLAIN + "0,abc,1\n", r"x:2: 'prompt_tokens' is 'abc', which is not a number"),
        (PLAIN + "0,1_0,1\n", r"x:2: 'prompt_tokens' is '1_0'"),
        (PLAIN.encode() + b"0,1,1\n\xff\xfe\x00\n", r"x:3: the line holds a zero byte"),
        (PLAIN.encode() + b"0,1,1\n\xff\xfe\n", r"x:3: the line is not UTF-8"),
        (b"\x7fELF\x00\x00\x01\n", r"x:1: the line holds a zero byte"),
        (gzip.compress(PLAIN.encode() * 99, mtime=0)[:-9], "damaged gzip"),
        ("arrival_s,prompt_tokens,output_tokens,prefix_hashes\n0,20,1,1 x\n", r"x:2: 'prefix_hashes' must hold whole"),
        ('{"timestamp": 0, "input_length": true, "output_length": 1}\n', r"x:1: 'input_length' is 'True'"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 7}\n', r"x:1: 'hash_ids' is not a list"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n[1]\n', r"x:2: the line is JSON but not an object"),
        ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}\n', r"x:1: arrival is inf"),
        ('{"timestamp": 0, "input_length": ' + "9" * 400 + ', "output_length": 1}\n', "too large"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_trace(saved(tmp_path, "x", content))
    assert "\n" not in str(caught.value)


def test_bad_rows_are_counted_where_asked(tmp_path: Path) -> None:
    rows = "0,1,1\nx,1,1\n1,nan,1\n2,-1,1\n3,0,4\n4,1\n5,2,2\n6,5,0\n"
    trace = read_trace(saved(tmp_path, "p.csv", (PLAIN + rows).encode() + b"\xff,1,1\n"), SKIP)
    assert trace.arrival_s.tolist() == [0.0, 5.0]
    assert dict(trace.dropped) == {
        "not a number": 1,
        "not a finite number": 1,
        "negative": 1,
        "no prompt tokens": 1,
        "wrong number of columns": 1,
        "not text": 1,
        FAILURES: 1,
    }


def test_a_very_long_line_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 2000)
    monkeypatch.setattr(lines_module, "_BLOCK", 1000)
    content = PLAIN + "0,1,1\n" + "7" * 50_000 + "\n9,2,3\n"
    path = saved(tmp_path, "long.csv", content)
    with pytest.raises(InputError, match=r"long\.csv:3: the line is longer than"):
        read_trace(path)
    assert read_trace(path, SKIP).arrival_s.tolist() == [0.0, 9.0]
    assert max(len(text) for piece in lines_module.read_lines(path) for text in piece.texts) < 3001


@given(st.lists(st.binary(max_size=12), max_size=30), st.integers(1, 40))
@settings(deadline=None, max_examples=80)
def test_lines_are_numbered_alike_whatever_the_size_of_blocks(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], block: int
) -> None:
    path = saved(tmp_path_factory.mktemp("lines"), "f", b"\n".join([b"first", *pieces]))
    expected = path.read_bytes().split(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "_BLOCK", max(block, 3))
        found = {
            piece.first + position: (text, position in piece.broken)
            for piece in lines_module.read_lines(path)
            for position, text in enumerate(piece.texts)
        }
    for number, line in enumerate(expected, 1):
        if number in found and not found[number][1]:
            assert found[number][0].encode().rstrip(b"\r") == line.rstrip(b"\r")
        elif number in found:
            assert b"\0" in line or line.decode("utf-8", "replace") != line.decode("utf-8", "ignore")
        else:
            assert line.strip(b"\r") == b""


def test_unsorted_rows_are_sorted_and_told(tmp_path: Path) -> None:
    trace = read_trace(saved(tmp_path, "u.csv", PLAIN + "5,1,1\n3,2,1\n3,3,1\n9,4,1\n"))
    assert trace.prompt_tokens.tolist() == [2, 3, 1, 4]
    assert "1 row came after a later one" in trace.origin


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_jitter_parts_ties_within_their_second(ticks: list[int], seed: int) -> None:
    arrival = np.sort(np.array(ticks, dtype=float)) - min(ticks)
    found = parted(arrival, seed)
    assert found[0] == 0.0
    assert bool((np.diff(found) >= 0).all())
    assert bool((np.abs(found - arrival) <= 1.0).all())
    if len(set(ticks)) == len(ticks):
        assert found.tolist() == arrival.tolist()


@given(st.integers(1, 40), st.integers(0, 10**6), st.sampled_from(["t.csv", "t.jsonl", "t.csv.gz", "t.jsonl.gz"]))
@settings(deadline=None, max_examples=40)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, name: str
) -> None:
    random = np.random.default_rng(seed)
    prompt = random.integers(1, 90, count)
    counts = prompt // 8
    arrival = np.sort(random.random(count)) * 1e3
    trace = Trace(
        "w",
        arrival - arrival[0],
        prompt,
        random.integers(1, 90, count),
        session=np.arange(count),
        prefix=Blocks(np.concatenate(([0], np.cumsum(counts))), random.integers(-(2**63), 2**63, counts.sum()), 8),
    )
    path = tmp_path_factory.mktemp("written") / name
    write_trace(trace, path)
    again = read_trace(path, ReadOptions(block_tokens=8))
    assert again.arrival_s.tolist() == trace.arrival_s.tolist()
    assert again.prompt_tokens.tolist() == prompt.tolist()
    assert again.session is not None
    assert again.session.tolist() == list(range(count))
    if counts.sum():
        assert again.prefix is not None
        assert trace.prefix is not None
        assert again.prefix.hashes.tolist() == trace.prefix.hashes.tolist()
        assert again.prefix.offsets.tolist() == trace.prefix.offsets.tolist()
    with pytest.raises(InputError, match="there already"):
        write_trace(trace, path)


def test_shipped_excerpts_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOWPLAN_TRACES", str(tmp_path))
    for entry in catalogue().values():
        if entry.kind == "excerpt":
            trace = load_trace(entry.name)
            assert len(trace) + sum(trace.dropped.values()) == 400
    with pytest.raises(UnknownName, match="burstgpt"):
        load_trace("burst-gpt")
    with pytest.raises(InputError, match="stowplan traces fetch burstgpt"):
        load_trace("burstgpt")


SAMPLES: dict[str, str] = {
    "burstgpt": BURSTGPT + "5,ChatGPT,472,18,490,Conversation log\n" * 4,
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:17:03.9799600,4808,10\n" * 4,
    "plain": "arrival_s,prompt_tokens,output_tokens,session,prefix_hashes\n" + "1.5,33,4,a,1 2 3\n" * 4,
    "mooncake": '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n' * 4,
}


@given(
    st.sampled_from(sorted(SAMPLES)),
    st.integers(0, 400),
    st.integers(0, 20),
    st.one_of(
        st.binary(max_size=12), st.sampled_from([b"-", b"nan", b"1e400", b",", b"\n", b'"', b"9" * 30, b"[", b"}"])
    ),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_damaged_files_are_read_or_refused_with_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: int, cut: int, put: bytes, packed: bool, skip: bool
) -> None:
    content = SAMPLES[kind].encode()
    damaged = content[:at] + put + content[at + cut :]
    if packed:
        whole = gzip.compress(content)
        damaged = whole[: at % len(whole)] + put + whole[at % len(whole) + cut :]
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(damaged)
    try:
        trace = read_trace(path, ReadOptions(skip_bad=skip))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(trace) + sum(trace.dropped.values()) <= 8


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_damaged_archives_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int, put: bytes) -> None:
    folder = tmp_path_factory.mktemp("archive")
    content = gzip.decompress(servegen(folder).read_bytes())
    path = saved(folder, "damaged.tar", content[:at] + put + content[at + len(put) :])
    try:
        read_trace(path)
    except InputError as error:
        assert "\n" not in str(error)


def test_synthetic_files_say_so(tmp_path: Path) -> None:
    made = Trace("s", np.zeros(2), np.array([1, 2]), np.array([1, 2]), origin="synthetic: a test")
    for name in ("s.csv", "s.jsonl"):
        write_trace(made, tmp_path / name)
        assert "synthetic" in read_trace(tmp_path / name).origin
