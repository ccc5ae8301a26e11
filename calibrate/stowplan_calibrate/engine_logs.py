"""What engines' own benchmarks write: llama-bench, and the serving benchmarks of vLLM and SGLang.

Only documented fields are read. A file of another version that lacks one is refused with a sentence that names the
field; fields that are new are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stowplan.errors import BadFile
from stowplan_calibrate.sampling import keep, lower_quartile

_LARGEST_FILE = 256 * 2**20
_MOST_TOKENS = 2**24


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One row of llama-bench: a prompt or a generation.

    Attributes:
        model: file that was run; parameters, size: as the engine counts its weights and their bytes.
        prompt, generate: tokens (one of them is 0 unless both were asked for at once).
        depth: tokens in the cache before.
        threads, batch, ubatch: as run.
        cache_k, cache_v: cache types; flash_attention: -1 where the engine chose.
        gpu_layers: layers on GPUs, -1 where the engine chose; devices: what it ran on.
        seconds: every repetition.
        build: the engine's commit; where: file and row, for people.
        settings: the whole row, for what has no field here.
    """

    model: str
    size: int
    parameters: int
    prompt: int
    generate: int
    depth: int
    threads: int
    batch: int
    ubatch: int
    cache_k: str
    cache_v: str
    flash_attention: int
    gpu_layers: int
    devices: str
    seconds: tuple[float, ...]
    build: str
    date: str
    where: str
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def figure(self) -> float:
        """Seconds of an undisturbed repetition; see `stowplan_calibrate.sampling`."""
        return lower_quartile(keep(self.seconds))

    @property
    def label(self) -> str:
        """File, test and depth: ``model.gguf pp128 @ d1024``."""
        test = f"pp{self.prompt}" if self.prompt else ""
        test += f"{'+' if test and self.generate else ''}{f'tg{self.generate}' if self.generate else ''}"
        return f"{Path(self.model).name} {test}{f' @ d{self.depth}' if self.depth else ''} t{self.threads}"

    def command(self) -> list[str]:
        """The llama-bench command of this row alone."""
        words = ["llama-bench", "-m", self.model, "-p", str(self.prompt), "-n", str(self.generate)]
        words += ["-d", str(self.depth), "-t", str(self.threads), "-b", str(self.batch), "-ub", str(self.ubatch)]
        words += ["-ctk", self.cache_k, "-ctv", self.cache_v]
        if self.flash_attention >= 0:
            words += ["-fa", str(self.flash_attention)]
        if self.gpu_layers >= 0:
            words += ["-ngl", str(self.gpu_layers)]
        return words


@dataclass(frozen=True, slots=True)
class ServingRun:
    """One run of a serving benchmark.

    Attributes:
        engine: vllm or sglang, or what the file names as backend.
        model: as the file names it.
        requests: completed requests; duration: seconds.
        rate: requests per second that were offered, infinite for all at once; concurrency: most at a time, None for no
            limit.
        input_tokens, output_tokens: totals.
        ttft, tpot: median seconds to the first token and per later token.
        ttft_p99: 99th percentile, which tells queues; tpot_mean: mean, which tells how many requests ran.
    """

    engine: str
    model: str
    date: str
    requests: int
    duration: float
    rate: float
    concurrency: int | None
    input_tokens: int
    output_tokens: int
    ttft: float
    ttft_p99: float
    tpot: float
    tpot_mean: float
    where: str

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return self.input_tokens / self.requests

    @property
    def generate(self) -> float:
        """Mean tokens of an answer."""
        return self.output_tokens / self.requests

    @property
    def running(self) -> float:
        """Mean number of requests that generate at a time, by Little's law: output tokens per second times TPOT."""
        return max(1.0, self.output_tokens / self.duration * self.tpot_mean)


def read_llama_bench(path: Path) -> list[BenchRun]:
    """Rows of a ``llama-bench -o json`` or ``-o jsonl`` file.

    Raises:
        BadFile: unreadable, neither of both, or a row without a field that is needed.
    """
    return [_bench_run(row, where) for row, where in _rows(path, "llama-bench -o json or -o jsonl")]


def read_serving(path: Path) -> list[ServingRun]:
    """Runs of vLLM's ``vllm bench serve --save-result`` or SGLang's ``bench_serving --output-file``.

    Raises:
        BadFile: unreadable, neither of both, or a run without a field that is needed.
    """
    return [_serving_run(row, where) for row, where in _rows(path, "a serving benchmark's JSON")]


def kind_of_log(path: Path) -> str:
    """``llama-bench``, ``serving`` or ``requests``: what wrote a log, by its first row.

    Raises:
        BadFile: none of them.
    """
    row, where = next(_rows(path, "a benchmark's JSON"))
    if "samples_ns" in row or "avg_ns" in row:
        return "llama-bench"
    if "mean_ttft_ms" in row:
        return "serving"
    if str(row.get("schema", "")).startswith("stowplan.request"):
        return "requests"
    raise BadFile(
        f"{where}: is no row of llama-bench (avg_ns), of a vLLM or SGLang serving benchmark (mean_ttft_ms) or of "
        "stowplan's own request log (schema)"
    )


