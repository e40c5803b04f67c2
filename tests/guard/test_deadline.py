"""Answers that take too long are given up, whether they have begun or not; what is inside is cancelled and may tidy up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from largeforge.asgi import Receive, Scope, Send, respond
from largeforge.call import call_of
from largeforge.guard.cutoff import Cutoff
from largeforge.guard.deadline import Deadline
from tests.guard.asking import CHAT, Client, answer, configured, connected, identified, scope_of, served, soon, until


class Slow:
    """An app that never ends by itself: before its answer, in a stream, or in an answer with a length."""

    def __init__(self, begins: str = "") -> None:
        self.begins = begins
        self.tidied = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self.begins:
                call_of(scope).stream = self.begins == "stream"
                kind = b"text/event-stream" if self.begins == "stream" else b"application/json"
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
                await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)  # what closes a connection awaits
            self.tidied += 1


def asked(app: Any, *, seconds: float | None = None, header: str | None = None) -> tuple[Client, Scope]:
    headers = {"X-Request-Timeout": header} if header is not None else {}
    scope, client = scope_of(headers=headers), Client()
    asyncio.run(asyncio.wait_for(identified(Deadline(configured("deadline", seconds=seconds), app=app))(scope, client.receive, client.send), 60))
    return client, scope


@pytest.mark.parametrize(("seconds", "header"), [(0.02, None), (None, "0.02"), (500.0, "0.02"), (0.02, "500"), (0.02, "86400")])
def test_the_shorter_one_holds(seconds: float | None, header: str | None) -> None:
    slow = Slow()
    client, scope = asked(slow, seconds=seconds, header=header)
    assert (client.status, client.error["type"], client.error["code"], slow.tidied) == (504, "timeout_error", "deadline_exceeded", 1)
    assert (call_of(scope).status, call_of(scope).error) == (504, "timeout_error")


def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    slow = Slow("stream")
    client, scope = asked(slow, seconds=0.05)
    first, second, rest = client.text.split(b"\n\n")
    assert (first, rest, client.status, slow.tidied, client.whole) == (b"data: 1", b"", 200, 1, True)
    assert json.loads(second.removeprefix(b"data: "))["error"]["type"] == "timeout_error"
    assert b"[DONE]" not in client.text
    assert (call_of(scope).status, call_of(scope).error, call_of(scope).code) == (200, "timeout_error", "deadline_exceeded")


def test_another_answer_that_has_begun_is_broken_off() -> None:
    client, scope = asked(Slow("json"), seconds=0.05)
    assert (client.whole, call_of(scope).error) == (False, "timeout_error")


def test_who_is_quick_enough_notices_nothing() -> None:
    client, _ = asked(answer, seconds=5.0, header="3")
    assert (client.status, client.text) == (200, b"2")


@pytest.mark.parametrize("header", ["", "0", "-1", "soon", "nan", "inf", "1e3", "86401", "1.2.3", "0x10", "9" * 400, "1 ", "٣"])
def test_nonsense_is_refused(header: str) -> None:
    scope, client = scope_of(), Client()
    scope["headers"] = [(b"x-request-timeout", header.encode())]
    asyncio.run(identified(Deadline(configured("deadline"), app=answer))(scope, client.receive, client.send))
    assert (client.status, client.error["type"], client.error["code"]) == (400, "invalid_request_error", "invalid_header")


def test_time_spent_outside_counts() -> None:
    """A request that has used up its time in the queue is not started for long."""
    slow, client = Slow(), Client()

    async def story() -> None:
        scope = scope_of()
        call_of(scope).started -= 1000.0
        await asyncio.wait_for(Deadline(configured("deadline", seconds=900.0), app=slow)(scope, client.receive, client.send), 30)

    asyncio.run(story())
    assert client.status == 504


def test_a_failure_of_the_app_goes_through() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        asked(failing, seconds=5.0)


def test_a_cancellation_from_elsewhere_goes_through() -> None:
    async def story() -> None:
        slow, client = Slow(), Client()
        task = asyncio.ensure_future(Deadline(configured("deadline", seconds=30.0), app=slow)(scope_of(), client.receive, client.send))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (slow.tidied, client.sent) == (1, [])

    asyncio.run(story())


def test_both_at_once_is_a_cancellation() -> None:
    """The time is up and somebody cancels before the task has run again: asked to end, it ends (Python 3.11 and later)."""

    async def story() -> None:
        async def block() -> None:
            with Cutoff(3600) as cutoff:
                cutoffs.append(cutoff)
                await asyncio.sleep(3600)

        cutoffs: list[Cutoff] = []
        task = asyncio.ensure_future(block())
        await soon(lambda: cutoffs)
        cutoffs[0]._pass()
        if hasattr(task, "uncancel"):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task

    asyncio.run(story())


def test_a_cutoff_leaves_nothing_behind() -> None:
    """What comes after the block is not cancelled, and the task does not count as cancelled."""

    async def story() -> None:
        with Cutoff(0.01) as cutoff:
            await asyncio.sleep(3600)
        assert cutoff.passed
        with Cutoff(0.01) as second:
            pass
        await asyncio.sleep(0.03)
        assert not second.passed
        task: Any = asyncio.current_task()
        assert getattr(task, "cancelling", lambda: 0)() == 0

    asyncio.run(story())


def test_a_client_that_does_not_read_is_given_up() -> None:
    """A stream nobody reads fills the buffers; at the deadline the app is free again, though not even the error event gets through."""
    ended = []

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).stream = True
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
            while True:
                await send({"type": "http.response.body", "body": b"data: x\n\n" * 10_000, "more_body": True})
        finally:
            ended.append(True)

    done = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        await guard(scope, receive, send)
        done.append(call_of(scope).error)

    guard = Deadline(configured("deadline", seconds=0.5), app=flood)
    with served(identified(watched)) as port, connected(port) as socket:
        socket.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        until(lambda: done)
        assert (ended, done) == ([True], ["timeout_error"])


def test_what_does_not_generate_has_no_deadline() -> None:
    async def slowish(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await respond(send, 200, b"")

    client = Client()
    guard = Deadline(configured("deadline", seconds=0.01), app=slowish)
    asyncio.run(guard(scope_of("/v1/models", method="GET"), client.receive, client.send))
    assert client.status == 200
