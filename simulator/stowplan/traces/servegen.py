"""ServeGen: clients of Alibaba Cloud by their rates and length distributions, sampled into a trace.

A folder or tar archive holds, per client, ``chunk-N-trace.csv`` and ``chunk-N-dataset.json``. A row of the first is a
window: start in seconds, requests/s, coefficient of variation, distribution of the gaps (Gamma or Weibull) and its
shape and scale. The second gives, for the window that starts at each key, the probability of every length. What is
read is therefore not a log but a synthetic trace of it (ServeGen, arXiv 2505.09999; Apache-2.0).
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import BadFile
from stowplan.traces.arrivals import arrivals_in_windows
from stowplan.traces.rows import ReadOptions, Rows
from stowplan.traces.trace import LATEST_S, MOST_TOKENS, Floats, Integers, Trace

_MEMBER = re.compile(r"(?:.*/)?chunk-(\d{1,9})-(trace\.csv|dataset\.json)\Z")
_PROBABILITY = re.compile(r"([0-9.]{1,40}): ?([0-9.eE+-]{1,40})(?=[,}])")
_LARGEST_MEMBER = 64 * 2**20
_MOST_MEMBERS = 20_000
_MOST_REQUESTS = 10_000_000
_USUAL_WIDTH_S = 600.0
_SMALLEST_SHAPE = 0.001
_MEDIA = ("image", "audio", "video")


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """Windows of one client with requests: starts, widths, counts, and the shape of their gaps."""

    starts_s: Floats
    widths_s: Floats
    counts: Integers
    shapes: Floats
    weibull: NDArray[np.bool_]

    def within(self, start_s: float, end_s: float) -> _Windows:
        """Windows that start in ``[start_s, end_s)``."""
        chosen = (self.starts_s >= start_s) & (self.starts_s < end_s)
        return _Windows(
            self.starts_s[chosen],
            self.widths_s[chosen],
            self.counts[chosen],
            self.shapes[chosen],
            self.weibull[chosen],
        )


@dataclass(frozen=True, slots=True)
class _Lengths:
    """A distribution over lengths: values and the sums of their probabilities up to each."""

    values: Floats
    cumulative: Floats

    def sample(self, random: np.random.Generator, count: int) -> Floats:
        """Independent draws."""
        places = np.searchsorted(self.cumulative, random.random(count) * self.cumulative[-1], side="right")
        return np.asarray(self.values[np.minimum(places, len(self.values) - 1)])


def is_servegen(path: Path) -> bool:
    """Whether a path is a folder or an archive with a client's files in it.

    Raises:
        BadFile: an archive that cannot be read.
    """
    if path.is_dir():
        return any(_MEMBER.match(each.name) for each in path.iterdir())
    try:
        return path.is_file() and _begins_as_archive(path) and tarfile.is_tarfile(path)
    except (OSError, EOFError) as error:
        raise BadFile(f"{path}: is a damaged archive ({error})") from error


def _begins_as_archive(path: Path) -> bool:
    """Whether the first bytes can be those of an archive; tarfile alone would unpack gigabytes of zeros to find out."""
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or head[257:262] == b"ustar"


def read_servegen(path: Path, options: ReadOptions) -> Trace:
    """Sample a trace from the clients of a folder or archive.

    Raises:
        BadFile: unreadable, not laid out as above, or more than 10 million requests.
    """
    duration = options.duration_s
    if duration is not None and not (math.isfinite(duration) and duration > 0.0):
        raise BadFile(f"{path}: {duration:g} s cannot be sampled; give a duration above 0")
    traces: dict[int, str] = {}
    datasets: dict[int, str] = {}
    for client, kind, text in _members(path):
        (traces if kind == "trace.csv" else datasets)[client] = text
    clients = sorted(traces.keys() & datasets.keys())
    if not clients:
        raise BadFile(f"{path}: holds no client with both chunk-N-trace.csv and chunk-N-dataset.json")
    windows = {client: _windows(path, client, traces[client], duration) for client in clients}
    expected = sum(int(found.counts.sum()) for found in windows.values())
    if expected > _MOST_REQUESTS:
        raise BadFile(
            f"{path}: its clients send {expected:,} requests, more than {_MOST_REQUESTS:,}; "
            f"ask for a shorter time with --duration"
        )
    rows = Rows(path, options)
    for client in clients:
        random = np.random.default_rng((options.seed, client))
        for start, end, fields in _datasets(path, client, datasets[client]):
            own = windows[client].within(start, end)
            if len(own.counts):
                arrivals = arrivals_in_windows(random, own.starts_s, own.widths_s, own.counts, own.shapes, own.weibull)
                prompt, output = _sampled(fields, random, len(arrivals))
                rows.add(arrivals, np.clip(prompt, 1, MOST_TOKENS), np.clip(output, 1, MOST_TOKENS))
    rows.arrival_s, rows.prompt, rows.output = _in_order(rows)
    note = f"synthetic: sampled from {len(clients)} ServeGen clients of {path.name} with seed {options.seed}"
    return rows.trace(path.name.split(".")[0], note)


def _in_order(rows: Rows) -> tuple[list[Floats], list[Floats], list[Floats]]:
    """All clients' requests merged by arrival; what came first from a lower client stays first."""
    if not rows.arrival_s:
        return [], [], []
    arrivals = np.concatenate(rows.arrival_s)
    order = np.argsort(arrivals, kind="stable")
    return [arrivals[order]], [np.concatenate(rows.prompt)[order]], [np.concatenate(rows.output)[order]]


