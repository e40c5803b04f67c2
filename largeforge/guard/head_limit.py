"""Limits a request's head (request line and headers) in bytes and seconds: what comes before any ASGI app can see the request.

uvicorn's httptools protocol has neither limit: a client could send headers until memory is full, or hold a connection open by saying
nothing. Not a guard of a group; the server takes it: `uvicorn.Config(http=head_limited())`.
"""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import TYPE_CHECKING

from largeforge.call import error_body
from largeforge.errors import MissingExtra

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_BYTES = 65_536
TIMEOUT_S = 10.0


@cache
def head_limited(*, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with limits; a head that is too large is answered with 431, one that is too slow with 408.

    Args:
        max_bytes: of one head; what is read at once (up to 256 KiB) is not cut, so that more may pass once.
        timeout_s: from the connection, or from the head's first byte where the connection had a request before, to the head's end.

    Raises:
        MissingExtra: uvicorn or httptools is not installed.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        raise MissingExtra("httptools", extra="serve") from None

    class HeadLimited(HttpToolsProtocol):
        """Counts and times what comes until a head is whole."""

        _head_bytes = 0
        _in_head = True
        _too_slow: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._too_slow = self.loop.call_later(timeout_s, self._give_up, 408, "Request Timeout", f"no whole request head within {timeout_s:g} seconds")

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self._in_head and self.parser is not None:
                self._head_bytes += len(data)
                if self._head_bytes > max_bytes:
                    self._give_up(431, "Request Header Fields Too Large", f"the request's head is larger than {max_bytes} bytes")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head_bytes = True, 0
            if self._too_slow is None:
                self._too_slow = self.loop.call_later(timeout_s, self._give_up, 408, "Request Timeout", f"no whole request head within {timeout_s:g} seconds")

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._unwatch()
            super().on_headers_complete()

        def _unwatch(self) -> None:
            if self._too_slow is not None:
                self._too_slow.cancel()
                self._too_slow = None

        def _give_up(self, status: int, words: str, text: str) -> None:
            self._unwatch()
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:  # else an answer to an earlier request is on its way
                body = json.dumps(error_body(text, kind="invalid_request_error", code="head_too_large" if status == 431 else "head_too_slow")).encode()
                head = f"HTTP/1.1 {status} {words}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
                self.transport.write(head.encode() + body)
            self.transport.close()

    return HeadLimited
