"""WebSocket at /v1/ws: many requests of OpenAI's API over one socket, each asked of the guarded HTTP app by a call from inside.

Every message is a text frame that holds one JSON object. A client sends

    {"id": "a", "type": "chat.completions", "request": {...}}    the body of POST /v1/chat/completions
    {"id": "a", "type": "completions", "request": {...}}         the body of POST /v1/completions
    {"id": "a", "type": "cancel"}                                stop that request
    {"type": "ping"}

where `id` is any text of 1 to 128 characters that no running request of this socket has, and `stream` is true unless the request says false.
It is sent, for each request

    {"id": "a", "type": "chunk", "data": {...}}                  a chunk of the stream, as the SSE of the HTTP route has it
    {"id": "a", "type": "result", "data": {...}}                 the whole answer of a request with "stream": false

and, as the last of that id, the result or one of

    {"id": "a", "type": "done", "usage": {...}}                  the stream is whole
    {"id": "a", "type": "error", "status": 429, "error": {...}}  HTTP's status and OpenAI's error object; 499 after a cancel; "retry_after" where HTTP has it

An error whose id is null is about a message that began nothing; nothing else ends by it, and the socket stays open. {"type": "pong"} answers a ping.
Keys, limits, deadlines and priorities are those of HTTP, since every request passes the same guards with the headers of the handshake.
Frames that break the protocol itself (invalid UTF-8, a size above the server's) close the socket with the code RFC 6455 gives them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson

from largeforge.asgi import App, Receive, Scope, Send, foreign_page, refuse
from largeforge.call import error_body
from largeforge.serve.inner import CutShort, call, events, of_request, status_of

LOG = logging.getLogger("largeforge.serve")
PATHS = {"chat.completions": "/v1/chat/completions", "completions": "/v1/completions"}
LONGEST_ID = 128


class WebSocket:
    """The ASGI app of scopes of type websocket.

    Args:
        app: the whole guarded app that requests are asked of; may be set later, since this app is a part of it.
        max_requests: that run at once on one socket.
        max_message_bytes: of one frame from the client; set uvicorn's ws_max_size somewhat above it, so that the socket survives a little too much.
        origins: pages of other hosts that may connect (`https://chat.example`), beside those that this server shows itself; programs send no origin.
    """

    def __init__(self, app: App | None = None, *, max_requests: int = 64, max_message_bytes: int = 8 * 2**20, origins: Sequence[str] = ()) -> None:
        self.app = app
        self.max_requests = max_requests
        self.max_message_bytes = max_message_bytes
        self.origins = frozenset(origins)
        self.num_running = 0  # requests on all sockets; a server that drains waits for 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        if message["type"] != "websocket.connect":
            return  # gone before the handshake was answered
        origin = foreign_page(scope)
        if origin is not None and origin not in self.origins:
            return await refuse(scope, receive, send, 403, f"Pages of {origin[:200]} may not connect to this server.", kind="permission_error", code="origin")
        await send({"type": "websocket.accept"})
        await _Socket(self, scope, send).run(receive)


class _Socket:
    """One open socket: its running requests by id."""

    def __init__(self, server: WebSocket, scope: Scope, send: Send) -> None:
        self._server = server
        self._send = send
        self._client = scope.get("client")
        self._headers = of_request(scope["headers"])
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()  # those of them that were cancelled, or are about to say their last message
        self._turn = asyncio.Lock()  # first come first served among requests that have something to say to a slow reader

    async def run(self, receive: Receive) -> None:
        """Read until the client leaves; then nothing of this socket runs any more.

        Each message is a task, so that we go on listening, and see the client leave, while an answer waits to be read. Their number is bounded:
        who sends without reading is not read either in the end.
        """
        tasks: set[asyncio.Task[None]] = set()
        try:
            while (message := await receive())["type"] == "websocket.receive":
                task = asyncio.get_running_loop().create_task(self._read(message.get("text")))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                if len(tasks) >= 2 * self._server.max_requests:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = list(tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def tell(self, message: dict[str, Any]) -> None:
        """Send one message; waits while the client does not read. Nothing happens where it is gone: the reader ends everything then."""
        text = orjson.dumps(message).decode()
        async with self._turn:
            with suppress(OSError):  # uvicorn's ClientDisconnected
                await self._send({"type": "websocket.send", "text": text})

    async def refuse(self, message: str, *, status: int, id: str | None = None, kind: str = "invalid_request_error", code: str | None = None) -> None:
        """Send an error that no call from inside said."""
        await self.tell({"id": id, "type": "error", "status": status, **error_body(message, kind=kind, code=code)})

    async def _read(self, text: str | None) -> None:
        """Take one frame of the client's."""
        if text is None:
            return await self.refuse("Messages are text frames of JSON; this one was binary.", status=400, code="binary")
        if len(text) > self._server.max_message_bytes or len(text.encode()) > self._server.max_message_bytes:
            return await self.refuse(f"A message may have {self._server.max_message_bytes} bytes.", status=413, code="too_large")
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError as fault:
            return await self.refuse(f"The message is no valid JSON: {str(fault)[:200]}", status=400, code="invalid_json")
        if not isinstance(said, dict):
            return await self.refuse("A message is a JSON object.", status=400, code="invalid_json")
        kind, id = said.get("type"), said.get("id")
        if kind == "ping":
            return await self.tell({"type": "pong"})
        if not isinstance(kind, str) or kind != "cancel" and kind not in PATHS:
            return await self.refuse(f"'type' must be one of {', '.join(PATHS)}, cancel, ping.", status=400, code="unknown_type")
        if not isinstance(id, str) or not 1 <= len(id) <= LONGEST_ID:
            return await self.refuse(f"'id' must be a text of 1 to {LONGEST_ID} characters.", status=400, code="invalid_id")
        if kind == "cancel":
            if id not in self._running:
                return await self.refuse(f"No request {id!r} is running.", status=404, code="unknown_id")
            if id not in self._ending:
                self._ending.add(id)
                self._running[id].cancel()
            return
        if id in self._running:
            return await self.refuse(f"A request {id!r} is running; give this one another id.", status=400, code="id_in_use")
        request = said.get("request")
        if not isinstance(request, dict):
            return await self.refuse("'request' must be an object: the body of the HTTP route.", status=400, id=id, code="invalid_request")
        if len(self._running) >= self._server.max_requests:
            message = f"{self._server.max_requests} requests run on this socket already."
            return await self.refuse(message, status=429, id=id, kind="rate_limit_error", code="socket_full")
        await self._answer(id, kind, request)

    async def _answer(self, id: str, kind: str, request: dict[str, Any]) -> None:
        """Run one request to its last message; it counts as running until that is sent, so that who does not read cannot ask without end."""
        task = asyncio.current_task()
        assert task is not None
        self._running[id] = task
        self._server.num_running += 1
        try:
            try:
                last = await self._ask(id, PATHS[kind], request)
            except asyncio.CancelledError:
                if id not in self._ending:
                    raise  # the socket is gone
                last = {"id": id, "type": "error", "status": 499, **error_body("The request was cancelled.", kind="cancelled", code="cancelled")}
            except CutShort:
                last = {"id": id, "type": "error", "status": 502, **error_body("The answer ended before it was whole.", kind="server_error", code="cut_short")}
            except Exception:
                LOG.exception("A request over WebSocket failed")
                last = {"id": id, "type": "error", "status": 500, **error_body("The server failed to answer this request.", kind="server_error")}
            self._ending.add(id)
            await self.tell(last)
        finally:
            self._server.num_running -= 1
            self._running.pop(id, None)
            self._ending.discard(id)

    async def _ask(self, id: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the guarded app, pass the stream on, and return the last message of this id."""
        stream = request.get("stream", True)
        body = {**request, "stream": stream}
        options = request.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        if stream is True and (options is None or isinstance(options, dict)):  # anything else is for the app to refuse
            body["stream_options"] = {**(options or {}), "include_usage": True}
        app = self._server.app
        assert app is not None, "WebSocket.app is set where the stack of guards is built"
        try:
            asked = orjson.dumps(body)
        except orjson.JSONEncodeError:
            return {"id": id, "type": "error", "status": 400, **error_body("'request' is nested too deeply.", kind="invalid_request_error")}
        usage: dict[str, Any] | None = None
        async with call(app, path=path, body=asked, headers=self._headers, client=self._client, transport="websocket") as reply:
            if reply.status != 200:
                refusal = {"id": id, "type": "error", "status": reply.status, "error": await reply.error()}
                wait = reply.header(b"retry-after")
                return refusal if wait is None else {**refusal, "retry_after": wait}
            if not reply.streams:
                return {"id": id, "type": "result", "data": orjson.Fragment(await reply.body())}
            async with aclosing(reply.chunks()) as chunks, aclosing(events(chunks)) as found:
                async for data in found:
                    chunk = orjson.loads(data)
                    if "error" in chunk:
                        return {"id": id, "type": "error", "status": status_of(chunk["error"]), "error": chunk["error"]}
                    if chunk.get("usage"):
                        usage = chunk["usage"]
                        if not chunk.get("choices") and not wants_usage:
                            continue
                    await self.tell({"id": id, "type": "chunk", "data": orjson.Fragment(data)})
        return {"id": id, "type": "done", "usage": usage}
