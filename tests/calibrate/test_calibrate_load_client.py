"""The load client against a server on the loopback interface whose times are planted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stowplan.errors import BadFile, InputError
from stowplan_calibrate.engine_logs import kind_of_log
from stowplan_calibrate.load_client import (
    Load,
    Sent,
    ServerRefuses,
    as_serving_run,
    read_requests,
    send_load,
    write_requests,
)

FIRST_S, NEXT_S = 0.06, 0.02
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Streams as many tokens as are asked for, the first after `FIRST_S`, the others `NEXT_S` apart."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length"))
    asked = json.loads(await reader.readexactly(length))
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await asyncio.sleep(FIRST_S)
    for number in range(asked["max_tokens"]):
        event = b"data: " + json.dumps({"choices": [{"text": f"t{number}"}]}).encode() + b"\n\n"
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        await writer.drain()
        await asyncio.sleep(NEXT_S)
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 7 * len(asked["prompt"].split())}}).encode()
    event = b"data: " + usage + b"\n\ndata: [DONE]\n\n"
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n0\r\n\r\n")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await server.wait_closed()


def send(handler: Handler, **more: float) -> tuple[Load, list[Sent]]:
    async def run() -> tuple[Load, list[Sent]]:
        async with served(handler) as url:
            load = Load(url, "a-model", requests=4, prompt=5, generate=6, **more)  # type: ignore[arg-type]
            return load, await send_load(load)

    return asyncio.run(run())


def test_planted_times_come_back_and_the_log_is_read_again(tmp_path: Path) -> None:
    load, sent = send(answer)
    assert [len(each.tokens) for each in sent] == [6] * 4
    assert all(each.prompt_tokens == 35 and not each.error for each in sent)
    run = as_serving_run(load, sent, "x")
    assert FIRST_S <= run.ttft < FIRST_S + 0.5  # a busy machine may be late, never early
    assert 0.9 * NEXT_S <= run.tpot < 10 * NEXT_S
    assert (run.requests, run.output_tokens, run.input_tokens) == (4, 24, 140)
    path = tmp_path / "log.jsonl"
    write_requests(path, load, sent)
    assert read_requests(path) == (load, sent)
    assert kind_of_log(path) == "requests"


def test_concurrency_is_kept_to() -> None:
    running = most = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await answer(reader, writer)
        running -= 1

    send(counting, concurrency=2)
    assert most == 2


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    writer.close()


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: {not json\n\n")
    writer.close()


@pytest.mark.parametrize(("handler", "words"), [(refuse, "503 Service Unavailable"), (babble, "JSONDecodeError")])
def test_a_server_that_refuses_is_named(handler: Handler, words: str) -> None:
    with pytest.raises(ServerRefuses, match=words):
        send(handler)


def test_a_server_that_hangs_ends_at_the_time_limit() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with pytest.raises(ServerRefuses, match="TimeoutError"):
        send(hang, timeout_s=0.2)


def test_no_server_and_no_address_are_said() -> None:
    with pytest.raises(ServerRefuses, match="no request was answered"):
        asyncio.run(send_load(Load("http://127.0.0.1:9/v1", "m", requests=2)))
    for url in ("ftp://x", "127.0.0.1:8000", "https://example.org"):
        with pytest.raises(InputError, match="http address"):
            asyncio.run(send_load(Load(url, "m", requests=1)))


def test_failed_requests_are_left_out() -> None:
    good, bad = Sent(0.0, (0.1, 0.2, 0.3), 5), Sent(0.0, (), 5, "OSError: gone")
    load = Load("http://x/v1", "m", requests=2)
    assert as_serving_run(load, [good, bad], "x").requests == 1
    with pytest.raises(InputError, match="no request"):
        as_serving_run(load, [bad], "x")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema":"stowplan.request/9","kind":"load","rate":1}', "x"])
def test_logs_of_another_kind_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(BadFile, match=r"log\.jsonl"):
        read_requests(path)
