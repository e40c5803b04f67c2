"""How many are answered at once, who waits, who is refused, and that no place is ever lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from largeforge.asgi import Message, Receive, Scope, Send, respond
from largeforge.call import call_of
from largeforge.guard.body_limit import BodyLimit
from largeforge.guard.concurrency import Concurrency
from tests.guard.asking import CHAT, Client, ask, configured, connected, identified, key, read_answer, scope_of, served, soon, until


class Busy:
    """An app that answers when it is told to."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.order: list[str] = []
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.order.append(call_of(scope).owner)
        try:
            self.bodies.append((await receive()).get("body", b""))
            await self.go_on.acquire()
            await respond(send, 200, b"done")
        finally:
            self.inside -= 1

    def finish(self, count: int) -> None:
        for _ in range(count):
            self.go_on.release()


def guarded(**changes: Any) -> tuple[Concurrency, Busy]:
    busy = Busy()
    return Concurrency(configured("concurrency", **changes), app=busy), busy


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))


def test_so_many_at_once_and_the_others_wait() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=3)
        clients = [Client(body=(b"%d" % number,)) for number in range(10)]
        tasks = [asyncio.ensure_future(ask(guard, client=client)) for client in clients]
        await soon(lambda: guard.waiting == 7)
        assert (guard.active, busy.inside) == (3, 3)
        busy.finish(10)
        await asyncio.gather(*tasks)
        assert busy.most == 3
        assert [client.status for client in clients] == [200] * 10
        assert sorted(busy.bodies) == [b"%d" % number for number in range(10)], "a body was lost in the queue"
        assert (guard.active, guard.waiting) == (0, 0)

    run(story)


def test_a_full_queue_says_so_and_when_to_come_again() -> None:
    """Proves SYS-SEC-004: beyond its places and its queue the server takes nothing."""

    async def story() -> None:
        guard, busy = guarded(max_active=1, max_waiting=2)
        tasks = [asyncio.ensure_future(ask(guard)) for _ in range(3)]
        await soon(lambda: guard.waiting == 2)
        refused = await ask(guard)
        assert (refused.status, refused.error["type"], refused.error["code"]) == (503, "overloaded_error", "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        busy.finish(3)
        assert {client.status for client in await asyncio.gather(*tasks)} == {200}
        busy.finish(1)
        assert (await ask(guard)).status == 200

    run(story)


def test_one_key_cannot_take_the_whole_queue() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1, max_waiting=100, max_waiting_per_key=2)
        tasks = [asyncio.ensure_future(ask(guard, owner=key(1))) for _ in range(3)]
        await soon(lambda: guard.waiting == 2)
        refused = await ask(guard, owner=key(1))
        assert (refused.status, refused.error["type"], refused.error["code"]) == (429, "rate_limit_error", "queue_full_for_key")
        assert int(refused.headers["retry-after"]) >= 1
        tasks.append(asyncio.ensure_future(ask(guard, owner=key(2))))
        await soon(lambda: guard.waiting == 3)
        busy.finish(4)
        assert {client.status for client in await asyncio.gather(*tasks)} == {200}

    run(story)


async def order_of(owners: list[Any], **changes: Any) -> list[str]:
    """Whose requests were answered, in order, where they all wait for one place."""
    guard, busy = guarded(max_active=1, **changes)
    first = asyncio.ensure_future(ask(guard, owner=key(99)))
    await soon(lambda: guard.active == 1)
    tasks = []
    for owner in owners:
        tasks.append(asyncio.ensure_future(ask(guard, owner=owner)))
        await soon(lambda: guard.waiting == len(tasks))
    busy.finish(len(owners) + 1)
    await asyncio.gather(first, *tasks)
    return busy.order[1:]


def test_fairness_changes_who_is_served() -> None:
    """20 requests of one key wait before 4 of another: with turns the other's are done among the first 8, without them they are last."""

    async def story() -> None:
        flood = [key(1)] * 20 + [key(2)] * 4
        assert Counter((await order_of(flood, fair=True))[:8]) == {"1": 4, "2": 4}
        assert (await order_of(flood, fair=False))[-4:] == ["2"] * 4

    run(story)


