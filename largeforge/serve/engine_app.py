"""An engine behind OpenAI's HTTP: raw ASGI over anything that has `generate` and `load`. What an engine server of this house speaks.

Says nothing before the engine has said something, so that whoever asks may ask elsewhere while nothing was sent. A client that goes
away stops its generation. Guards stand in the door, not here: of them only the key of the door is asked for.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from largeforge.asgi import Receive, Scope, Send, header, respond
from largeforge.call import error_body
from largeforge.chat import ChatRequest, Delta, Load, TokenLogprob, Usage
from largeforge.errors import EngineError, LargeForgeError, PromptTooLong
from largeforge.serve.asking import Defaults, asked_of
from largeforge.serve.wire import CHAT, COMPLETIONS, DONE, BadRequest, Request, Writer, error_event, models_body, parse

if TYPE_CHECKING:
    from largeforge.serve.hosting import Hosting

log = logging.getLogger("largeforge.serve")
LARGEST_BODY = 256 * 2**20  # no door lets in more
STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class Gone(Exception):
    """The client went away."""


class Answering(Protocol):
    """What is served: an Engine of this process, or one at the other end of a queue (whose `load` must be awaited)."""

    def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request; `aclose()` stops it."""

    def load(self) -> Load | Awaitable[Load]:
        """How busy it is."""


@dataclass
class EngineApp:
    """The ASGI app of an engine server.

    Args:
        engine: who answers.
        name: the model's name.
        adapters: names of its adapters.
        defaults: what holds where a request does not say.
        key: what `Authorization: Bearer` must say; "" asks for none.
    """

    engine: Any
    name: str
    adapters: Sequence[str]
    defaults: Defaults
    key: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, hosting: Hosting, engine: Answering | None) -> EngineApp:
        """The app that a hosting asks for; the engine may come later."""
        return cls(engine, hosting.name, hosting.adapters, Defaults(*hosting.defaults), hosting.key)

    def learn(self, about: dict[str, Any]) -> None:
        """Take what is known of the engine once it is loaded."""
        self.about = about

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if path == "/health":
            return await respond(send, 200, b'{"status":"ready"}')
        if self.key and not hmac.compare_digest((header(scope, b"authorization") or "").encode(), f"Bearer {self.key}".encode()):
            return await _error(send, 401, "This engine server answers its door only.", code="invalid_api_key")
        if method == "GET" and path == "/v1/models":
            return await respond(send, 200, models_body([self.name, *self.adapters], created=self.created))
        if method == "GET" and path == "/stats":
            return await self._stats(send)
        if method == "GET" and path == "/pinned":
            return await respond(send, 200, orjson.dumps(self.about.get("pinned", [])))
        if method == "POST" and path == "/tokenize":
            return await self._tokenize(receive, send)
        if path not in (CHAT, COMPLETIONS):
            return await _error(send, 404, f"There is no {path} here.")
        if method != "POST":
            return await _error(send, 405, f"{path} takes POST.")
        await self._complete(scope, receive, send)

    async def _stats(self, send: Send) -> None:
        found = self.engine.load()
        load: Load = await found if inspect.isawaitable(found) else found
        told = {name: value for name, value in self.about.items() if name != "pinned"}
        await respond(send, 200, orjson.dumps({**asdict(load), **told}))

    async def _tokenize(self, receive: Receive, send: Send) -> None:
        """As vLLM's /tokenize, for conversations: token ids as the engine would read them."""
        try:
            asked = orjson.loads(await read_body(receive))
            ids = await self.engine.tokenize([{"role": str(one["role"]), "content": str(one["content"])} for one in asked["messages"]])
        except Gone:
            return
        except (ValueError, TypeError, KeyError, BadRequest):
            return await _error(send, 400, '/tokenize takes {"messages": [{"role", "content"}]}.')
        except LargeForgeError as fault:
            return await _error(send, 400, fault.message)
        await respond(send, 200, orjson.dumps({"count": len(ids), "max_model_len": self.about.get("context", 0), "tokens": ids}))

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request, _ = parse(scope["path"], await read_body(receive))
            if request.model != self.name and request.model not in self.adapters:
                raise BadRequest(f"The model '{request.model[:200]}' does not exist.", param="model", status=404, code="model_not_found")
            asked = asked_of(request, defaults=self.defaults, adapters=self.adapters)
            self._refuse_what_cannot_fit(asked)
        except BadRequest as fault:
            return await respond(send, fault.status, fault.body())
        except Gone:
            return
        answer = Answer(self.engine, request, asked, send, chat=scope["path"] == CHAT)
        task = asyncio.ensure_future(answer.give())
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _refuse_what_cannot_fit(self, asked: Sequence[ChatRequest]) -> None:
        """Raise BadRequest for a prompt that is too long whatever its tokens are.

        To count the tokens of megabytes takes seconds, in which nobody else is answered.
        """
        context, longest = self.about.get("context", 0), self.about.get("longest_token", 0)
        if not context or not longest:
            return
        for one in asked:
            if isinstance(one.prompt, tuple):
                size, most, what, param = len(one.prompt), context, "tokens", "prompt"
            elif one.prompt is not None:
                size, most, what, param = len(one.prompt), context * longest, "characters", "prompt"
            elif len(one.messages) > context:
                size, most, what, param = len(one.messages), context, "turns", "messages"
            else:
                size, most, what, param = sum(len(turn.content) for turn in one.messages), context * longest, "characters", "messages"
            if size > most:
                message = f"This prompt has {size:,} {what}; this model reads {context:,} tokens, the answer included."
                raise BadRequest(message, param=param, code=PromptTooLong.code)


