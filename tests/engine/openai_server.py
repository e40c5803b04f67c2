"""A small server that speaks OpenAI's chat completions, on loopback: what tests of remote engines and of generation ask.

    with OpenAIServer() as server:                       # or the fixture `openai_server`
        engine = part("engine", "remote", url=server.url)
        ...
        assert server.num_answered == 3                  # finished answers that were sent whole

By default it answers "answer to <last turn>" and counts words as tokens; `server.say = lambda payload: "..."` says something
else. What shall go wrong is in `server.trouble`: one `Trouble` (or None) for each request to come, in the order they come;
`server.always` is for those that find the list empty. `delay_s` holds every answer back, `api_key` is asked for,
`per_second` refuses what is more with 429. `asked` are the payloads of all requests, those that fail too; `answered` those
of finished answers; `most_at_once` how many were open together.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from largeforge.chat import ChatRequest, Message


@dataclass
class Trouble:
    """What goes wrong with one request.

    Args:
        status: answered instead of 200.
        headers: of that answer: {"Retry-After": "2"}.
        body: sent as it is instead of an answer.
        delay_s: held back so long first.
        cut: the connection is cut, after half of a stream's pieces; before anything else where it is no stream.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay_s: float = 0.0
    cut: bool = False


def echo(payload: dict[str, Any]) -> str:
    return f"answer to {payload['messages'][-1]['content']}"


class OpenAIServer:
    """Runs in a thread of its own between `__enter__` and `__exit__`."""

    def __init__(self) -> None:
        self.say: Callable[[dict[str, Any]], str] = echo
        self.trouble: deque[Trouble | None] = deque()
        self.always: Trouble | None = None
        self.delay_s = 0.0
        self.api_key = ""
        self.per_second: int | None = None
        self.models = ["tiny"]
        self.asked: list[dict[str, Any]] = []
        self.asked_at: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.url = ""
        self._open = 0
        self._let_in: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-server", daemon=True)

    @property
    def num_answered(self) -> int:
        return len(self.answered)

    @property
    def prompts(self) -> list[str]:
        """The last turn of each finished answer's request."""
        return [payload["messages"][-1]["content"] for payload in self.answered]

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.asked.append(payload)
        self.asked_at.append(time.monotonic())
        self.headers.append(dict(request.headers))
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            return await self._respond(request, payload)
        finally:
            self._open -= 1

    async def _respond(self, request: web.Request, payload: dict[str, Any]) -> web.StreamResponse:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            said = request.headers.get("Authorization", "nothing")
            return web.json_response({"error": {"message": f"Incorrect API key provided: {said}."}}, status=401)
        now = time.monotonic()
        self._let_in = [at for at in self._let_in if at > now - 1]
        if self.per_second is not None and len(self._let_in) >= self.per_second:
            return web.json_response({"error": {"message": "Too many requests"}}, status=429, headers={"Retry-After": "0.2"})
        self._let_in.append(now)
        trouble = (self.trouble.popleft() if self.trouble else self.always) or Trouble()
        await asyncio.sleep(self.delay_s + trouble.delay_s)
        if trouble.cut and not payload.get("stream"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if trouble.status != 200 or trouble.body is not None:
            return web.Response(status=trouble.status, headers=trouble.headers, text=trouble.body or "", content_type="application/json")
        text, reason, usage = self._answer(payload)
        if payload.get("stream"):
            return await self._stream(request, payload, text, reason, usage, trouble)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        response = web.json_response({"id": "x", "object": "chat.completion", "model": payload["model"], "choices": [choice], "usage": usage})
        await response.prepare(request)
        await response.write_eof()
        self.answered.append(payload)
        return response

    def _answer(self, payload: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
        words = self.say(payload).split(" ")
        said = words[: payload["max_tokens"]]
        prompt = sum(len(message["content"].split()) for message in payload["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": len(said), "total_tokens": prompt + len(said)}
        return " ".join(said), "length" if len(said) < len(words) else "stop", usage

    async def _stream(
        self, request: web.Request, payload: dict[str, Any], text: str, reason: str, usage: dict[str, int], trouble: Trouble
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(choices: list[Any], **more: Any) -> None:
            await response.write(b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": choices, **more}).encode() + b"\n\n")

        await response.write(b": a comment that keeps the connection alive\n\n")
        await send([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        pieces = [f" {word}" if place else word for place, word in enumerate(text.split(" "))]
        for place, piece in enumerate(pieces):
            if trouble.cut and place >= len(pieces) // 2:
                assert request.transport is not None
                request.transport.abort()
                return response
            await send([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        await send([{"index": 0, "delta": {}, "finish_reason": reason}])
        if payload.get("stream_options", {}).get("include_usage"):
            await send([], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        self.answered.append(payload)
        return response


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    """A server on loopback for one test. Elsewhere: `from tests.engine.openai_server import openai_server  # noqa: F401`."""
    with OpenAIServer() as server:
        yield server


def questions(count: int) -> Iterator[ChatRequest]:
    """So many requests; every fifth is like the one before, asked again."""
    return (ChatRequest((Message("user", f"question {number - number % 5 // 4}"),), max_tokens=9, seed=number // 5) for number in range(count))