def test_priorities_change_who_is_served() -> None:
    async def story() -> None:
        keys = [key(1), key(2, priority=5)] * 6
        assert (await order_of(keys, priorities=True)) == ["2"] * 6 + ["1"] * 6
        assert (await order_of(keys, priorities=False)) == ["1", "2"] * 6

    run(story)


@pytest.mark.parametrize(("header", "first"), [("-1", "other"), ("0", "asked"), ("100", "asked")])
def test_a_header_may_lower_a_priority_and_never_raise_it(header: str, first: str) -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1, fair=False)
        tasks = [asyncio.ensure_future(ask(guard, owner=key(99)))]
        await soon(lambda: guard.active == 1)
        tasks.append(asyncio.ensure_future(ask(guard, owner=key(1), headers={"X-Priority": header})))
        await soon(lambda: guard.waiting == 1)
        tasks.append(asyncio.ensure_future(ask(guard, owner=key(2))))
        await soon(lambda: guard.waiting == 2)
        busy.finish(3)
        await asyncio.gather(*tasks)
        assert busy.order[1] == {"asked": "1", "other": "2"}[first]

    run(story)


@pytest.mark.parametrize("header", ["", "high", "1.5", "101", "-101", "9" * 400, "1 2", "²"])
def test_nonsense_of_a_priority_is_refused(header: str) -> None:
    async def story() -> None:
        guard, _ = guarded()
        refused = Client()
        scope = scope_of()
        scope["headers"] = [(b"x-priority", header.encode("latin-1"))]
        await guard(scope, refused.receive, refused.send)
        assert (refused.status, refused.error["code"], guard.active) == (400, "invalid_header", 0)

    run(story)


def test_who_leaves_while_waiting_leaves_the_queue() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1)
        first = asyncio.ensure_future(ask(guard))
        await soon(lambda: guard.active == 1)
        client, scope = Client(), scope_of()
        waiting = asyncio.ensure_future(guard(scope, client.receive, client.send))
        await soon(lambda: guard.waiting == 1)
        client.left.set()
        await waiting
        assert (guard.waiting, client.sent, call_of(scope).status) == (0, [], 499)
        busy.finish(1)
        await first
        assert (len(busy.order), guard.active) == (1, 0)

    run(story)


def test_waiting_has_an_end() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1, max_wait_s=0.05)
        first = asyncio.ensure_future(ask(guard))
        await soon(lambda: guard.active == 1)
        refused = await ask(guard)
        assert (refused.status, refused.error["code"], guard.waiting) == (503, "waited_too_long", 0)
        assert int(refused.headers["retry-after"]) >= 1
        busy.finish(1)
        assert (await first).status == 200

    run(story)


def test_the_call_knows_how_long_it_waited() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1)
        first = asyncio.ensure_future(ask(guard))
        await soon(lambda: guard.active == 1)
        client, scope = Client(), scope_of()
        waiting = asyncio.ensure_future(guard(scope, client.receive, client.send))
        await soon(lambda: guard.waiting == 1)
        await asyncio.sleep(0.05)
        busy.finish(2)
        await asyncio.gather(first, waiting)
        assert call_of(scope).queued_s >= 0.04

    run(story)


def test_draining_refuses_what_comes_and_finishes_what_is_there() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1)
        tasks = [asyncio.ensure_future(ask(guard)) for _ in range(2)]
        await soon(lambda: guard.waiting == 1)
        guard.drain()
        emptied = asyncio.ensure_future(guard.empty())
        refused = await ask(guard)
        assert (refused.status, refused.error["code"], "retry-after" in refused.headers) == (503, "draining", True)
        socket = await ask(guard, "/v1/ws", kind="websocket")
        assert socket.sent == [{"type": "websocket.close", "code": 4503, "reason": "The server is stopping and takes no more requests."}]
        assert not emptied.done()
        busy.finish(2)
        assert [client.status for client in await asyncio.gather(*tasks)] == [200, 200]
        await emptied

    run(story)


