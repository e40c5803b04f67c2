"""Bodies that are too large or too slow, in this process and over a real server with plain sockets."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from largeforge.asgi import App, Receive, Scope, Send, respond
from largeforge.call import call_of
from largeforge.guard.body_limit import BodyLimit
from tests.guard.asking import CHAT, Client, answer, ask, configured, connected, identified, read_all, read_answer, scope_of, served


def limited(app: App = answer, **changes: Any) -> BodyLimit:
    return BodyLimit(configured("body_limit", **changes), app=app)


@pytest.mark.parametrize("body", [(b"",), (b"12345",), (b"1", b"2", b"", b"345"), (b"1234567890",)])
def test_a_body_comes_inwards_in_one_piece(body: tuple[bytes, ...]) -> None:
    async def after(scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        client.left.set()
        second = await receive()
        await respond(send, 200, json.dumps([first["body"].decode(), first["more_body"], second["type"]]).encode())

    client = Client(body=body)
    asyncio.run(ask(limited(after, max_bytes=10), client=client))
    assert json.loads(client.text) == [b"".join(body).decode(), False, "http.disconnect"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [((None,), {"Content-Length": "11"}), ((None,), {"Content-Length": "9" * 5000}), ((b"12345678901",), {}), ((b"123456", b"7", b"8901", None), {})],
)
def test_too_large(body: tuple[bytes | None, ...], headers: dict[str, str]) -> None:
    """What announces too much is refused unread, what turns out to be too much is cut off; the app inside sees neither."""
    seen = []

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def story() -> Client:
        client = Client(body=body)
        asyncio.get_running_loop().call_later(0.05, client.left.set)
        return await ask(limited(never, max_bytes=10), client=client, headers=headers)

    client = asyncio.run(story())
    assert (client.status, client.error["type"], client.error["code"], seen) == (413, "invalid_request_error", "body_too_large", [])
    assert client.headers["connection"] == "close"
    assert client.whole


def test_too_slow() -> None:
    client = asyncio.run(ask(limited(read_timeout_s=0.05), client=Client(body=(b"a", None))))
    assert (client.status, client.error["type"], client.error["code"]) == (408, "timeout_error", "body_too_slow")
    assert client.headers["connection"] == "close"


def test_who_leaves_half_way_is_not_answered() -> None:
    async def story() -> None:
        client, scope = Client(body=(b"a", None)), scope_of()
        task = asyncio.ensure_future(limited()(scope, client.receive, client.send))
        await asyncio.sleep(0.01)
        client.left.set()
        await task
        assert (client.sent, call_of(scope).status) == ([], 499)

    asyncio.run(story())


def test_what_has_no_body_is_not_read() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"untouched" if receive == client.receive else b"wrapped")

    client = Client(body=(None,))
    asyncio.run(ask(limited(silent), "/v1/models", method="GET", client=client))
    assert client.text == b"untouched"


def test_a_get_with_a_body_is_limited_too() -> None:
    client = asyncio.run(ask(limited(max_bytes=10), "/v1/models", method="GET", headers={"Content-Length": "11"}, client=Client(body=(b"x" * 11,))))
    assert client.status == 413


# ---- over a real server ----


def test_slow_loris_is_answered_while_others_are_served() -> None:
    """Proves SYS-SEC-004: twenty bodies that come byte by byte are given up at the deadline, and hold nobody up meanwhile."""
    with served(identified(limited(read_timeout_s=1.0))) as port:
        slow = []
        for _ in range(20):
            connection = connected(port)
            slow.append((connection, connection.__enter__()))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
        started = time.monotonic()
        for _, socket in slow:
            socket.sendall(head + b"{")
        with connected(port) as quick:
            quick.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            assert read_answer(quick).startswith(b"HTTP/1.1 200 ")
        for _ in range(3):
            for _, socket in slow:
                socket.sendall(b" ")
            time.sleep(0.1)
        for connection, socket in slow:
            told = read_all(socket)
            assert told.startswith(b"HTTP/1.1 408 ")
            assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_slow"
            connection.__exit__(None, None, None)
        assert time.monotonic() - started >= 0.9


def test_a_body_in_chunks_is_cut_off_when_it_passes_the_limit() -> None:
    """100 MB in chunks against a limit of 1 MB: the client can read the 413 though it goes on sending."""
    with served(identified(limited(max_bytes=1_000_000))) as port, connected(port) as socket:
        socket.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            for _ in range(1600):
                socket.sendall(chunk)
            socket.sendall(b"0\r\n\r\n")
        except OSError:  # closed on us, after it had lingered
            pass
        assert socket.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_an_announced_100_megabytes_are_refused_before_they_come() -> None:
    with served(identified(limited(max_bytes=1_000_000))) as port, connected(port) as socket:
        socket.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100000000\r\n\r\n".encode())
        told = read_answer(socket)
        assert told.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in told
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"


def test_a_client_that_sends_it_all_before_it_reads_can_read_why() -> None:
    """32 MB against 1 MB: closed at once, its connection would be reset while it sends, and many clients tell their user of that only."""
    with served(identified(limited(max_bytes=1_000_000))) as port, connected(port) as socket:
        socket.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 32000000\r\n\r\n".encode() + b"x" * 32_000_000)
        assert read_all(socket).startswith(b"HTTP/1.1 413 ")
