"""All guards one in the other, as task=serve has them: what they make of each other, on every transport, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from largeforge.asgi import App, Receive, Scope, Send, respond
from largeforge.call import call_of
from largeforge.guard.access_log import AccessLog
from largeforge.guard.body_limit import BodyLimit
from largeforge.guard.concurrency import Concurrency
from largeforge.guard.deadline import Deadline
from largeforge.guard.meters import Meters
from largeforge.guard.metrics import Metrics
from largeforge.guard.rate import Rate
from tests.guard.asking import CHAT, Client, configured, connected, identified, key, read_all, scope_of, served, soon
from tests.guard.test_access_log import written_to
from tests.guard.test_metrics import read


class Stack:
    """Every guard; `limits` says what is not as in the YAML."""

    def __init__(self, app: App, **limits: dict[str, Any]) -> None:
        self.meters = Meters(["nano"])
        self.concurrency = Concurrency(configured("concurrency", **limits.get("concurrency", {})), app=app)
        self.deadline = Deadline(configured("deadline", **limits.get("deadline", {})), app=self.concurrency)
        self.rate = Rate(configured("rate", **limits.get("rate", {})), app=self.deadline)
        body = BodyLimit(configured("body_limit", **limits.get("body_limit", {})), app=self.rate)
        metrics = Metrics(configured("metrics"), app=body, meters=self.meters)
        self.app = identified(AccessLog(configured("access_log"), app=metrics), key(7))
        self.meters.queue_depth.set_function(lambda: self.concurrency.waiting)

    async def ask(self, client: Client | None = None, **asked: Any) -> Client:
        client = client or Client()
        await self.app(scope_of(**asked), client.receive, client.send)
        return client


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers with a stream of the words of the body, as a handler of the door does."""
    body = (await receive())["body"].decode()
    call = call_of(scope)
    call.model, call.stream = "nano", True
    if "fail" in body:
        raise ZeroDivisionError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for word in body.split():
        call.last_token_at = asyncio.get_running_loop().time()
        call.first_token_at = call.first_token_at or call.last_token_at
        call.num_pieces += 1
        await send({"type": "http.response.body", "body": f"data: {word}\n\n".encode(), "more_body": True})
        await asyncio.sleep(0)
        if "break" in word:
            raise ZeroDivisionError
        if "hang" in word:
            await asyncio.sleep(3600)
    call.prompt_tokens, call.completion_tokens, call.finish_reason = 3, len(body.split()), "stop"
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def test_over_a_real_server_all_of_them_agree(tmp_path: Path) -> None:
    """The answer's id, the log line and the metrics tell of the same request."""
    stack = Stack(streaming, rate={"requests_per_minute": 100})
    with written_to(tmp_path / "log.jsonl"), served(stack.app) as port, connected(port) as socket:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Request-ID: seen\r\nConnection: close\r\nContent-Length: 11\r\n\r\n"
        socket.sendall(head.encode() + b"hello there")
        told = read_all(socket).lower()
    assert b"\r\nx-request-id: seen\r\n" in told
    assert b"\r\nx-ratelimit-remaining-requests: 99\r\n" in told
    assert told.count(b"data: ") == 3
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {name: line[name] for name in ("request_id", "status", "stream", "prompt_tokens", "completion_tokens", "finish_reason", "key")} == {
        **{"request_id": "seen", "status": 200, "stream": True, "prompt_tokens": 3, "completion_tokens": 2, "finish_reason": "stop", "key": "lf-7"}
    }
    assert line["ttft_ms"] is not None
    told_metrics = read(stack.meters)
    assert told_metrics["tokens_generated_total{model=nano}"] == 2
    assert told_metrics[f"inference_requests_total{{route={CHAT},status=200,transport=http}}"] == 1


@pytest.mark.parametrize("transport", ["http", "websocket", "grpc"])
def test_every_transport_meets_the_same_limits(transport: str) -> None:
    """One owner's requests are counted together however they come, and refused in the same words."""
    stack = Stack(streaming, rate={"requests_per_minute": 3}, body_limit={"max_bytes": 20})
    state = {"transport": transport} if transport != "http" else {}

    async def story() -> list[Client]:
        for other in ({}, {"transport": "websocket"}, {"transport": "grpc"}):
            assert (await stack.ask(**other)).status == 200
        return [await stack.ask(**state), await stack.ask(Client(body=(b"x" * 21,)), **state)]

    limited, large = asyncio.run(story())
    assert (limited.status, limited.error["code"], limited.headers["retry-after"]) == (429, "rate_limit_exceeded", "20")
    assert (large.status, large.error["code"]) == (413, "body_too_large")
    told = read(stack.meters)
    assert told[f"inference_requests_total{{route={CHAT},status=429,transport={transport}}}"] == 1
    assert told[f"inference_requests_total{{route={CHAT},status=413,transport={transport}}}"] == 1


