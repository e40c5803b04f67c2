"""One request at the door: what guards and handlers know of it, and who asks. Imports nothing heavy.

A Call is made by the outermost guard (`guard.request_id`) and travels in the ASGI scope as `scope["state"]["call"]`. The guards
inside fill in what they learn; what is logged, measured and charged at the end is read from it. It holds no prompt and no answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

OPEN_PATHS = frozenset({"/health", "/ready", "/"})
"""What is answered without a key, on every transport; nothing else is."""

GENERATING = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Where tokens are generated (by POST): what is limited, queued for and measured; a key needs the scope "infer"."""

LOAD_ADAPTER, UNLOAD_ADAPTER = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADMIN_PATHS = frozenset({LOAD_ADAPTER, UNLOAD_ADAPTER})
"""What changes the server for everybody; a key needs the scope "admin"."""


@dataclass(frozen=True)
class Key:
    """An API key as the store knows it; never the key itself.

    Args:
        id: of its row.
        name: what its owner calls it.
        prefix: its first letters, to recognise it by in logs.
        priority: higher is served first; 0 is usual.
        requests_per_minute: None is what the guard's config says.
        tokens_per_minute: of prompts and answers; None is what the guard's config says.
        scopes: what it may do: "infer" (ask for answers), "admin" (change the server, see `ADMIN_PATHS`).
        expires: from when on it is worthless, in seconds since 1970, UTC; None is never.
    """

    id: int
    name: str
    prefix: str
    priority: int = 0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    scopes: tuple[str, ...] = ("infer",)
    expires: float | None = None


@dataclass(frozen=True)
class KeyRecord:
    """A key with what only its keeper asks. Times are seconds since 1970, UTC.

    Args:
        key: what the door knows of it.
        created: when it was made.
        revoked: since when it is worthless; None where it was not revoked.
        last_used: when a door last looked it up, to the minute or so; None is never.
    """

    key: Key
    created: float
    revoked: float | None = None
    last_used: float | None = None

    def valid(self, now: float) -> bool:
        """Whether it opens the door at this time."""
        return self.revoked is None and (self.key.expires is None or now < self.key.expires)


def digest_of(key: str) -> str:
    """Return what is kept of an API key: its SHA-256, in hex.

    A plain, fast hash without salt is right here, where for a password it would be wrong. A password is guessed from a small
    space, so each guess must be made dear; a key is 240 random bits, so no guess ever hits, and a fast hash costs the door
    nothing per request. Equal keys do not occur, so there is nothing for a salt to tell apart, and without one a key is found by its hash.
    """
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class Call:
    """One request.

    Args:
        id: in every log line and in the header X-Request-ID.
        transport: how it came.
        path: of the route, without a query.
        started: monotonic seconds.
        key: who asks; None where keys are off.
        model: that was asked for, once it is known to be one of the served models; "" before (labels of metrics must be bounded).
        stream: whether the answer was asked for as a stream.
        queued_s: seconds that it waited for its turn.
        first_token_at: monotonic seconds of the first piece of the answer.
        last_token_at: monotonic seconds of the last piece.
        num_pieces: pieces of a stream.
        prompt_tokens: as the engine counted them.
        completion_tokens: as the engine counted them.
        finish_reason: as the engine said.
        status: HTTP status of the answer; 499 where the client went away before it was whole.
        error: type of OpenAI's error object where it ended in one, in a stream too.
        code: of that object, for a program; why a guard refused.
        begun: whether the head of the answer was sent: its status can no longer be another.
        whole: whether all of the answer was sent.
        retried: whether it was asked again after an engine died.
    """

    id: str
    transport: Literal["http", "websocket", "grpc"] = "http"
    path: str = ""
    started: float = field(default_factory=time.monotonic)
    key: Key | None = None
    model: str = ""
    stream: bool = False
    queued_s: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_pieces: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    status: int = 0
    error: str = ""
    code: str = ""
    begun: bool = False
    whole: bool = False
    retried: bool = False

    @property
    def owner(self) -> str:
        """Whom limits and turns are counted for: the key's id, or "" for everybody together where keys are off."""
        return str(self.key.id) if self.key is not None else ""


def call_of(scope: MutableMapping[str, Any]) -> Call:
    """Return the call of an ASGI scope; one is made where no guard has made it yet."""
    state = scope.setdefault("state", {})
    if "call" not in state:
        state["call"] = Call(id="", path=scope.get("path", ""))
    call: Call = state["call"]
    return call


# ---- errors as OpenAI tells them ----


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object: {"error": {"message", "type", "param", "code"}}."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
