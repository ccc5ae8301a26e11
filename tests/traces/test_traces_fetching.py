"""Downloads from a server on this machine: verified, resumed, never over another file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stowplan.errors import InputError
from stowplan.traces.catalogue import Download
from stowplan.traces.fetching import DownloadFailed, fetch

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file in several ways; remembers the ranges it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def source(self, path: str, **other: Any) -> Download:
        return Download(**({"url": f"http://127.0.0.1:{self.server_port}/{path}"} | _PUBLISHED | other))


_PUBLISHED: dict[str, Any] = {"size": len(CONTENT), "sha256": SHA256}


class Handler(BaseHTTPRequestHandler):
    """``whole`` resumes, ``plain`` ignores ranges, ``cut`` breaks off after a third, ``wrong`` sends other bytes."""

    server: Server

    def do_GET(self) -> None:  # the name that http.server calls
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        kind = self.path.removeprefix("/")
        if kind == "missing":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and kind != "plain" else 0
        body = (b"x" * len(CONTENT) if kind == "wrong" else CONTENT + b"!" * 9 if kind == "long" else CONTENT)[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 3] if kind == "cut" else body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_loaded_once_and_verified(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.csv"
    seen: list[tuple[int, int]] = []
    got = fetch(server.source("whole"), target, progress=lambda here, size: seen.append((here, size)))
    assert target.read_bytes() == CONTENT
    assert (got.kept, got.loaded) == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(server.source("whole"), target).loaded == 0
    assert server.asked == [None]
    assert [each.name for each in target.parent.iterdir()] == ["file.csv"]


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file.csv"
    with pytest.raises(DownloadFailed, match="goes on from there"):
        fetch(server.source("cut"), target)
    assert not target.exists()
    got = fetch(server.source("whole"), target)
    assert target.read_bytes() == CONTENT
    assert got.kept == len(CONTENT) // 3
    assert server.asked[-1] == f"bytes={got.kept}-"


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.csv.part").write_bytes(CONTENT[:1000])
    got = fetch(server.source("plain"), tmp_path / "file.csv")
    assert (got.kept, got.loaded) == (0, len(CONTENT))
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_connection(tmp_path: Path) -> None:
    (tmp_path / "file.csv.part").write_bytes(CONTENT)
    fetch(Download("http://127.0.0.1:1/none", len(CONTENT), SHA256), tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


@pytest.mark.parametrize(("kind", "said"), [("wrong", "SHA-256 is"), ("long", "longer than")])
def test_another_content_is_deleted(server: Server, tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(DownloadFailed, match=said):
        fetch(server.source(kind), tmp_path / "file.csv")
    assert list(tmp_path.iterdir()) == []


def test_refusals_have_a_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="answers 404"):
        fetch(server.source("missing"), tmp_path / "file.csv")
    with pytest.raises(DownloadFailed, match="connection failed"):
        fetch(Download("http://127.0.0.1:1/none", 10, SHA256), tmp_path / "file.csv")
    for address in ("http://[::1", "http://", "http://127.0.0.1:port/x", "http://" + "a" * 80 + "/"):
        with pytest.raises(DownloadFailed, match="connection failed"):
            fetch(Download(address, 10, SHA256), tmp_path / "file.csv")
    with pytest.raises(InputError, match="no http or https"):
        fetch(Download("file:///etc/hostname", 10, SHA256), tmp_path / "file.csv")


def test_another_file_is_not_written_over(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file.csv"
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match="there already"):
        fetch(server.source("whole"), target)
    assert target.read_bytes() == b"mine"
    fetch(server.source("whole"), target, replace=True)
    assert target.read_bytes() == CONTENT