def _members(path: Path) -> Iterator[tuple[int, str, str]]:
    """Client, kind and text of every file."""
    if path.is_dir():
        for each in sorted(path.iterdir()):
            if matched := _MEMBER.match(each.name):
                yield int(matched[1]), matched[2], _text(path, each.name, each.stat().st_size, each.read_bytes)
        return
    try:
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive):
                if number >= _MOST_MEMBERS:
                    raise BadFile(f"{path}: holds more than {_MOST_MEMBERS:,} files; unpack what you need of it")
                matched = _MEMBER.match(member.name)
                stream = archive.extractfile(member) if matched and member.isfile() else None
                if matched and stream is not None:
                    yield int(matched[1]), matched[2], _text(path, member.name, member.size, stream.read)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadFile(f"{path}: is a damaged archive ({error})") from error


def _text(path: Path, name: str, size: int, read: Callable[[], bytes]) -> str:
    if size > _LARGEST_MEMBER:
        raise BadFile(f"{path}: {name} has {size:,} bytes; a client's file has at most {_LARGEST_MEMBER:,}")
    try:
        return read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: {name} is not UTF-8 text") from error


def _windows(path: Path, client: int, text: str, duration_s: float | None) -> _Windows:
    """Windows with requests; each ends where the next begins, the last is as long as the one before.

    The number of requests is rate times width, which is whole in the published files. The scale of the gaps is left to
    follow from it.
    """
    rows: list[tuple[float, float, float, bool]] = []
    for number, line in enumerate(text.splitlines(), 1):
        rows.append(_window(f"{path}: chunk-{client}-trace.csv:{number}", line.split(",")))
        if len(rows) > 1 and rows[-1][0] <= rows[-2][0]:
            raise BadFile(f"{path}: chunk-{client}-trace.csv:{number}: the window starts before the one above ends")
    table = np.array([row[:3] for row in rows], dtype=np.float64).reshape(-1, 3)
    starts, rates, shapes = table[:, 0], table[:, 1], table[:, 2]
    widths = np.diff(starts)
    widths = np.append(widths, widths[-1] if len(widths) else _USUAL_WIDTH_S)[: len(starts)]
    if duration_s is not None and len(starts):
        widths = np.clip(starts[0] + duration_s - starts, 0.0, widths)
    counts = np.rint(rates * widths).astype(np.int64)
    busy = counts > 0
    weibull = np.array([row[3] for row in rows], dtype=np.bool_)
    return _Windows(starts[busy], widths[busy], counts[busy], shapes[busy], weibull[busy])


def _window(where: str, fields: list[str]) -> tuple[float, float, float, bool]:
    """Start, rate, shape and whether the gaps are Weibull."""
    if len(fields) != 6:
        raise BadFile(f"{where}: {len(fields)} columns instead of 6")
    try:
        start, rate, shape = (float(fields[column]) for column in (0, 1, 4))
    except ValueError as error:
        raise BadFile(f"{where}: {error}; times, rates and shapes are numbers") from error
    if not all(0.0 <= value < 1e6 for value in (rate, shape)) or not 0.0 <= start < LATEST_S:
        raise BadFile(f"{where}: a number is negative, not finite or too large to be true")
    if rate > 0.0 and (fields[3] not in ("Gamma", "Weibull") or shape < _SMALLEST_SHAPE):
        raise BadFile(f"{where}: requests need Gamma or Weibull gaps with a shape of at least {_SMALLEST_SHAPE}")
    return start, rate, shape, fields[3] == "Weibull"


def _datasets(path: Path, client: int, text: str) -> Iterator[tuple[float, float, Mapping[str, _Lengths]]]:
    """Length distributions with the times that they hold for; a stretch without any keeps those before it."""
    where = f"{path}: chunk-{client}-dataset.json"
    try:
        document = json.loads(text)
        entries = sorted((float(key), value) for key, value in document.items())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadFile(f"{where}: is not an object of distributions by start in seconds") from error
    known: dict[str, _Lengths] = {}
    for number, (start, fields) in enumerate(entries):
        if not isinstance(fields, dict):
            raise BadFile(f"{where}: the entry of {start:g} s is not an object")
        found = {name: _lengths(f"{where}: {name} at {start:g} s", given) for name, given in fields.items()}
        known |= {name: lengths for name, lengths in found.items() if lengths is not None}
        end = entries[number + 1][0] if number + 1 < len(entries) else math.inf
        yield (start if number else -math.inf), end, dict(known)


def _lengths(where: str, given: object) -> _Lengths | None:
    """A distribution written as ``{length: probability, ...}``; None where it is empty."""
    pairs = _PROBABILITY.findall(given) if isinstance(given, str) else []
    if not pairs and given != "{}":
        raise BadFile(f"{where}: is not a distribution written as {{length: probability, ...}}")
    try:
        table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    except ValueError as error:
        raise BadFile(f"{where}: {error}") from error
    if not bool(np.isfinite(table).all()) or bool((table < 0.0).any()):
        raise BadFile(f"{where}: lengths and probabilities must be finite and not negative")
    return _Lengths(table[:, 0], np.cumsum(table[:, 1])) if float(table[:, 1].sum()) > 0.0 else None


def _sampled(fields: Mapping[str, _Lengths], random: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Prompt and output lengths; a prompt of several media has its text and the tokens of every item."""

    def draw(name: str) -> Floats:
        return fields[name].sample(random, count) if name in fields else np.zeros(count)

    prompt = draw("input_tokens") if "input_tokens" in fields else draw("text_tokens")
    for medium in _MEDIA:
        if f"{medium}_tokens" in fields:
            prompt = prompt + draw(f"{medium}_tokens") * draw(f"{medium}_count")
    return prompt, draw("output_tokens")
