"""One structured line for every request, and an answer for the client where the app inside fails.

Writes to the logger "largeforge.access"; where the lines go is the run's business. Neither prompt, answer, key nor query is ever written.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from pathlib import PurePath
from typing import Any

from largeforge.asgi import App, Receive, Scope, Send, refuse
from largeforge.call import Call, call_of, error_body
from largeforge.guard.config import AccessLogConfig
from largeforge.guard.outcome import SERVER_ERROR, settle

log = logging.getLogger("largeforge.access")
APOLOGY = "The server failed to answer. Its log says more, under this request's X-Request-ID."
MAX_FRAMES = 20


class AccessLog:
    """Writes the line when a request has ended, however it did.

    An exception that escapes the app becomes OpenAI's error object with status 500 (an error event where a stream has begun); its
    type and where it was raised stand in the line, its message does not: it may quote a prompt.

    Args:
        config: of this guard.
        app: what stands inside.
    """

    def __init__(self, config: AccessLogConfig, *, app: App) -> None:
        self.config = config
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        call = call_of(scope)
        fault: BaseException | None = None
        try:
            try:
                await self.app(scope, receive, send)
            except Exception as raised:
                fault = raised
                settle(call, raised)
                await self._apologise(scope, receive, send)
        except BaseException as raised:  # cancelled, or the apology did not get through
            fault = fault or raised
            raise
        finally:
            settle(call, fault)
            self._write(scope, call, fault)

    async def _apologise(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(scope)
        if not call.begun:
            await refuse(scope, receive, send, 500, APOLOGY, kind=SERVER_ERROR, code="internal_error")
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1011})
        elif call.stream and not call.whole:
            event = json.dumps(error_body(APOLOGY, kind=SERVER_ERROR, code="internal_error")).encode()
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n"})

    def _write(self, scope: Scope, call: Call, fault: BaseException | None) -> None:
        failed = isinstance(fault, Exception)
        if not log.isEnabledFor(logging.ERROR if failed else logging.INFO):
            return
        method = scope.get("method", "GET") if scope.get("method", "GET") in METHODS else "other"
        line: dict[str, Any] = {
            "request_id": call.id,
            "transport": call.transport,
            "method": method,
            "path": call.path,
            "status": call.status,
            "error": call.error,
            "code": call.code,
            "key": call.key.prefix if call.key is not None else "",
            "key_name": call.key.name if call.key is not None else "",
            "model": call.model,
            "stream": call.stream,
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
            "finish_reason": call.finish_reason,
            "queued_ms": round(1000 * call.queued_s, 3),
            "ttft_ms": round(1000 * (call.first_token_at - call.started), 3) if call.first_token_at is not None else None,
            "total_ms": round(1000 * (time.monotonic() - call.started), 3),
            "retried": call.retried,
        }
        if fault is not None and failed:
            line["fault"] = type(fault).__name__
            frames = [(frame.f_code, number) for frame, number in traceback.walk_tb(fault.__traceback__)]
            line["frames"] = [f"{PurePath(code.co_filename).name}:{number} {code.co_name}" for code, number in frames[-MAX_FRAMES:]]
        # A handler that cannot write (a full disk) would print a traceback to stderr for every request.
        before, logging.raiseExceptions = logging.raiseExceptions, False
        try:
            # what log.log() does, without looking for who called it
            record = logging.LogRecord(log.name, logging.ERROR if failed else logging.INFO, __file__, 0, "%s %s %d", (method, call.path, call.status), None)
            vars(record).update(line)
            log.handle(record)
        finally:
            logging.raiseExceptions = before


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
