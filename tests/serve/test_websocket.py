"""WebSocket over a real uvicorn: the protocol, cancelling, leaving, nonsense, slow readers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from largeforge.asgi import Receive, Scope, Send
from largeforge.serve.websocket import WebSocket

from .fake_completions import USAGE, FakeCompletions, until
from .running import serving

Story = Callable[["Stand"], Awaitable[None]]


class Stand:
    """The app under test, and a client of it."""

    def __init__(self, app: FakeCompletions, websocket: WebSocket) -> None:
        self.app, self.websocket, self.port = app, websocket, 0

    @asynccontextmanager
    async def client(self, **settings: Any) -> AsyncIterator[ClientConnection]:
        async with connect(f"ws://127.0.0.1:{self.port}/v1/ws", max_size=None, **settings) as client:
            yield client


def run(story: Story, *, app: FakeCompletions | None = None, **settings: Any) -> None:
    """Run a story against uvicorn on uvloop, as the door is; no task of the server is left after it."""
    stand = Stand(app or FakeCompletions(), WebSocket(**settings))

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        await (stand.websocket if scope["type"] == "websocket" else stand.app)(scope, receive, send)

    stand.websocket.app = door

    async def main() -> None:
        async with serving(door, ws_max_size=2**20, ws_ping_interval=None) as stand.port:
            await asyncio.wait_for(story(stand), 60)
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert stand.websocket.num_running == 0 and stand.app.active == 0

    uvloop.run(main())


def asked(id: str, model: str = "words", kind: str = "chat.completions", **fields: Any) -> str:
    said = {"prompt": "hi"} if kind == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({"id": id, "type": kind, "request": {"model": model, **said, **fields}})


async def read(client: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
    return found


async def last(client: ClientConnection, id: str | None) -> dict[str, Any]:
    """The message that ends an id, past all others."""
    while (message := await read(client)).get("id") != id or message["type"] == "chunk":
        pass
    return message


def test_streams_and_whole_answers() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            for kind in ("chat.completions", "completions"):
                await client.send(asked("a", kind=kind, temperature=0))
                text = ""
                while (message := await read(client))["type"] == "chunk":
                    assert message["id"] == "a" and message["data"]["choices"], "the usage chunk was not asked for"
                    choice = message["data"]["choices"][0]
                    text += choice.get("text", choice.get("delta", {}).get("content", ""))
                assert text == "Once upon a time é"
                assert message == {"id": "a", "type": "done", "usage": USAGE}
                assert stand.app.bodies[-1]["stream_options"] == {"include_usage": True} and stand.app.bodies[-1]["temperature"] == 0
                await client.send(asked("a", kind=kind, stream=False))
                message = await read(client)
                assert message["type"] == "result" and message["data"]["usage"] == USAGE
                assert "stream_options" not in stand.app.bodies[-1]

    run(story)


def test_the_usage_chunk_comes_to_who_asks_for_it() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            await client.send(asked("a", stream_options={"include_usage": True}))
            messages = [await read(client)]
            while messages[-1]["type"] == "chunk":
                messages.append(await read(client))
            assert messages[-2]["data"]["usage"] == messages[-1]["usage"] == USAGE and messages[-2]["data"]["choices"] == []

    run(story)


def test_many_requests_share_a_socket() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            for number in range(40):
                await client.send(asked(f"r{number}"))
            texts: dict[str, str] = {}
            ended = 0
            while ended < 40:
                message = await read(client)
                if message["type"] == "chunk":
                    texts[message["id"]] = texts.get(message["id"], "") + message["data"]["choices"][0]["delta"].get("content", "")
                else:
                    assert message["type"] == "done"
                    ended += 1
            assert texts == {f"r{number}": "Once upon a time é" for number in range(40)}

    run(story)


def test_a_full_socket_says_so() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            for id in "abc":
                await client.send(asked(id, "never"))
            message = await last(client, "c")
            assert (message["type"], message["status"], message["error"]["type"]) == ("error", 429, "rate_limit_error")
            await client.send(json.dumps({"id": "a", "type": "cancel"}))
            assert (await last(client, "a"))["status"] == 499
            await client.send(asked("d"))
            assert (await last(client, "d"))["type"] == "done"

    run(story, max_requests=2)


@pytest.mark.parametrize("model", ["slow", "never"])
def test_cancel(model: str) -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            await client.send(asked("a", model))
            if model == "slow":
                assert (await read(client))["type"] == "chunk"
            else:
                await until(lambda: stand.app.started)
            await client.send(json.dumps({"id": "a", "type": "cancel"}))
            message = await last(client, "a")
            assert (message["type"], message["status"], message["error"]["code"]) == ("error", 499, "cancelled")
            assert (stand.app.left, stand.app.active) == (1, 0)
            # in one packet, so that the cancel is read before the request began
            await client.send(asked("b", model))
            await client.send(json.dumps({"id": "b", "type": "cancel"}))
            await client.send(json.dumps({"id": "b", "type": "cancel"}))
            assert (await last(client, "b"))["status"] == 499

    run(story)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_who_leaves_stops_everything_it_asked_for(how: str) -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            for id, model in (("a", "slow"), ("b", "never"), ("c", "slow")):
                await client.send(asked(id, model))
            await client.send(asked("d", "never", stream=False))
            await until(lambda: stand.app.active == 4 and stand.app.sent > 2)
            if how == "abort":
                client.transport.abort()
            else:
                await client.close()
            await until(lambda: stand.app.active == 0, within_s=5)
            sent = stand.app.sent
            await asyncio.sleep(0.1)
            assert (stand.app.left, stand.app.sent) == (4, sent)

    run(story)


def test_errors_are_those_of_http() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            await client.send(asked("a", "refuses"))
            message = await read(client)
            assert (message["type"], message["status"], message["retry_after"], message["error"]["message"]) == ("error", 429, "7", "Too many requests.")
            await client.send(asked("b", "breaks"))
            message = await last(client, "b")
            assert (message["type"], message["status"], message["error"]["message"]) == ("error", 500, "The engine died.")
            await client.send(asked("c", "cut"))
            assert (await last(client, "c"))["status"] == 502
            await client.send(asked("d", "raises"))
            assert (await last(client, "d"))["status"] == 500
            await client.send('{"id": "e", "type": "completions", "request": {}}')
            message = await last(client, "e")
            assert (message["status"], message["error"]["param"]) == (400, "model")
            await client.send('{"id": "f", "type": "completions", "request": {"x": ' + "[" * 500 + "]" * 500 + "}}")
            assert (await last(client, "f"))["status"] == 400

    run(story)


NONSENSE = [
    ("{", 400, "invalid_json"),
    ("[]", 400, "invalid_json"),
    ("NaN", 400, "invalid_json"),
    ("[" * 100_000, 400, "invalid_json"),
    ('{"type": "completions", "id": "\\ud800", "request": {}}', 400, "invalid_json"),
    (b"\x00\xff", 400, "binary"),
    ("{}", 400, "unknown_type"),
    ('{"id": "a", "type": "embeddings", "request": {}}', 400, "unknown_type"),
    ('{"id": "a", "type": ["x"], "request": {}}', 400, "unknown_type"),
    ('{"type": "completions", "request": {}}', 400, "invalid_id"),
    ('{"id": 7, "type": "completions", "request": {}}', 400, "invalid_id"),
    ('{"id": "", "type": "cancel"}', 400, "invalid_id"),
    ('{"id": "%s", "type": "cancel"}' % ("x" * 129), 400, "invalid_id"),
    ('{"id": "nobody", "type": "cancel"}', 404, "unknown_id"),
    ('{"id": "x", "type": "completions", "request": []}', 400, "invalid_request"),
    ('"%s"' % ("é" * 200_000), 413, "too_large"),
]


def test_the_socket_outlives_nonsense() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            await client.send(asked("runs", "never"))
            for text, status, code in [*NONSENSE, (asked("runs"), 400, "id_in_use")]:
                await client.send(text)
                message = await read(client)
                assert (message["type"], message["status"], message["error"]["code"]) == ("error", status, code), text[:60]
                assert message["id"] == ("x" if code == "invalid_request" else None)
            await client.send('{"type": "ping"}')
            assert await read(client) == {"type": "pong"}
            assert stand.app.active == 1

    run(story, max_message_bytes=300_000)


@pytest.mark.parametrize(
    ("frame", "code"), [(b"\x81\x82\x00\x00\x00\x00\xc3\x28", 1007), (b"\x81\xff" + b"\xff" * 12, 1009), (b"\x83\x80\x00\x00\x00\x00", 1002)]
)
def test_frames_that_break_the_protocol_close_the_socket(frame: bytes, code: int) -> None:
    """Invalid UTF-8, an impossible length, an opcode that does not exist: what ran for that socket stops, the server goes on."""

    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            await client.send(asked("a", "never"))
            await until(lambda: stand.app.active == 1)
            client.transport.write(frame)
            with pytest.raises(ConnectionClosed) as closed:
                await read(client)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == code
            await until(lambda: stand.app.active == 0)
        async with stand.client() as client:
            await client.send(asked("a"))
            assert (await last(client, "a"))["type"] == "done"

    run(story)


def test_a_frame_above_the_servers_size_closes_the_socket() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client() as client:
            await client.send("x" * (2**20 + 1))
            with pytest.raises(ConnectionClosed) as closed:
                await read(client)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009

    run(story)


def test_a_slow_reader_slows_the_engine_down() -> None:
    async def story(stand: Stand) -> None:
        async with stand.client(max_queue=1, compression=None, sock=_small_socket(stand.port)) as client:
            await client.send(asked("a", "burst"))
            seen = -1
            while seen != stand.app.sent:  # until the buffers between here and there are full
                seen = stand.app.sent
                await asyncio.sleep(0.3)
            assert 0 < seen < 8000, "kB of buffers, not of what an engine could make in the meantime"
            for _ in range(seen):
                assert (await read(client))["type"] == "chunk"
            await until(lambda: stand.app.sent > seen)
            # the buffers are full again, and answers to other messages wait as well: leaving is seen all the same
            for _ in range(20):
                await client.send('{"type": "ping"}')
            await asyncio.sleep(0.3)
            client.transport.write(b"\x88\x80\x00\x00\x00\x00")  # a close frame, from a client that does not read on
            await until(lambda: stand.app.active == 0, within_s=5)
            client.transport.abort()

    run(story)


def _small_socket(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


def test_the_keys_of_the_handshake_are_shown_for_every_request() -> None:
    async def story(stand: Stand) -> None:
        for header in ({"X-API-Key": "k"}, {"Authorization": "Bearer k"}):
            async with stand.client(additional_headers={**header, "X-Priority": "3", "X-Request-ID": "one"}) as client:
                await client.send(asked("a"))
                assert (await last(client, "a"))["type"] == "done"
                assert stand.app.headers()["x-priority"] == "3"
                assert not {"upgrade", "sec-websocket-key", "x-request-id"} & set(stand.app.headers())
                stand.app.key = "another"  # withdrawn while the socket is open
                await client.send(asked("b"))
                message = await last(client, "b")
                assert (message["status"], message["error"]["type"]) == (401, "authentication_error")
                stand.app.key = "k"

    run(story, app=FakeCompletions(key="k"))


def test_pages_of_other_hosts_may_not_connect() -> None:
    async def story(stand: Stand) -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with stand.client(origin="http://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "origin"
        for origin in (f"http://127.0.0.1:{stand.port}", "https://chat.example"):
            async with stand.client(origin=origin) as client:
                await client.send('{"type": "ping"}')
                assert await read(client) == {"type": "pong"}

    run(story, origins=["https://chat.example"])
