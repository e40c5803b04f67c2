"""Heads of requests that are too large, too slow, or never come; with plain sockets against a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from largeforge.asgi import Receive, Scope, Send
from largeforge.guard.head_limit import head_limited
from tests.guard.asking import answer, connected, identified, read_all, read_answer, served

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "hello"})
            await send({"type": "websocket.close"})
        else:
            await answer(scope, receive, send)

    with served(identified(either), http=head_limited(max_bytes=20_000, timeout_s=0.7)) as at:
        yield at


def code(told: bytes) -> str:
    return str(json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"])


def test_usual_requests_are_answered_one_after_the_other(port: int) -> None:
    with connected(port) as socket:
        for _ in range(3):
            socket.sendall(GET + b"X: " + b"y" * 15_000 + b"\r\n\r\n")
            assert read_answer(socket).startswith(b"HTTP/1.1 200 ")
        socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"z" * 500_000)
        assert read_answer(socket).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.0)  # a connection that rests after a request is the keep-alive timeout's business
        socket.sendall(GET + b"\r\n")
        assert read_answer(socket).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("start", [b"GET /" + b"a" * 400_000, GET, GET + b"X-Long: "])
def test_a_head_without_end_is_cut_off(port: int, start: bytes) -> None:
    """Proves SYS-SEC-004: whether it is a URL, one header or many, 20 MB of head are not read."""
    with connected(port) as socket:
        sent = 0
        try:
            socket.sendall(start)
            for _ in range(320):
                socket.sendall(b"X-Header: " + b"v" * 65_500 + (b"\r\n" if start == GET else b""))
                sent += 65_536
        except OSError:
            pass
        assert sent < 20_000_000


def test_it_is_told(port: int) -> None:
    with connected(port) as socket:
        socket.sendall(GET + b"X: " + b"y" * 25_000)
        told = read_all(socket)
        assert told.startswith(b"HTTP/1.1 431 ")
        assert code(told) == "head_too_large"


def test_a_later_head_is_limited_too(port: int) -> None:
    with connected(port) as socket:
        socket.sendall(GET + b"\r\n")
        read_answer(socket)
        socket.sendall(GET + b"X: " + b"y" * 25_000)
        assert code(read_all(socket)) == "head_too_large"


@pytest.mark.parametrize("first", [b"", b"GET /v1/mod", GET])
def test_a_head_that_does_not_come_is_given_up(port: int, first: bytes) -> None:
    with connected(port) as socket:
        if first:
            socket.sendall(first)
        told = read_all(socket)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert code(told) == "head_too_slow"


def test_a_later_head_has_its_time_too(port: int) -> None:
    with connected(port) as socket:
        socket.sendall(GET + b"\r\n")
        read_answer(socket)
        socket.sendall(GET)
        assert code(read_all(socket)) == "head_too_slow"


def test_a_websocket_is_let_through_and_outlives_the_time_of_its_head(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}/v1/ws") as socket:
        time.sleep(1.0)
        assert socket.recv(timeout=10) == "hello"