class Answer:
    """One answer on its way: of one request of an engine, or of several that are asked at once."""

    def __init__(self, engine: Answering, request: Request, asked: Sequence[ChatRequest], send: Send, *, chat: bool) -> None:
        self.engine, self.request, self.asked, self.send = engine, request, asked, send
        self.writer = Writer(chat=chat, model=request.model)
        self.started = False

    async def give(self) -> None:
        """Answer, or say why not: as a response where nothing was sent yet, else as an event that ends the stream."""
        try:
            await (self._stream() if self.request.stream else self._whole())
        except EngineError as fault:
            refused = fault.reason == "refused"
            kind = "invalid_request_error" if refused else "server_error"
            await self._fail(400 if refused else 503, fault.message, kind=kind, code=fault.code or None)
        except LargeForgeError as fault:
            await self._fail(503, fault.message, kind="server_error")
        except Exception:
            log.exception("an answer failed")
            await self._fail(500, "The engine failed; its log says how.", kind="server_error")

    async def _whole(self) -> None:
        texts: list[list[str]] = [[] for _ in self.asked]
        reasons = ["stop"] * len(self.asked)
        logprobs: list[list[TokenLogprob]] = [[] for _ in self.asked]
        used: dict[int, Usage] = {}
        async with aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                texts[index].append(delta.text)
                logprobs[index].extend(delta.logprobs)
                if delta.finish_reason is not None and delta.usage is not None:
                    reasons[index] = delta.finish_reason
                    used[index] = delta.usage
        choices = [("".join(text), reason, told) for text, reason, told in zip(texts, reasons, logprobs, strict=True)]
        await respond(self.send, 200, self.writer.whole(choices, self._usage(used)))

    async def _stream(self) -> None:
        writer, send = self.writer, self.send
        offsets = [0] * len(self.asked)
        begun = [False] * len(self.asked)
        used: dict[int, Usage] = {}
        async with aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                events = b""
                if not begun[index]:
                    begun[index] = True
                    events = writer.first(index)
                if delta.text or delta.logprobs:
                    events += writer.piece(index, delta.text, delta.logprobs, offsets[index])
                    offsets[index] += len(delta.text)
                if delta.finish_reason is not None and delta.usage is not None:
                    events += writer.last(index, delta.finish_reason)
                    used[index] = delta.usage
                await self._start()
                await send({"type": "http.response.body", "body": events, "more_body": True})
        options = self.request.stream_options
        ending = writer.usage(self._usage(used)) if options is not None and options.include_usage else b""
        await self._start()
        await send({"type": "http.response.body", "body": ending + DONE})

    async def _start(self) -> None:
        if not self.started:
            self.started = True
            await self.send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})

    async def _fail(self, status: int, message: str, *, kind: str, code: str | None = None) -> None:
        if self.started:
            await self.send({"type": "http.response.body", "body": error_event(message, kind=kind, code=code)})
        else:
            param = ("messages" if self.writer.chat else "prompt") if code == PromptTooLong.code else None
            await respond(self.send, status, orjson.dumps(error_body(message, kind=kind, code=code, param=param)))

    def _usage(self, used: dict[int, Usage]) -> Usage:
        """Of all choices together; a prompt that is asked n times counts once."""
        prompts = [one for index, one in used.items() if index % (self.request.n or 1) == 0]
        return Usage(sum(one.prompt_tokens for one in prompts), sum(one.completion_tokens for one in used.values()))

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """What is said for each choice, as it comes."""
        if len(self.asked) == 1:
            async with aclosing(self.engine.generate(self.asked[0])) as deltas:
                async for delta in deltas:
                    yield 0, delta
            return
        said: asyncio.Queue[tuple[int, Delta | None, BaseException | None]] = asyncio.Queue(maxsize=4 * len(self.asked))
        tasks = [asyncio.ensure_future(_pump(self.engine.generate(one), index, said)) for index, one in enumerate(self.asked)]
        try:
            running = len(tasks)
            while running:
                index, found, fault = await said.get()
                if fault is not None:
                    raise fault
                if found is None:
                    running -= 1
                else:
                    yield index, found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(deltas: AsyncGenerator[Delta, None], index: int, said: asyncio.Queue[tuple[int, Delta | None, BaseException | None]]) -> None:
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                await said.put((index, delta, None))
        await said.put((index, None, None))
    except Exception as fault:
        await said.put((index, None, fault))


async def read_body(receive: Receive) -> bytes:
    """Return the whole body. Raises Gone where the client left before it was whole, BadRequest where it is larger than any may be."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Gone
        piece = message.get("body", b"")
        size += len(piece)
        if size > LARGEST_BODY:
            raise BadRequest("The body is too large.", status=413)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def until_gone(receive: Receive) -> None:
    """Return when the client has left; call it once the body has been read."""
    while (await receive())["type"] == "http.request":
        pass


async def _error(send: Send, status: int, message: str, code: str | None = None) -> None:
    await respond(send, status, orjson.dumps(error_body(message, kind="invalid_request_error", code=code)))