def test_a_deadline_that_passes_in_the_queue_leaves_it() -> None:
    async def story() -> None:
        stack = Stack(streaming, concurrency={"max_active": 1})
        first = asyncio.ensure_future(stack.ask(Client(body=(b"hang",))))
        await soon(lambda: stack.concurrency.active == 1)
        second = await stack.ask(headers={"X-Request-Timeout": "0.05"})
        assert (second.status, second.error["code"], stack.concurrency.waiting) == (504, "deadline_exceeded", 0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await stack.ask(Client(body=(b"one",)))).status == 200
        assert read(stack.meters)["requests_rejected_total{reason=deadline_exceeded}"] == 1

    asyncio.run(story())


def test_the_queue_can_be_watched() -> None:
    async def story() -> None:
        stack = Stack(streaming, concurrency={"max_active": 2})
        tasks = [asyncio.ensure_future(stack.ask(Client(body=(b"hang",)))) for _ in range(5)]
        await soon(lambda: stack.concurrency.waiting == 3)
        told = read(stack.meters)
        assert (told["active_requests"], told["queue_depth"]) == (5, 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        told = read(stack.meters)
        assert (told["active_requests"], told["queue_depth"]) == (0, 0)
        assert told[f"inference_requests_total{{route={CHAT},status=499,transport=http}}"] == 5

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_passes_through(kind: str) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        if kind == "websocket":
            await send({"type": "websocket.accept"})

    client = Client()
    scope = scope_of("/v1/ws", kind=kind)
    asyncio.run(Stack(app, rate={"requests_per_minute": 1}).app(scope, client.receive, client.send))
    assert seen == [kind]


def test_thousands_of_requests_of_every_fate_leave_nothing_behind() -> None:
    """Answered, failed, broken, refused, too slow, gone, cancelled: then every table is as empty and every metric as wide as before."""
    logging.getLogger("largeforge.access").setLevel(logging.CRITICAL)
    fates: Counter[str] = Counter()

    async def one(stack: Stack, chance: random.Random) -> None:
        body = chance.choice((b"a b c", b"a b c", b"fail", b"a break", b"a hang", b"x" * 101, None))
        client = Client(body=(body,))
        headers = {"X-Request-Timeout": f"{chance.uniform(0.001, 0.02):.4f}"} if body == b"a hang" else {}
        task = asyncio.ensure_future(stack.ask(client, path=chance.choice((CHAT, "/v1/completions")), headers=headers))
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        what = chance.random()
        if what < 0.1:
            task.cancel()
        elif what < 0.2 or body is None:
            client.left.set()
        await asyncio.gather(task, return_exceptions=True)
        fates["cancelled" if task.cancelled() else str(client.status)] += 1

    async def story() -> None:
        stack = Stack(streaming, concurrency={"max_active": 4, "max_waiting": 12}, rate={"tokens_per_minute": 10**9}, body_limit={"max_bytes": 100})
        tasks = asyncio.all_tasks()
        chance = random.Random(1)
        series: set[str] = set()
        objects = 0
        for turn in range(60):
            await asyncio.gather(*(one(stack, chance) for _ in range(50)))
            if turn == 29:
                gc.collect()
                series, objects = set(read(stack.meters)), len(gc.get_objects())
        gc.collect()
        assert len(gc.get_objects()) - objects < 500, "something grows"
        assert set(read(stack.meters)) == series
        turns = stack.concurrency.turns
        assert (turns.active, turns.waiting, turns._levels, turns._waiting_of, stack.meters.num_active) == (0, 0, {}, {}, 0)
        assert stack.rate.num_remembered <= 1
        assert asyncio.all_tasks() == tasks
        assert {"200", "413", "500", "503", "504", "0", "cancelled"} <= set(fates), fates

    try:
        asyncio.run(asyncio.wait_for(story(), 120))
    finally:
        logging.getLogger("largeforge.access").setLevel(logging.NOTSET)


def test_a_whole_burst_waits_and_is_answered() -> None:
    """A thousand at once against ten places: all are answered, never more than ten at a time (SR-NF-012's share of the door's queue)."""

    async def story() -> None:
        inside = most = 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            await respond(send, 200, b"")

        stack = Stack(app, concurrency={"max_active": 10})
        clients = await asyncio.gather(*(stack.ask() for _ in range(1000)))
        assert {client.status for client in clients} == {200}
        assert most == 10

    asyncio.run(story())
