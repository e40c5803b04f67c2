"""How long an answer may take: when the time is up, what is inside is cancelled, and the client is told."""

from __future__ import annotations

import json
import time

from largeforge.asgi import App, Receive, Scope, Send, header, refuse
from largeforge.call import GENERATING, call_of, error_body
from largeforge.guard.config import DeadlineConfig
from largeforge.guard.cutoff import Cutoff

TIMEOUT_ERROR = "timeout_error"
MAX_ASKED_S = 86_400.0
TELL_S = 1.0


class Deadline:
    """Counts from the moment the request came, so that waiting in a queue inside of it counts too.

    The header X-Request-Timeout (seconds, more than 0 and at most a day) may shorten the limit, never lengthen it. 504 where nothing was
    sent yet; a stream that has begun ends with an error event and without [DONE].

    Args:
        config: of this guard.
        app: what stands inside; it is cancelled once, and may still await what closes things.
    """

    def __init__(self, config: DeadlineConfig, *, app: App) -> None:
        self.config = config
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GENERATING or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        seconds = self.config.seconds
        asked = header(scope, b"x-request-timeout")
        if asked is not None:
            wanted = _seconds(asked)
            if wanted is None:
                text = f"X-Request-Timeout has to be a number of seconds, more than 0 and at most {MAX_ASKED_S:g}."
                await refuse(scope, receive, send, 400, text, kind="invalid_request_error", code="invalid_header")
                return
            seconds = wanted if seconds is None else min(seconds, wanted)
        if seconds is None:
            await self.app(scope, receive, send)
            return
        call = call_of(scope)
        with Cutoff(seconds - (time.monotonic() - call.started)) as cutoff:
            await self.app(scope, receive, send)
        if not cutoff.passed or call.whole:
            return
        text = f"The answer was not complete within {seconds:g} seconds."
        with Cutoff(TELL_S):  # a client that does not read must not hold us up a second time
            if not call.begun:
                await refuse(scope, receive, send, 504, text, kind=TIMEOUT_ERROR, code="deadline_exceeded")
                return
            call.error, call.code = TIMEOUT_ERROR, "deadline_exceeded"
            if call.stream:
                event = json.dumps(error_body(text, kind=TIMEOUT_ERROR, code="deadline_exceeded")).encode()
                await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n"})


def _seconds(text: str) -> float | None:
    """Return a header's seconds, None where it says nothing sensible."""
    if len(text) > 32 or not text.replace(".", "", 1).isascii() or not text.replace(".", "", 1).isdecimal():
        return None
    seconds = float(text)
    return seconds if 0 < seconds <= MAX_ASKED_S else None
