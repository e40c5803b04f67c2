"""A call into an ASGI app of the same process: how WebSocket and gRPC ask the guarded HTTP app, so that one contract holds on all three.

No socket, no copy: the app's `send` waits until the reader took the piece, so a slow client slows the engine down as it would over HTTP.
Knows nothing of frames or RPCs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal

import orjson

from largeforge.asgi import App, Message, Scope
from largeforge.call import error_body

LOG = logging.getLogger("largeforge.serve")
GRACE_S = 5.0  # that an app has to end by itself once its client is gone, before it is cancelled
LEAST_S = 1.0  # that it has to end after that

# What a handshake or an RPC says of its own connection, and not of the request inside
_OF_THE_CONNECTION = frozenset(
    b"accept-encoding connection content-encoding content-length content-type expect keep-alive origin proxy-connection te trailer "
    b"transfer-encoding upgrade x-request-id".split()
)
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "timeout_error": 504,
}


class CutShort(Exception):
    """The app ended in the middle of its answer."""


class Reply:
    """What the app answers. Made by `call`; read it once, by `chunks` or by `body`.

    Args:
        exchange: the other side of the app's `send`.
    """

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.headers

    def header(self, name: bytes) -> str | None:
        """Return a header's value, None where there is none; `name` in lower case."""
        return next((value.decode("latin-1") for found, value in self.headers if found.lower() == name), None)

    @property
    def streams(self) -> bool:
        """Whether it is a stream of server-sent events."""
        return self.status == 200 and (self.header(b"content-type") or "").startswith("text/event-stream")

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the pieces as the app sends them. Raises CutShort where it ended in the middle."""
        while piece := await self._exchange.take():
            yield piece

    async def body(self) -> bytes:
        """Return all of it. Raises CutShort where the app ended in the middle."""
        return b"".join([piece async for piece in self.chunks()])

    async def error(self) -> dict[str, Any]:
        """Return the body of a refusal as OpenAI's error object, {"message", "type", "param", "code"}, whoever wrote it."""
        try:
            said = orjson.loads(await self.body())["error"]
            if isinstance(said, dict) and isinstance(said.get("message"), str):
                return {"type": "server_error" if self.status >= 500 else "invalid_request_error", "param": None, "code": None, **said}
        except (CutShort, ValueError, KeyError, TypeError):
            pass  # the app's own 404 page, say: what counts is the status
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        found: dict[str, Any] = error_body(f"The server answered with status {self.status}.", kind=kind)["error"]
        return found


class _Exchange:
    """One request and its answer, between an app and a reader in one event loop; holds one piece at most."""

    def __init__(self, body: bytes) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.gone = False
        self.whole = False
        self._body: bytes | None = body
        self._piece = b""
        self._waiting: set[asyncio.Future[None]] = set()
        self.task: asyncio.Task[None] | None = None

    # Both sides wait for "something changed" and look again: there are never more than three who wait.

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def changed(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    @property
    def ended(self) -> bool:
        return self.task is not None and self.task.done()

    # ---- the app's side ----

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while not (self.gone or self.whole):
            await self._change()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.gone or self.whole:  # nobody reads any more; as with uvicorn that is no error
            await asyncio.sleep(0)  # an app that only ever sends must come to a point where it can be cancelled
            return
        if message["type"] == "http.response.start":
            self.headers = list(message.get("headers", []))
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if piece := bytes(message.get("body", b"")):
                self._piece = piece
                self.changed()
                while self._piece and not self.gone:
                    await self._change()
            self.whole = self.whole or not message.get("more_body", False)
        else:
            raise RuntimeError(f"an app sent {message['type']!r}, which is nothing of a plain HTTP answer")
        self.changed()

    # ---- the reader's side ----

    async def started(self) -> None:
        while not self.status and not self.ended:
            await self._change()
        if not self.status:  # it failed before it said a word; `_ended` writes why
            self.status, self.headers = 500, [(b"content-type", b"application/json")]
            self._piece = orjson.dumps(error_body("The server failed to answer this request.", kind="server_error"))
            self.whole = True

    async def take(self) -> bytes:
        """Return the next piece, b"" at the end. Raises CutShort."""
        while not self._piece and not self.whole:
            if self.ended:
                raise CutShort("the answer ended before it was whole")
            await self._change()
        piece, self._piece = self._piece, b""
        self.changed()
        return piece

    def leave(self) -> None:
        self.gone, self._piece = True, b""
        self.changed()


@asynccontextmanager
async def call(
    app: App,
    *,
    path: str,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    client: tuple[str, int] | None,
    transport: Literal["websocket", "grpc"],
    method: str = "POST",
) -> AsyncIterator[Reply]:
    """Ask an app of this process; the reply is there once the app has said a status.

    Leaving, by whatever way, is a client that goes away: the app's `receive()` says http.disconnect at once, and the app has GRACE_S to end
    before it is cancelled. An app that raises before it said anything is answered for with 500.

    Args:
        app: of plain HTTP.
        path: without a query.
        body: whole.
        headers: names in lower case; see `of_request`.
        client: address of who asks, for logs and limits.
        transport: noted in the scope's state, where guards make the Call of it.
        method: of HTTP.
    """
    exchange = _Exchange(body)
    lines = [*headers, (b"content-length", str(len(body)).encode())]
    if body:
        lines.append((b"content-type", b"application/json"))
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": lines,
        "client": client,
        "server": None,
        "state": {"transport": transport},
    }

    async def run() -> None:
        await app(scope, exchange.receive, exchange.send)

    task = asyncio.get_running_loop().create_task(run())
    exchange.task = task
    task.add_done_callback(lambda done: _ended(done, exchange))
    try:
        await exchange.started()
        yield Reply(exchange)
    finally:
        exchange.leave()
        await _finish(task)


def _ended(task: asyncio.Task[None], exchange: _Exchange) -> None:
    """Wake the reader, and say in the log why an app ended with an exception."""
    exchange.changed()
    if not task.cancelled() and (fault := task.exception()) is not None:
        LOG.error("An app failed during a call from inside", exc_info=fault)


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for an app that has been told that its client is gone; cancel it where it does not end, or where we are cancelled ourselves."""
    if task.done():
        return
    try:
        await asyncio.wait({task}, timeout=GRACE_S)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        await asyncio.wait({task}, timeout=LEAST_S)
        if not task.done():
            LOG.error("An app goes on after its client left and it was cancelled")


def of_request(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return those headers of a handshake that belong to every request made over the socket: keys and limits, not the connection's own."""
    return [(name, value) for name, value in headers if name not in _OF_THE_CONNECTION and not name.startswith(b"sec-websocket-")]


async def events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the data of each server-sent event up to [DONE]; an event is one `data:` line, as in OpenAI's streams.

    Raises:
        CutShort: there was no [DONE].
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk if rest else chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield data
    raise CutShort("the stream ended without [DONE]")


def status_of(error: dict[str, Any]) -> int:
    """Return the HTTP status that an error object of OpenAI's would have had, for one that comes in the middle of a stream."""
    code = error.get("code")
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    return _STATUS_OF_TYPE.get(str(error.get("type")), 500)
