"""The wire of OpenAI's chat completions: what a server's bytes mean, and what is wrong with them.

Sends nothing and waits for nothing but bytes; knows nothing about retries or keys.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from largeforge.chat import Answer, ChatRequest, Delta, FinishReason, Usage
from largeforge.errors import EngineError, InputError

if TYPE_CHECKING:
    import aiohttp

LARGEST_BODY = 64 * 2**20  # bytes: no answer is larger, a broken server's may be
LARGEST_EVENT = 2**20
SHOWN = 300  # letters of a server's complaint that a user is shown
LETTERS_PER_TOKEN = 4  # of English text, roughly: only the pace is reserved by it, and corrected once the server has counted


class BrokenOff(Exception):
    """A stream that ended before its answer did."""


def base_url(url: str) -> str:
    """Return what `/chat/completions` is put after. Raises InputError.

    "http://localhost:8000" means "http://localhost:8000/v1", as servers print their address.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"engine.url={shown_url(url)} is no URL of a server.", next_step="engine.url=http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise InputError(
            f"engine.url={shown_url(url)} came with a password, which every config.yaml would show.", next_step="LARGEFORGE_ENGINE__API_KEY=<the key>"
        )
    if parts.query or parts.fragment:
        raise InputError(f"engine.url={shown_url(url)}?... has more than a path.", next_step=f"engine.url={shown_url(url)}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def shown_url(url: str) -> str:
    """A URL without a password, query or fragment."""
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def estimated_tokens(request: ChatRequest) -> int:
    """Return how many tokens a request may take, prompt and answer, before anybody has counted."""
    return sum(len(message.content) for message in request.messages) // LETTERS_PER_TOKEN + request.max_tokens


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that Retry-After asks for (a number or a date), 0 where it says nothing that can be read."""
    said = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    when = when if when.tzinfo is not None else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    """Read a whole body. Raises EngineError where it is larger than any answer."""
    pieces, size = [], 0
    async for piece in response.content.iter_chunked(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_BODY:
            raise EngineError(f"The server sent more than {LARGEST_BODY >> 20} MiB for one answer.", reason="malformed")
    return b"".join(pieces)


def complaint(body: bytes) -> str:
    """Return what a server says is wrong, in one line: error.message, detail, message, or the text itself."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    if isinstance(found, dict):
        error = found.get("error", found.get("detail", found.get("message", found)))
        found = error.get("message", error) if isinstance(error, dict) else error
    line = " ".join((found if isinstance(found, str) else json.dumps(found)).split())
    return line[:SHOWN].rstrip(".")


def answer_of(body: bytes, *, who: str) -> Answer:
    """Read a whole answer; an empty text is one. Raises EngineError, "malformed" or (filtered) "refused"."""
    found = _object(body, who)
    choice = _choice(found, who)
    message = choice.get("message") if choice is not None else None
    if choice is None or not isinstance(message, dict):
        raise malformed(who, "no choices[0].message", body)
    text = _text(message.get("content"), who, body)
    reason = _reason(choice.get("finish_reason"), who, body)
    usage = _usage(found)
    if reason is None or usage is None:
        raise malformed(who, "no finish_reason" if reason is None else "no usage", body)
    return Answer(text, reason, usage)


async def deltas_of(response: aiohttp.ClientResponse, *, who: str) -> AsyncIterator[Delta]:
    """Read a stream of server-sent events: pieces of text, then one with reason and usage.

    Raises:
        BrokenOff: it ended, or the server said that it cannot go on, before the answer was whole.
        EngineError: what came is none ("malformed"), or was filtered ("refused").
    """
    reason: FinishReason | None = None
    usage: Usage | None = None
    async for event in _events(response, who):
        found = _object(event, who)
        if "error" in found:
            raise BrokenOff(complaint(event))
        usage = _usage(found) or usage
        choice = _choice(found, who, may_lack=True)
        if choice is None:
            continue
        reason = _reason(choice.get("finish_reason"), who, event) or reason
        delta = choice.get("delta")
        text = _text(delta.get("content"), who, event) if isinstance(delta, dict) else ""
        if text:
            yield Delta(text)
    if reason is None:
        raise BrokenOff("the connection ended before the answer did")
    if usage is None:
        raise malformed(who, "a stream without usage, though stream_options asked for it", b"")
    yield Delta("", finish_reason=reason, usage=usage)


async def _events(response: aiohttp.ClientResponse, who: str) -> AsyncIterator[bytes]:
    """Yield the data of each event, up to [DONE] or the end of the stream."""
    left = b""
    async for piece in response.content.iter_any():
        *lines, left = (left + piece).split(b"\n")
        if len(left) > LARGEST_EVENT:
            raise malformed(who, f"an event of over {LARGEST_EVENT >> 20} MiB", b"")
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # comments that keep a connection alive, names of events
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield data


def first_model(body: bytes, *, who: str) -> str:
    """Return the first model that a server lists. Raises EngineError."""
    listed = _object(body, who).get("data")
    first = listed[0] if isinstance(listed, list) and listed else None
    name = first.get("id") if isinstance(first, dict) else None
    if not isinstance(name, str) or not name:
        raise EngineError(f"{who} lists no model.", reason="malformed", next_step="engine.model=<its name there>")
    return name


def malformed(who: str, why: str, body: bytes) -> EngineError:
    """The error for an answer that is none, with the beginning of what came."""
    came = f": {body[:SHOWN].decode('utf-8', 'replace')}" if body else ""
    return EngineError(f"{who} sent a malformed answer ({why}){came}", reason="malformed")


def _object(body: bytes, who: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise malformed(who, "no JSON", body) from fault
    if not isinstance(found, dict):
        raise malformed(who, "no JSON object", body)
    return found


def _choice(found: dict[str, Any], who: str, *, may_lack: bool = False) -> dict[str, Any] | None:
    choices = found.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    if may_lack and choices in ([], None):
        return None
    raise malformed(who, "no choices", json.dumps(found).encode())


def _text(said: Any, who: str, body: bytes) -> str:
    """The text of an answer or a piece of it; null is empty."""
    if said is None:
        return ""
    if not isinstance(said, str):
        raise malformed(who, "content is no text", body)
    try:
        said.encode()
    except UnicodeEncodeError as fault:
        raise malformed(who, "content has half a character", body) from fault
    return said


def _reason(said: Any, who: str, body: bytes) -> FinishReason | None:
    if said == "content_filter":
        raise EngineError(f"{who} filtered the answer.", reason="refused")
    if said is None or said == "stop" or said == "length":
        reason: FinishReason | None = said
        return reason
    raise malformed(who, f"finish_reason is {str(said)[:40]!r}", body)


def _usage(found: dict[str, Any]) -> Usage | None:
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    prompt, completion = (count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None for count in counts)
    return None if prompt is None or completion is None else Usage(prompt, completion)
