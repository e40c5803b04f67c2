"""A small ASGI app that answers OpenAI's completions with words, counts what it sent and sees who leaves: what transports are tested with.

The model's name says how: "words" answers word after word, "slow" one every 20 ms without an end, "never" says nothing at all,
"burst" answers without a pause or an end, "breaks" ends in an error event, "cut" ends without [DONE], "raises" raises, "refuses" answers 429,
"script" answers HTML that must not run, "halves" all its words in two pieces with a pause between.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson

from largeforge.asgi import Message, Receive, Scope, Send, header, respond
from largeforge.call import error_body

SCRIPT = '<script>window.ran = 1</script><img src="x" onerror="window.ran = 2"> & done'
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
WORDS = ["Once", " upon", " a", " time", " é"]


@dataclass
class FakeCompletions:
    """Counts.

    Args:
        key: that requests must show; "" is none.
        started: requests that reached it.
        sent: words that it sent.
        left: requests whose client went away.
        active: requests that are being answered.
        bodies: of the requests, parsed.
        scopes: of the requests.
    """

    key: str = ""
    started: int = 0
    sent: int = 0
    left: int = 0
    active: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """Of the latest request."""
        return {name.decode(): value.decode("latin-1") for name, value in self.scopes[-1]["headers"]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.scopes.append(scope)
        if self.key and self.key not in (header(scope, b"x-api-key"), (header(scope, b"authorization") or "").removeprefix("Bearer ")):
            return await refused(send, 401, "No such key.", kind="authentication_error")
        if scope["path"] == "/v1/models":
            return await respond(send, 200, orjson.dumps({"object": "list", "data": [{"id": "words", "object": "model"}, {"id": "slow", "object": "model"}]}))
        chat = {"/v1/chat/completions": True, "/v1/completions": False}.get(scope["path"])
        if chat is None:
            return await refused(send, 404, "No such address.", kind="invalid_request_error")
        message = await receive()
        body = bytes(message["body"])
        while message.get("more_body", False):
            message = await receive()
            body += message["body"]
        asked = orjson.loads(body)
        self.bodies.append(asked)
        if asked.get("model") is None:
            return await refused(send, 400, "you must provide a model parameter", kind="invalid_request_error", param="model")
        self.started += 1
        self.active += 1
        answer = asyncio.ensure_future(self._answer(asked, chat, send))
        leave = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({answer, leave}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.left += 1
        finally:
            self.active -= 1
            for task in (answer, leave):
                task.cancel()
            await asyncio.wait({answer, leave})
        if not answer.cancelled():
            answer.result()

    async def _answer(self, asked: dict[str, Any], chat: bool, send: Send) -> None:
        model = asked["model"]
        if model == "raises":
            raise ValueError("a fault of ours")
        if model == "refuses":
            return await refused(send, 429, "Too many requests.", kind="rate_limit_error", headers=[(b"retry-after", b"7")])
        if model == "never":
            await asyncio.sleep(3600)
        head = {"id": "cmpl-1", "object": "chat.completion" if chat else "text_completion", "created": 1700000000, "model": model}
        lines = [(b"x-request-id", b"r-1")]
        if not asked.get("stream"):
            if model == "slow":
                await asyncio.sleep(3600)
            text = "".join(WORDS)
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices = [{"index": index, **said, "finish_reason": "stop", "logprobs": self._logprobs(asked, chat)} for index in range(asked.get("n", 1))]
            return await respond(send, 200, orjson.dumps({**head, "choices": choices, "usage": USAGE}), headers=lines)
        if chat:
            head["object"] = "chat.completion.chunk"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), *lines]})

        async def event(**fields: Any) -> None:
            await send({"type": "http.response.body", "body": b"data: " + orjson.dumps({**head, **fields}) + b"\n\n", "more_body": True})

        async def word(text: str) -> None:
            delta: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            await event(choices=[{"index": 0, **delta, "finish_reason": None, "logprobs": self._logprobs(asked, chat)}])
            self.sent += 1

        while model in ("slow", "burst"):
            await word(f" {self.sent}" if model == "slow" else "x" * 1000)
            if model == "slow":
                await asyncio.sleep(0.02)
        for text in {"script": [SCRIPT], "halves": ["".join(WORDS[:-1]), WORDS[-1]]}.get(model, WORDS):
            await word(text)
            if model == "halves":
                await asyncio.sleep(0.2)
        if model == "breaks":
            await event(**error_body("The engine died.", kind="server_error"))
        if model in ("breaks", "cut"):
            return await send({"type": "http.response.body", "body": b""})
        await event(choices=[{"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": "stop"}])
        if (asked.get("stream_options") or {}).get("include_usage"):
            await event(choices=[], usage=USAGE)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _logprobs(self, asked: dict[str, Any], chat: bool) -> dict[str, Any] | None:
        if not asked.get("logprobs"):
            return None
        if chat:
            return {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": [98]}]}]}
        return {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}], "text_offset": [0]}


async def _gone(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


async def refused(send: Send, status: int, message: str, *, kind: str, param: str | None = None, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await respond(send, status, orjson.dumps(error_body(message, kind=kind, param=param)), headers=headers or [])


async def until(condition: Any, *, within_s: float = 20.0) -> None:
    """Wait until `condition()` holds. Raises AssertionError where it does not in time."""
    end = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not come to pass in time"
        await asyncio.sleep(0.005)
