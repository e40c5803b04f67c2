"""Calls into an app of the same process: what is read, who waits for whom, and what leaving does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from largeforge.asgi import App, Receive, Scope, Send, respond
from largeforge.serve import inner
from largeforge.serve.inner import CutShort, call, events, of_request, status_of

from .fake_completions import USAGE, FakeCompletions, until

CHAT = "/v1/chat/completions"


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run a story, then see that it left no task behind."""

    async def main() -> None:
        await asyncio.wait_for(story(), 30)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def asked(app: App, *, model: str = "words", headers: Any = (), **fields: Any) -> Any:
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields})
    return call(app, path=CHAT, body=body, headers=headers, client=("127.0.0.1", 5), transport="websocket")


def test_a_whole_answer() -> None:
    async def story() -> None:
        app = FakeCompletions()
        async with asked(app, headers=[(b"x-api-key", b"k")]) as reply:
            assert (reply.status, reply.streams, reply.header(b"x-request-id")) == (200, False, "r-1")
            assert orjson.loads(await reply.body())["usage"] == USAGE
        assert app.left == 0 and app.headers()["x-api-key"] == "k"
        assert app.scopes[0]["state"]["transport"] == "websocket" and app.scopes[0]["client"] == ("127.0.0.1", 5)

    run(story)


def test_a_stream_is_split_into_events() -> None:
    async def story() -> None:
        async with asked(FakeCompletions(), stream=True) as reply:
            assert reply.streams
            found = [orjson.loads(data) async for data in events(reply.chunks())]
        assert "".join(choice["delta"].get("content", "") for one in found for choice in one["choices"]) == "Once upon a time é"

    run(story)


def test_events_are_found_however_the_bytes_are_cut() -> None:
    stream = 'data: {"a": "é"}\n\n: a comment\nevent: x\ndata:{"b":2}\r\n\r\ndata: {"c": "[DONE]"}\n\ndata: [DONE]\n\ndata: {"d":4}\n\n'.encode()

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(stream), size):
            yield stream[start : start + size]

    async def story() -> None:
        for size in range(1, len(stream) + 1):
            assert [orjson.loads(data) async for data in events(pieces(size))] == [{"a": "é"}, {"b": 2}, {"c": "[DONE]"}]

    run(story)


def test_the_app_waits_for_a_slow_reader() -> None:
    async def story() -> None:
        app = FakeCompletions()
        async with asked(app, model="burst", stream=True) as reply:
            chunks = reply.chunks()
            for taken in range(1, 4):
                await anext(chunks)
                await asyncio.sleep(0.02)
                assert app.sent <= taken
        assert (app.left, app.active) == (1, 0)

    run(story)


@pytest.mark.parametrize("model", ["slow", "never", "burst"])
def test_leaving_stops_the_app(model: str) -> None:
    """Before the first byte, between two, and while the app waits to be read."""

    async def story() -> None:
        app = FakeCompletions()

        async def reader() -> None:
            async with asked(app, model=model, stream=True) as reply:
                async for _ in reply.chunks():
                    await asyncio.sleep(3600 if model == "burst" else 0)

        task = asyncio.ensure_future(reader())
        await until(lambda: app.sent > 0 or model == "never" and app.started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (app.left, app.active) == (1, 0)  # ended before the call did: nothing to wait for

    run(story)


def test_an_app_that_does_not_listen_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner, "GRACE_S", 0.05)
    ended: list[str] = []

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    async def story() -> None:
        async with asked(deaf) as reply:
            assert reply.status == 200
        assert ended == ["cancelled"]

    run(story)


def test_an_app_that_fails_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def story() -> None:
        for app, model in ((FakeCompletions(), "raises"), (silent, "words")):
            async with asked(app, model=model) as reply:
                assert reply.status == 500
                assert (await reply.error())["type"] == "server_error"

    with caplog.at_level(logging.ERROR):
        run(story)
    assert "a fault of ours" in caplog.text


def test_an_answer_that_ends_too_early_is_not_taken_for_a_whole_one() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async def story() -> None:
        async with asked(breaks) as reply:
            with pytest.raises(CutShort):
                await reply.body()
        async with asked(FakeCompletions(), model="cut", stream=True) as reply:
            with pytest.raises(CutShort, match="DONE"):
                async for _ in events(reply.chunks()):
                    pass

    run(story)


def test_errors_are_openais_whoever_wrote_them() -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 404, b"<h1>nothing</h1>", content_type=b"text/html")

    async def story() -> None:
        async with asked(FakeCompletions(), model="refuses") as reply:
            assert (reply.status, reply.header(b"retry-after")) == (429, "7")
            assert await reply.error() == {"message": "Too many requests.", "type": "rate_limit_error", "param": None, "code": None}
        async with asked(plain) as reply:
            assert (await reply.error())["type"] == "invalid_request_error"

    run(story)
    assert status_of({"type": "timeout_error"}) == 504 and status_of({"code": 503}) == 503 and status_of({"code": "x"}) == 500


def test_what_a_handshake_says_of_its_connection_stays_there() -> None:
    shown = [(b"authorization", b"Bearer k"), (b"x-priority", b"2"), (b"host", b"h")]
    hidden = [(b"upgrade", b"websocket"), (b"sec-websocket-key", b"x"), (b"connection", b"Upgrade"), (b"x-request-id", b"1"), (b"content-length", b"9")]
    assert of_request([*shown, *hidden]) == shown
