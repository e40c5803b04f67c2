"""Reads a request's whole body, within limits of bytes and seconds, before anything inside sees the request.

After that `receive` says one thing only, that the client is gone: the guards inside and the handlers can wait for it. Messages of WebSocket and
gRPC, which their servers let be a little longer, come through here as requests from inside.
"""

from __future__ import annotations

from largeforge.asgi import App, Message, Receive, Scope, Send, header, refuse
from largeforge.call import call_of
from largeforge.guard.config import BodyLimitConfig
from largeforge.guard.cutoff import Cutoff
from largeforge.guard.outcome import CLIENT_LEFT

BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
CLOSE = {"Connection": "close"}
LINGER_S = 2.0


class BodyLimit:
    """Hands the body inwards as one message.

    Args:
        config: of this guard.
        app: what stands inside.
    """

    def __init__(self, config: BodyLimitConfig, *, app: App) -> None:
        self.config = config
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS and not _announces_body(scope):
            await self.app(scope, receive, send)
            return
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdecimal() and int(announced[:20]) > self.config.max_bytes:
            await self._too_large(scope, receive, send)
            return
        chunks: list[bytes] = []
        num_bytes = 0
        more = True
        with Cutoff(self.config.read_timeout_s) as cutoff:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    call_of(scope).status = CLIENT_LEFT
                    return
                chunk = message.get("body", b"")
                more = message.get("more_body", False)
                num_bytes += len(chunk)
                if num_bytes > self.config.max_bytes:
                    break
                chunks.append(chunk)
        if cutoff.passed:
            text = f"The body was not there within {self.config.read_timeout_s:g} seconds."
            await refuse(scope, receive, send, 408, text, kind="timeout_error", code="body_too_slow", headers=CLOSE)
            return
        if num_bytes > self.config.max_bytes:
            chunks.clear()
            await self._too_large(scope, receive, send, more=more)
            return
        body: bytes | None = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()

        async def replay() -> Message:
            nonlocal body
            if body is not None:
                whole, body = body, None
                return {"type": "http.request", "body": whole, "more_body": False}
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return message

        await self.app(scope, replay, send)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send, *, more: bool = True) -> None:
        """Answer 413 and close; what is still coming is thrown away for a moment, or the client may meet a reset before it has read the answer."""
        last: list[Message] = []

        async def hold_the_end(message: Message) -> None:
            if message["type"] == "http.response.body":
                last.append({"type": "http.response.body", "body": b"", "more_body": False})
                message = {**message, "more_body": True}
            await send(message)

        text = f"The body is larger than {self.config.max_bytes} bytes."
        await refuse(scope, receive, hold_the_end, 413, text, kind="invalid_request_error", code="body_too_large", headers=CLOSE)
        with Cutoff(LINGER_S):
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
        for message in last:
            await send(message)


def _announces_body(scope: Scope) -> bool:
    return any(name == b"transfer-encoding" or name == b"content-length" and value != b"0" for name, value in scope["headers"])