def test_what_does_not_generate_takes_no_place() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1, max_waiting=0)
        taken = asyncio.ensure_future(ask(guard))
        await soon(lambda: guard.active == 1)
        others = [ask(guard, "/v1/models", method="GET"), ask(guard, "/health", method="GET"), ask(guard, "/v1/ws", kind="websocket"), ask(guard, method="GET")]
        tasks = [asyncio.ensure_future(other) for other in others]
        await soon(lambda: busy.inside == 5)
        assert guard.active == 1
        busy.finish(5)
        await asyncio.gather(taken, *tasks)

    run(story)


@pytest.mark.parametrize("seed", range(6))
def test_no_place_is_lost_whatever_happens(seed: int) -> None:
    """Requests that end well, raise, are cancelled, go away, or run out of time, at any moment: afterwards every place is there."""

    async def story() -> None:
        chance = random.Random(seed)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.2:
                    raise OSError("on purpose")
                await respond(send, 200, b"")
            finally:
                inside -= 1

        inside = most = 0
        guard = Concurrency(configured("concurrency", max_active=3, max_waiting=20, max_wait_s=0.002 if seed % 2 else 5.0), app=app)
        ended: Counter[str] = Counter()

        async def one() -> None:
            client = Client()
            task = asyncio.ensure_future(ask(guard, client=client, owner=key(chance.randrange(4), priority=chance.randrange(3))))
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            what = chance.random()
            if what < 0.2:
                task.cancel()
            elif what < 0.4:
                client.left.set()
            try:
                await task
                ended[str(client.status)] += 1
            except OSError:
                ended["raised"] += 1
            except asyncio.CancelledError:
                ended["cancelled"] += 1

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(60)))
        assert most == 3
        assert {"200", "503", "raised", "cancelled", "0"} <= set(ended), ended
        assert (guard.active, guard.waiting, inside) == (0, 0, 0)
        places = [guard.turns.ask("", 0) for _ in range(3)]
        assert all(place.state == "active" for place in places)

    run(story)


def test_cancelled_in_the_moment_its_turn_comes() -> None:
    """The place has been given, and the task is cancelled before it runs again: the next one has it."""

    async def story() -> None:
        guard, busy = guarded(max_active=1)
        tasks = [asyncio.ensure_future(ask(guard)) for _ in range(3)]
        await soon(lambda: guard.waiting == 2)
        given = next(iter(guard.turns._levels[0].waiting))
        busy.finish(1)
        await soon(lambda: given.state == "active")
        tasks[1].cancel()
        busy.finish(1)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.cancelled() for task in tasks] == [False, True, False]
        assert (guard.active, guard.waiting) == (0, 0)

    run(story)


def test_a_failure_to_receive_is_no_leaving() -> None:
    async def story() -> None:
        guard, busy = guarded(max_active=1)
        first = asyncio.ensure_future(ask(guard))
        await soon(lambda: guard.active == 1)

        async def failing() -> Message:
            raise OSError("broken")

        with pytest.raises(OSError, match="broken"):
            await guard(scope_of(), failing, Client().send)
        busy.finish(1)
        await first
        assert (guard.active, guard.waiting) == (0, 0)

    run(story)


def test_over_a_real_server_who_hangs_up_leaves_the_queue() -> None:
    """One connection is answered, one waits and hangs up, a third waits and is answered next."""
    go_on = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while not go_on:
            await asyncio.sleep(0.002)
        await respond(send, 200, message["body"])

    guard = Concurrency(configured("concurrency", max_active=1), app=app)
    stack = identified(BodyLimit(configured("body_limit"), app=guard))

    def post(body: bytes) -> bytes:
        return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)

    with served(stack) as port, connected(port) as first, connected(port) as second, connected(port) as third:
        first.sendall(post(b"first"))
        until(lambda: guard.active == 1)
        second.sendall(post(b"second"))
        until(lambda: guard.waiting == 1)
        third.sendall(post(b"third"))
        until(lambda: guard.waiting == 2)
        second.close()
        until(lambda: guard.waiting == 1)
        go_on.append(True)
        assert read_answer(first).endswith(b"\r\n\r\nfirst")
        assert read_answer(third).endswith(b"\r\n\r\nthird")
        until(lambda: (guard.active, guard.waiting) == (0, 0))