def _rows(path: Path, expected: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Objects of a JSON list, one JSON object, or JSON lines, each with where it stands."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise BadFile(f"{path}: larger than 256 MiB; a benchmark writes a few megabytes")
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: is not UTF-8 text ({error.reason}); expected {expected}") from error
    if not text:
        raise BadFile(f"{path}: is empty; expected {expected}")
    for number, item in enumerate(_items(text, path, expected), start=1):
        if not isinstance(item, dict):
            raise BadFile(f"{path}: row {number} is no JSON object; expected {expected}")
        yield item, f"{path}: row {number}"


def _items(text: str, path: Path, expected: str) -> Sequence[Any]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        items = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                items.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise BadFile(f"{path}: line {number} is not JSON ({error}); expected {expected}") from error
        return items
    if isinstance(whole, list):
        if not whole:
            raise BadFile(f"{path}: holds no rows; expected {expected}")
        return whole
    return [whole]


def _bench_run(row: Mapping[str, Any], where: str) -> BenchRun:
    get = _Getter(row, where, "llama-bench")
    samples = row.get("samples_ns")
    if isinstance(samples, list) and samples:
        seconds = tuple(1e-9 * get.positive_item(value, "samples_ns") for value in samples)
    else:
        seconds = (1e-9 * get.positive("avg_ns"),)
    prompt, generate = get.tokens("n_prompt"), get.tokens("n_gen")
    if prompt + generate == 0:
        raise BadFile(f"{where}: n_prompt and n_gen are both 0; nothing was measured")
    return BenchRun(
        model=get.text("model_filename"),
        size=int(get.positive("model_size")),
        parameters=int(get.positive("model_n_params")),
        prompt=prompt,
        generate=generate,
        depth=get.tokens("n_depth") if "n_depth" in row else 0,  # builds before April 2025 had none
        threads=int(get.positive("n_threads")),
        batch=int(get.positive("n_batch")),
        ubatch=int(get.positive("n_ubatch")),
        cache_k=get.text("type_k"),
        cache_v=get.text("type_v"),
        flash_attention=int(get.number("flash_attn")),
        gpu_layers=int(get.number("n_gpu_layers")),
        devices=str(row.get("gpu_info") or row.get("cpu_info") or ""),
        seconds=seconds,
        build=str(row.get("build_commit", "unknown build")),
        date=str(row.get("test_time", "")),
        where=where,
        settings=row,
    )


def _serving_run(row: Mapping[str, Any], where: str) -> ServingRun:
    get = _Getter(row, where, "a serving benchmark")
    engine = str(row.get("backend") or row.get("endpoint_type") or "unknown")
    limit = row.get("max_concurrency")
    rate = row.get("request_rate", "inf")
    return ServingRun(
        engine="sglang" if engine.startswith("sglang") else "vllm" if "vllm" in engine else engine[:40],
        model=str(row.get("model_id") or row.get("model") or "unknown"),
        date=str(row.get("date", "")),
        requests=int(get.positive("completed")),
        duration=get.positive("duration"),
        rate=math.inf if rate in ("inf", None) else get.positive("request_rate"),
        concurrency=int(get.positive("max_concurrency")) if limit is not None else None,
        input_tokens=int(get.positive("total_input_tokens")),
        output_tokens=int(get.positive("total_output_tokens")),
        ttft=1e-3 * get.positive("median_ttft_ms"),
        ttft_p99=1e-3 * get.positive("p99_ttft_ms"),
        tpot=1e-3 * get.positive("median_tpot_ms"),
        tpot_mean=1e-3 * get.positive("mean_tpot_ms"),
        where=where,
    )


class _Getter:
    """Fields of one row, or a sentence that names what is wrong with it."""

    def __init__(self, row: Mapping[str, Any], where: str, writer: str) -> None:
        self._row, self._where, self._writer = row, where, writer

    def text(self, name: str) -> str:
        """A field that is text."""
        value = self._present(name)
        if not isinstance(value, str):
            raise BadFile(f"{self._where}: {name} is {str(value)[:40]!r}, which is not a text")
        return value

    def number(self, name: str) -> float:
        """A finite number; true and false count as 1 and 0, as llama-bench writes switches."""
        value = self._present(name)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = math.nan
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise BadFile(f"{self._where}: {name} is {str(self._row[name])[:40]!r}, which is not a number")
        return float(value)

    def positive(self, name: str) -> float:
        """A number above zero."""
        return self.positive_item(self.number(name), name)

    def positive_item(self, value: Any, name: str) -> float:
        """One entry of a list, above zero."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BadFile(f"{self._where}: {name} holds {str(value)[:40]!r}; it must be above zero")
        return float(value)

    def tokens(self, name: str) -> int:
        """A number of tokens."""
        value = self.number(name)
        if value != int(value) or not 0 <= value <= _MOST_TOKENS:
            raise BadFile(f"{self._where}: {name} is {value:g}; it must be a number of tokens")
        return int(value)

    def _present(self, name: str) -> Any:
        if name not in self._row:
            raise BadFile(
                f"{self._where}: '{name}' is missing, so this is not what {self._writer} writes, or another version of "
                f"it; it has {', '.join(sorted(self._row)[:6])} ..."
            )
        return self._row[name]
