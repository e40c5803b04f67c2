"""Asks guards as a server would: in this process through the words of ASGI, and over a real uvicorn with plain sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml

import largeforge.guard.config as configs
from largeforge.asgi import App, Message, Receive, Scope, Send, respond
from largeforge.call import Call, Key, call_of
from largeforge.guard.request_id import RequestID

CONF = Path(__file__).parents[2] / "conf" / "guard"
CHAT = "/v1/chat/completions"
ROUTES = ("/v1/completions", CHAT, "/v1/models", "/v1/ws", "/health", "/metrics")


def configured(name: str, **changes: Any) -> Any:
    """The typed config of conf/guard/<name>.yaml, with other values."""
    values = {**yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")), **changes}
    return getattr(configs, values["_target_"].rpartition(".")[2] + "Config")(**values)


def key(number: int, **more: Any) -> Key:
    return Key(id=number, name=f"name-{number}", prefix=f"lf-{number}", **more)


@dataclass
class Client:
    """One client of one request.

    Args:
        body: in the pieces that it comes in; None for a piece never comes: the client stops there.
        left: set when it goes away.
    """

    body: Sequence[bytes | None] = (b"{}",)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[Message] = field(default_factory=list)
    _given: int = 0

    async def receive(self) -> Message:
        if self._given < len(self.body) and (piece := self.body[self._given]) is not None:
            self._given += 1
            return {"type": "http.request", "body": piece, "more_body": self._given < len(self.body)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        """Of the answer; 0 where none came."""
        return next((message["status"] for message in self.sent if "status" in message), 0)

    @property
    def headers(self) -> dict[str, str]:
        head = next(message for message in self.sent if "headers" in message)
        return {name.decode(): value.decode() for name, value in head["headers"]}

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def error(self) -> Any:
        return json.loads(self.text)["error"]

    @property
    def whole(self) -> bool:
        return bool(self.sent) and self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body", False)


def scope_of(path: str = CHAT, *, method: str = "POST", headers: dict[str, str] | None = None, kind: str = "http", **state: Any) -> Scope:
    """A scope as uvicorn makes it."""
    lines = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    more: dict[str, Any] = {"method": method} if kind == "http" else {}
    return {"type": kind, "path": path, "query_string": b"", "headers": lines, "state": state, **more}


async def ask(app: App, path: str = CHAT, *, client: Client | None = None, owner: Key | None = None, **asked: Any) -> Client:
    """Ask once; the Call is made here where no RequestID makes it."""
    client = client or Client()
    scope = scope_of(path, call=Call(id="asked", path=path, key=owner), **asked)
    await app(scope, client.receive, client.send)
    return client


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The smallest app: reads the body and says how long it was."""
    message = await receive()
    await respond(send, 200, str(len(message.get("body", b""))).encode(), content_type=b"text/plain")


def identified(app: App, owner: Key | None = None) -> RequestID:
    """RequestID around an app, with a key as the guard of keys would set it."""

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).key = owner
        await app(scope, receive, send)

    return RequestID(configured("request_id"), app=known, routes=ROUTES)


@contextmanager
def served(app: App, *, http: Any = "httptools") -> Iterator[int]:
    """A real uvicorn on loopback; yields its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop="uvloop", http=http, lifespan="off", log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def until(said: Any, timeout_s: float = 30.0) -> None:
    """Wait for something that is to come."""
    end = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


async def soon(said: Any, timeout_s: float = 30.0) -> None:
    """Wait for something that is to come, in the event loop."""
    end = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.001)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def read_answer(connection: socket.socket) -> bytes:
    """One answer with a Content-Length."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += connection.recv(65536)
    head, _, body = text.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
