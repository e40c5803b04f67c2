"""A name for every request, and the Call that travels with it. The outermost guard.

It alone sees what is sent: the guards inside read in the Call whether an answer has begun and is whole.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable

from largeforge.asgi import App, Message, Receive, Scope, Send, header
from largeforge.call import Call
from largeforge.guard.config import RequestIDConfig

SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
IDS = random.Random()  # seeded by the system; an id is a name, no secret, and asking the system for each takes as long as a guard
OTHER = "other"
SWITCHING = 101


class RequestID:
    """Makes the Call, and adds X-Request-ID to the answer.

    A client's own X-Request-ID is taken where it is at most 128 characters of letters, digits and ``._:/+=@-``; any other is
    replaced, not refused. A call that comes from inside (a message of a WebSocket, gRPC) says so by a scope whose state holds
    {"transport": "websocket" | "grpc"}.

    Args:
        config: of this guard.
        app: what stands inside.
        routes: every path that the app knows; any other is "other" in logs and metrics, so that nobody can fill them.
    """

    def __init__(self, config: RequestIDConfig, *, app: App, routes: Iterable[str]) -> None:
        self.config = config
        self.app = app
        self.routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        asked = header(scope, b"x-request-id")
        path = scope["path"]
        call = Call(
            id=asked if asked is not None and SANE.fullmatch(asked) else f"req_{IDS.getrandbits(128):032x}",
            transport=state.get("transport", kind),
            path=path if path in self.routes else OTHER,
            started=time.monotonic(),
        )
        state["call"] = call
        line = (b"x-request-id", call.id.encode())

        async def sending(message: Message) -> None:
            said = message["type"]
            if said == "http.response.body":
                await send(message)
                if not message.get("more_body", False):
                    call.whole = True
                return
            if said in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                call.status = message.get("status", SWITCHING)
                call.begun = True
                call.whole = said == "websocket.accept"  # a handshake has no more to it
                message = {**message, "headers": [*message.get("headers", ()), line]}
            await send(message)

        await self.app(scope, receive, sending)
