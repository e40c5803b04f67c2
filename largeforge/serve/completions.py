"""POST /v1/completions and /v1/chat/completions, and GET /v1/models, at the door: checked, completed with defaults, passed on, passed back.

Raw ASGI, since a route of a framework costs twice as much as all of this. Bytes of a stream are passed on as they come; only the events
that carry the usage, a reason or an error are read. Guards stand around it, and read what happened from the Call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from largeforge.asgi import Receive, Scope, Send, refuse, respond
from largeforge.call import Call, call_of, error_body
from largeforge.serve.asking import Defaults
from largeforge.serve.engine_app import STREAM_HEADERS, Gone, read_body, until_gone
from largeforge.serve.upstream import Upstream
from largeforge.serve.wire import CHAT, COMPLETIONS, BadRequest, ChatCompletionRequest, error_event, model_body, models_body, parse

MODELS = "/v1/models"
PATHS = (CHAT, COMPLETIONS, MODELS)
GONE = 499  # nginx's status of a client that went away
DIED = "The engine died while it answered; ask again."
STOPPING = "The server is stopping; ask again elsewhere."
SPACED = (b'"usage": {', b'"finish_reason": "', b'"error": {')  # as json.dumps writes them
LONGEST_EVENT = 16 * 2**20
TROUBLE = (aiohttp.ClientError, OSError, asyncio.TimeoutError)


class Completions:
    """The handler of /v1/*.

    Args:
        upstream: who is asked.
        defaults: what holds where a request does not say; None adds nothing (an engine elsewhere has its own).
        created: when the model was loaded, in seconds of the epoch.
        piece: called with the seconds since the last piece of a stream, for each but the first.
    """

    def __init__(self, upstream: Upstream, *, defaults: Defaults | None, created: int, piece: Callable[[float], None] | None = None) -> None:
        self.upstream = upstream
        self.defaults = defaults
        self.created = created
        self.piece = piece
        self.running: dict[_Passing, asyncio.Task[Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        call = call_of(scope)
        if path.startswith(f"{MODELS}/"):
            name = path.removeprefix(f"{MODELS}/")
            if method in ("GET", "HEAD") and name in self.upstream.names:
                call.status = 200
                return await respond(send, 200, model_body(name, created=self.created, parent=self.upstream.names[0]))
            return await refuse(scope, receive, send, 404, self._unknown(name), kind="invalid_request_error", code="model_not_found", param="model")
        if path == MODELS:
            if method not in ("GET", "HEAD"):
                return await refuse(scope, receive, send, 405, f"{path} takes GET.", kind="invalid_request_error", headers={"allow": "GET"})
            call.status = 200
            return await respond(send, 200, models_body(self.upstream.names, created=self.created))
        if method != "POST":
            return await refuse(scope, receive, send, 405, f"{path} takes POST.", kind="invalid_request_error", headers={"allow": "POST"})
        try:
            body, wants_usage = self._read(path, await read_body(receive), call)
        except BadRequest as fault:
            call.status, call.error = fault.status, "invalid_request_error"
            return await respond(send, fault.status, fault.body())
        except Gone:
            call.status = GONE
            return
        await self._while_there(_Passing(self, call, path, body, send, wants_usage=wants_usage), receive)

    def _read(self, path: str, raw: bytes, call: Call) -> tuple[bytes, bool]:
        """Return what the engine is asked, and whether the client wants the usage in its stream. Raises BadRequest."""
        request, fields = parse(path, raw)
        names = self.upstream.names
        if request.model not in names:
            raise BadRequest(self._unknown(request.model), param="model", status=404, code="model_not_found")
        call.model, call.stream = request.model, bool(request.stream)
        if self.upstream.model and request.model == names[0]:
            fields["model"] = self.upstream.model
        defaults = self.defaults
        if defaults is not None:
            if request.max_tokens is None and not (isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None):
                fields["max_tokens"] = defaults.max_tokens
            if request.temperature is None:
                fields["temperature"] = defaults.temperature
            if request.top_p is None:
                fields["top_p"] = defaults.top_p
            if request.top_k is None:
                fields["top_k"] = defaults.top_k
        options = request.stream_options
        if request.stream:
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        return orjson.dumps(fields), options is not None and options.include_usage

    def _unknown(self, name: str) -> str:
        return f"The model '{name[:200]}' does not exist; there is: {', '.join(self.upstream.names[:20])}."

    def break_off(self) -> int:
        """End what runs: each is told so. Returns how many there were."""
        for passing, task in self.running.items():
            passing.stopped = True
            task.cancel()
        return len(self.running)

    async def _while_there(self, passing: _Passing, receive: Receive) -> None:
        """Run it; stop it at once where the client goes away."""
        current = asyncio.current_task()
        assert current is not None
        gone = asyncio.ensure_future(until_gone(receive))
        left = False

        def leave(task: asyncio.Task[None]) -> None:
            nonlocal left
            if not task.cancelled() and not passing.over:
                left = True
                current.cancel()

        gone.add_done_callback(leave)
        self.running[passing] = current
        try:
            await passing.run()
        except asyncio.CancelledError:
            if not left and not passing.stopped:
                raise
            if hasattr(current, "uncancel"):
                current.uncancel()
            if left:
                passing.call.status = GONE
            else:
                await passing.fail(503, STOPPING, code="draining")
        finally:
            passing.over = True
            del self.running[passing]
            gone.cancel()


class _Passing:
    """One request on its way to the engine and back."""

    def __init__(self, door: Completions, call: Call, path: str, body: bytes, send: Send, *, wants_usage: bool) -> None:
        self.door, self.call, self.path, self.body, self.send = door, call, path, body, send
        self.wants_usage = wants_usage
        self.over = False
        self.stopped = False

    async def run(self) -> None:
        """Ask; ask once more where the engine died before anything was sent."""
        upstream = self.door.upstream
        if not upstream.ready and not await upstream.again():
            return await self.fail(503, upstream.lost)
        for attempt in (1, 2):
            try:
                if await self._once(last=attempt == 2):
                    return
            except TROUBLE:
                if self.call.begun:
                    return await self.fail(503, DIED)
            if attempt == 2 or not await upstream.again():
                return await self.fail(503, upstream.lost)
            self.call.retried = True

    async def _once(self, *, last: bool) -> bool:
        """Ask once; False where nothing was sent and it may be asked again."""
        async with self.door.upstream.post(self.path, self.body, {"X-Request-ID": self.call.id} if self.call.id else {}) as response:
            if response.status >= 500 and not last and self.door.upstream.server is not None and await self.door.upstream.latency_ms() is None:
                return False  # it is dying, and said so
            if self.call.stream and response.status == 200:
                await self._stream(response)
            else:
                await self._whole(response)
        return True

    async def _whole(self, response: aiohttp.ClientResponse) -> None:
        body = await response.read()
        status = response.status
        try:
            found = orjson.loads(body)
        except ValueError:
            found = None
        if status == 200 and isinstance(found, dict):
            self.call.first_token_at = self.call.last_token_at = time.monotonic()
            self._note(found)
        elif not (isinstance(found, dict) and isinstance(found.get("error"), dict)):
            status = status if 400 <= status < 500 else 502
            body = orjson.dumps(error_body(f"The engine answered {response.status} and no JSON.", kind="server_error"))
        again = response.headers.get("Retry-After")
        if status in (401, 403):  # the door's own key was refused: not the client's fault, and none of its business
            status, body = 503, orjson.dumps(error_body("The engine refuses the door's key.", kind="server_error", code="engine_unavailable"))
        if status != 200:
            self.call.error = "invalid_request_error" if status < 500 else "server_error"
        self.call.status = status
        await respond(self.send, status, body, headers=[(b"retry-after", (again or "1").encode("latin-1"))] if status in (429, 503) else ())

    async def _stream(self, response: aiohttp.ClientResponse) -> None:
        call, send, piece = self.call, self.send, self.door.piece
        rest = b""
        done = False
        async for chunk in response.content.iter_any():
            data = rest + chunk if rest else chunk
            if b"\r" in data:  # some servers end lines so; a half line end waits for its other half
                data, tail = (data[:-1], b"\r") if data.endswith(b"\r") else (data, b"")
                data = data.replace(b"\r\n", b"\n") + tail
            cut = data.rfind(b"\n\n") + 2
            if cut == 1:
                rest = data
                if len(rest) > LONGEST_EVENT:
                    raise aiohttp.ClientPayloadError("an event without end")
                continue
            data, rest = data[:cut], data[cut:]
            if b'"usage":{' in data or b'"finish_reason":"' in data or b'"error":{' in data or b"[DONE]" in data or any(one in data for one in SPACED):
                data, done = self._read(data)
            if not data:
                continue
            now = time.monotonic()
            if call.first_token_at is None:
                call.first_token_at = now
            elif piece is not None and call.last_token_at is not None:
                piece(now - call.last_token_at)
            call.last_token_at = now
            call.num_pieces += 1
            if not call.begun:
                call.begun = True  # the guard outside says so too; here it holds without guards
                call.status = 200
                await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            await send({"type": "http.response.body", "body": data, "more_body": True})
        if not done and not call.error:
            raise aiohttp.ClientPayloadError("the stream ended before [DONE]")
        await send({"type": "http.response.body", "body": b""})

    def _read(self, data: bytes) -> tuple[bytes, bool]:
        """Read events that say more than text; return those to pass on, and whether [DONE] is among them."""
        kept = []
        done = False
        for event in data.split(b"\n\n"):
            if not event:
                continue
            if event.startswith(b"data:"):
                payload = event[5:].strip()
                if payload == b"[DONE]":
                    done = True
                else:
                    try:
                        found = orjson.loads(payload)
                    except ValueError:
                        found = {}
                    self._note(found)
                    if found.get("usage") and not found.get("choices") and not self.wants_usage:
                        continue
            kept.append(event)
        return b"".join(event + b"\n\n" for event in kept), done

    def _note(self, found: dict[str, Any]) -> None:
        """Keep what the end of an answer says."""
        call = self.call
        usage = found.get("usage")
        if isinstance(usage, dict):
            call.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            call.completion_tokens = int(usage.get("completion_tokens") or 0)
        for choice in found.get("choices") or ():
            call.finish_reason = choice.get("finish_reason") or call.finish_reason
        if isinstance(found.get("error"), dict):
            call.error = str(found["error"].get("type") or "server_error")

    async def fail(self, status: int, message: str, *, code: str = "") -> None:
        """Say that there is no answer, or no more of it."""
        self.call.error = "server_error"
        if self.call.begun:
            await self.send({"type": "http.response.body", "body": error_event(message, code=code or "engine_died")})
            return
        self.call.status = status
        body = orjson.dumps(error_body(message, kind="server_error", code=code or "engine_unavailable"))
        await respond(self.send, status, body, headers=[(b"retry-after", b"1")])
