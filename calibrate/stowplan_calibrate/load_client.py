"""A small load client for an OpenAI-compatible server: streamed completions at a rate, every token's time kept.

Standard library only. The log is one JSON line per request (schema ``stowplan.request/1``), which `read_requests` reads
back and `as_serving_run` sums up as a serving benchmark does.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stowplan.errors import BadFile, InputError, StowplanError
from stowplan.plan import write_atomically
from stowplan_calibrate.engine_logs import ServingRun

SCHEMA = "stowplan.request/1"
_LONGEST_LINE = 2**20
_WORDS = ("hold", "deck", "crate", "rope", "tide", "port", "keel", "mast")


class ServerRefuses(StowplanError):
    """The server cannot be reached, or answers something else than a stream of tokens."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent.

    Attributes:
        url: base address such as ``http://127.0.0.1:8000/v1``; model: its name there.
        requests: how many; rate: per second, infinite for all at once; concurrency: most at a time.
        prompt, generate: words of a prompt (about as many tokens) and tokens of an answer.
        timeout_s: for one request; seed: of arrivals (Poisson) and words.
    """

    url: str
    model: str
    requests: int
    rate: float = math.inf
    concurrency: int = 64
    prompt: int = 256
    generate: int = 64
    timeout_s: float = 300.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: when it was sent, when its tokens came (seconds since the first was sent), and what went wrong.

    Attributes:
        prompt_tokens: as the server counts them, or the words that were sent where it does not say.
        tokens: arrival of every streamed piece.
        error: empty where all went well.
    """

    sent: float
    tokens: tuple[float, ...]
    prompt_tokens: int
    error: str = ""


async def send_load(load: Load) -> list[Sent]:
    """Send everything and wait for the last answer.

    Raises:
        InputError: an address that is no http address. ServerRefuses: no request was answered.
    """
    address = urlsplit(load.url)
    if address.scheme != "http" or not address.hostname:
        raise InputError(f"'{load.url[:80]}' must be an http address such as http://127.0.0.1:8000/v1")
    chance, gate = random.Random(load.seed), asyncio.Semaphore(load.concurrency)
    began = time.monotonic()

    async def one(start: float, words: str) -> Sent:
        await asyncio.sleep(max(0.0, start - (time.monotonic() - began)))
        async with gate:
            return await _request(load, words, began)

    start, tasks = 0.0, []
    for _ in range(load.requests):
        words = " ".join(chance.choices(_WORDS, k=load.prompt))
        tasks.append(asyncio.create_task(one(start, words)))
        start += chance.expovariate(load.rate) if math.isfinite(load.rate) else 0.0
    found = await asyncio.gather(*tasks)
    if all(each.error for each in found):
        raise ServerRefuses(f"{load.url}: no request was answered; the first: {found[0].error}")
    return found


async def _request(load: Load, words: str, began: float) -> Sent:
    sent = time.monotonic() - began
    tokens: list[float] = []
    counted = load.prompt
    try:
        async with asyncio.timeout(load.timeout_s):
            async for event in _events(load, words):
                usage = event.get("usage")
                if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
                    counted = usage["prompt_tokens"]
                choices = event.get("choices")
                if isinstance(choices, list) and choices and choices[0].get("text"):
                    tokens.append(time.monotonic() - began)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, ServerRefuses) as error:
        return Sent(sent, tuple(tokens), counted, f"{type(error).__name__}: {error}"[:300])
    return Sent(sent, tuple(tokens), counted, "" if tokens else "the answer held no token")


async def _events(load: Load, words: str) -> AsyncIterator[dict[str, object]]:
    """Server-sent events of one completion."""
    address = urlsplit(load.url)
    asked = {"model": load.model, "prompt": words, "max_tokens": load.generate, "temperature": 0.0, "stream": True}
    body = json.dumps(asked | {"ignore_eos": True, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port or 80, limit=_LONGEST_LINE)
    try:
        head = (
            f"POST {address.path.rstrip('/')}/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        status = (await reader.readline()).decode("latin-1").split(maxsplit=2)
        if len(status) < 2 or status[1] != "200":
            raise ServerRefuses(f"the server answers {' '.join(status[1:]) or 'nothing'}".strip())
        while (await reader.readline()).strip():
            pass  # headers; chunk sizes of a chunked body are lines that do not start with "data:"
        while line := await reader.readline():
            text = line.strip()
            if text == b"data: [DONE]":
                return
            if text.startswith(b"data:"):
                event = json.loads(text[5:])
                if isinstance(event, dict):
                    yield event
    finally:
        writer.close()


def write_requests(path: Path, load: Load, found: Iterable[Sent]) -> None:
    """The log of a load, written whole or not at all.

    Raises:
        BadFile: it cannot be written.
    """
    head = {"schema": SCHEMA, "kind": "load"} | asdict(load) | {"rate": None if math.isinf(load.rate) else load.rate}
    rows = [head, *({"schema": SCHEMA, "kind": "request"} | asdict(each) for each in found)]
    write_atomically(path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode())


def read_requests(path: Path) -> tuple[Load, list[Sent]]:
    """A log that `write_requests` wrote.

    Raises:
        BadFile: unreadable, or not such a log.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        head, *sent = rows
        plain = {key: value for key, value in head.items() if key not in ("schema", "kind")}
        if head["schema"] != SCHEMA or head["kind"] != "load":
            raise BadFile(f"{path}: its first line is no load of {SCHEMA}")
        load = Load(**(plain | {"rate": math.inf if plain["rate"] is None else float(plain["rate"])}))
        found = [
            Sent(float(r["sent"]), tuple(float(t) for t in r["tokens"]), int(r["prompt_tokens"]), str(r["error"]))
            for r in sent
        ]
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadFile(f"{path}: is no request log of stowplan ({type(error).__name__}: {error})") from error
    return load, found


def as_serving_run(load: Load, found: Sequence[Sent], where: str) -> ServingRun:
    """What a serving benchmark would print of a log; requests that failed are left out.

    Raises:
        InputError: no request has two tokens.
    """
    good = [each for each in found if not each.error and len(each.tokens) >= 2]
    if not good:
        raise InputError(f"{where}: no request was answered with at least two tokens")
    ttft = sorted(each.tokens[0] - each.sent for each in good)
    tpot = sorted((each.tokens[-1] - each.tokens[0]) / (len(each.tokens) - 1) for each in good)
    return ServingRun(
        engine="openai-compatible",
        model=load.model,
        date="",
        requests=len(good),
        duration=max(each.tokens[-1] for each in good) - min(each.sent for each in good),
        rate=load.rate,
        concurrency=load.concurrency,
        input_tokens=sum(each.prompt_tokens for each in good),
        output_tokens=sum(len(each.tokens) for each in good),
        ttft=statistics.median(ttft),
        ttft_p99=_quantile(ttft, 0.99),
        tpot=statistics.median(tpot),
        tpot_mean=statistics.fmean(tpot),
        where=where,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
