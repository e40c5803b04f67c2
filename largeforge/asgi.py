"""The words of ASGI, and a refusal in OpenAI's shape on HTTP and WebSocket alike. Standard library only.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from largeforge.call import call_of, error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header's value, None where the request has none; `name` in lower case. The first one wins."""
    for found, value in scope["headers"]:
        if found == name:
            return str(value.decode("latin-1"))
    return None


def foreign_page(scope: Scope) -> str | None:
    """Return the origin of a page of another host that asks; None where no page asks, or one that this server showed itself.

    A browser lets any page send simple requests, and open WebSockets, to a server on loopback: without this it could spend its time.
    """
    origin = header(scope, b"origin")
    if origin is None:
        return None
    try:
        parts = urlsplit(origin)
        name = (parts.hostname or "").lower()
    except ValueError:
        return origin
    if parts.netloc.lower() != (header(scope, b"host") or "").lower():
        return origin
    # a name that an attacker's DNS points at loopback: where no key protects it, a loopback server is asked by its own names only
    at = str((scope.get("server") or ("",))[0])
    rebound = (at.startswith("127.") or at == "::1") and name not in ("localhost", "127.0.0.1", "::1") and call_of(scope).key is None
    return origin if rebound else None


async def respond(send: Send, status: int, body: bytes, *, content_type: bytes = JSON, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send one whole HTTP response."""
    lines = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    message: str,
    *,
    kind: str,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer with OpenAI's error object instead of asking the app inside; the call keeps status, type and code.

    A WebSocket that is not open yet is answered with the same HTTP response where the server can (the extension
    websocket.http.response), else it is closed with code 4000 + status.

    Args:
        scope: of the request.
        receive: not read from, but for the handshake of a WebSocket.
        send: where it goes.
        status: of HTTP.
        message: for a person.
        kind: "invalid_request_error", "authentication_error", "rate_limit_error", "server_error", "timeout_error" ...
        code: for a program.
        param: which field of the body.
        headers: further ones, such as Retry-After.
    """
    call = call_of(scope)
    call.status, call.error, call.code = status, kind, code or ""
    body = json.dumps(error_body(message, kind=kind, code=code, param=param), ensure_ascii=False).encode()
    more = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if scope["type"] == "websocket":
        if "websocket.http.response" in scope.get("extensions", {}):
            lines = [(b"content-type", JSON), (b"content-length", str(len(body)).encode()), *more]
            await send({"type": "websocket.http.response.start", "status": status, "headers": lines})
            await send({"type": "websocket.http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 4000 + status, "reason": message[:100]})
        return
    await respond(send, status, body, headers=more)
