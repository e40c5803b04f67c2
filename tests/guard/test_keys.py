"""The guard that asks for keys, over stores in SQLite and in a PostgreSQL that is killed."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from largeforge.asgi import Receive, Scope, Send, respond
from largeforge.call import OPEN_PATHS, Call, Key, call_of, digest_of
from largeforge.errors import InputError
from largeforge.guard import keys as guard_keys
from largeforge.guard.access_log import AccessLog
from largeforge.guard.keys import Keys
from largeforge.store.base import Database
from largeforge.store.config import SQLiteConfig
from largeforge.store.sqlite import SQLite
from tests.guard.asking import Client, ask, configured, scope_of, served
from tests.postgres import Postgres, running
from tests.store.conftest import postgresql

ALICE, BOB, NOBODY = (f"lf-{name:_<40}" for name in ("alice", "bob", "nobody"))


class Counting(SQLite):
    """SQLite that counts what it is asked, and may be told to take its time."""

    def __init__(self, path: Path) -> None:
        super().__init__(SQLiteConfig.model_validate({"_target_": "largeforge.store.sqlite.SQLite", "path": str(path), "busy_timeout_s": 5.0}))
        self.asked: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def find_key(self, digest: str) -> Key | None:
        self.asked.append(digest)
        assert self.go.wait(30)
        return super().find_key(digest)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def filled(store: Database) -> None:
    for secret in (ALICE, BOB):
        store.add_key(Key(0, secret[3:8].strip("_"), secret[:8], priority=len(secret)), digest=digest_of(secret))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    store = Counting(tmp_path / "store.sqlite3")
    store.open()
    filled(store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as server:
        yield server


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Says whose key it was, on both transports."""
    key = call_of(scope).key
    said = json.dumps({"name": key.name if key else None, "headers": [value.decode() for _, value in scope["headers"]]})
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": said})
        await send({"type": "websocket.close", "code": 1000})
    else:
        await respond(send, 200, said.encode())


def guarded(store: Any, *, required: bool = True, clock: Clock | None = None, **changes: Any) -> Keys:
    return Keys(configured("keys", **changes), app=who, store=store, required=required, clock=clock or time.monotonic)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def named(client: Client) -> Any:
    assert client.status == 200, client.text
    return json.loads(client.text)["name"]


# ---- who comes in ----


def test_ways_to_show_a_key(store: Counting) -> None:
    """Proves SR-NF-030, SYS-SEC-001: X-API-Key or Bearer; the call says whose it is, with priority and limits."""
    for headers in _WAYS:
        assert named(asyncio.run(ask(guarded(store), headers=headers))) == "alice"
    call = Call(id="x")
    scope = scope_of(headers=bearer(ALICE), call=call)
    client = Client()
    asyncio.run(guarded(store)(scope, client.receive, client.send))
    assert call.key is not None and (call.key.name, call.key.prefix, call.key.priority) == ("alice", "lf-alice", len(ALICE))


_WAYS: list[dict[str, str]] = [
    {"Authorization": f"Bearer {ALICE}"},
    {"Authorization": f"bearer   {ALICE} "},
    {"AUTHORIZATION": f"BEARER {ALICE}"},
    {"X-API-Key": ALICE},
    {"x-api-key": f" {ALICE}"},
    {"X-API-Key": ALICE, "Authorization": f"Bearer {ALICE}"},
    {"X-API-Key": ALICE, "Authorization": "Basic dXNlcjpwYXNz"},
]
_REFUSED: list[tuple[dict[str, str], str]] = [
    ({}, "You didn't provide an API key"),
    ({"Authorization": "Bearer"}, "You didn't provide an API key"),
    ({"Authorization": "Bearer  "}, "You didn't provide an API key"),
    ({"X-API-Key": ""}, "You didn't provide an API key"),
    ({"Authorization": ALICE}, "You didn't provide an API key"),
    ({"Authorization": f"Basic {ALICE}"}, "You didn't provide an API key"),
    (bearer(NOBODY), "Incorrect API key provided"),
    (bearer(ALICE[:-1]), "Incorrect API key provided"),
    (bearer(ALICE.upper()), "Incorrect API key provided"),
    (bearer(digest_of(ALICE)), "Incorrect API key provided"),
    ({"X-API-Key": "ключ"}, "Incorrect API key provided"),
    ({"X-API-Key": BOB, "Authorization": f"Bearer {ALICE}"}, "Several different API keys"),
]


@pytest.mark.parametrize(("headers", "message"), _REFUSED)
def test_refusals(store: Counting, headers: dict[str, str], message: str) -> None:
    """401 in OpenAI's shape on HTTP, and on the handshake of a WebSocket."""
    client = asyncio.run(ask(guarded(store), headers=headers))
    assert client.status == 401 and client.headers["www-authenticate"] == "Bearer"
    assert client.error["message"].startswith(message)
    assert {name: client.error[name] for name in ("type", "code", "param")} == {"type": "invalid_request_error", "code": "invalid_api_key", "param": None}
    shown = asyncio.run(ask(guarded(store), "/v1/ws", headers=headers, kind="websocket"))
    assert [(said["type"], said["code"]) for said in shown.sent] == [("websocket.close", 4401)]


def test_two_headers_of_one_name_that_differ(store: Counting) -> None:
    scope = scope_of()
    scope["headers"] = [(b"authorization", f"Bearer {ALICE}".encode()), (b"authorization", f"Bearer {BOB}".encode())]
    client = Client()
    asyncio.run(guarded(store)(scope, client.receive, client.send))
    assert client.status == 401


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_open_paths(store: Counting, path: str) -> None:
    client = asyncio.run(ask(guarded(store), path))
    assert named(client) is None and store.asked == []


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/ws", "/metrics", "/docs", "/openapi.json", "/health/", "/Health", "//", "/ready/../v1/models", "/health%2f", ""]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_nothing_else_is_open(store: Counting, path: str, kind: str) -> None:
    client = asyncio.run(ask(guarded(store), path, kind=kind))
    assert client.status == 401 or client.sent[0]["code"] == 4401


def test_lifespan_passes(store: Counting) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    client = Client()
    asyncio.run(Keys(configured("keys"), app=app, store=store, required=True)({"type": "lifespan"}, client.receive, client.send))
    assert seen == ["lifespan"]


def test_keys_without_a_store() -> None:
    with pytest.raises(InputError, match="asks for keys, and there is no store"):
        guarded(None)
    with pytest.raises(InputError, match="asks for keys, and there is no store"):
        guarded(None, require=True, required=False)


# ---- where no key is asked for ----


def test_not_required(store: Counting, tmp_path: Path) -> None:
    """OpenAI's clients always send a key: one that is known counts, any other is ignored, and an outage of the store too."""
    away = Counting(tmp_path / "file" / "store")
    (tmp_path / "file").write_text("")

    async def go() -> None:
        guard = guarded(store, required=False)
        assert named(await ask(guard)) is None
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        assert named(await ask(guard, headers=bearer("EMPTY"))) is None
        assert named(await ask(guard, headers={"X-API-Key": BOB, **bearer(ALICE)})) is None
        assert named(await ask(guarded(None, required=False), headers=bearer(ALICE))) is None
        assert named(await ask(guarded(away, required=False), headers=bearer(ALICE))) is None

    asyncio.run(go())
    assert away.asked


@pytest.mark.parametrize(
    ("require", "required", "status"),
    [(True, True, 401), (True, False, 401), (False, True, 200), (False, False, 200), ("auto", True, 401), ("auto", False, 200)],
)
def test_what_the_user_said_is_meant(store: Counting, require: bool | str, required: bool, status: int) -> None:
    """Only auto depends on where the server is bound."""
    assert asyncio.run(ask(guarded(store, require=require, required=required))).status == status


# ---- memory ----


def test_the_store_is_asked_once_and_again_after_cache_s(store: Counting) -> None:
    """A revoked key works no longer than cache_s."""
    clock = Clock()

    async def go() -> None:
        guard = guarded(store, clock=clock, cache_s=30.0)
        for _ in range(100):
            assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        assert len(store.asked) == 1
        store.revoke("alice")
        clock.now += 29
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        clock.now += 1
        assert (await ask(guard, headers=bearer(ALICE))).status == 401
        assert len(store.asked) == 2

    asyncio.run(go())


def test_an_unknown_key_is_asked_for_again_soon(store: Counting) -> None:
    """So that a key which was made just now works."""
    clock = Clock()

    async def go() -> None:
        guard = guarded(store, clock=clock, unknown_cache_s=2.0)
        for _ in range(10):
            assert (await ask(guard, headers=bearer(NOBODY))).status == 401
        assert len(store.asked) == 1
        store.add_key(Key(0, "nobody", NOBODY[:8]), digest=digest_of(NOBODY))
        clock.now += 2
        assert named(await ask(guard, headers=bearer(NOBODY))) == "nobody"

    asyncio.run(go())


def test_who_come_at_once_share_one_look(store: Counting) -> None:
    """And one of them who goes away does not take it from the others."""

    async def go() -> None:
        guard = guarded(store)
        store.go.clear()
        tasks = [asyncio.create_task(ask(guard, headers=bearer(ALICE))) for _ in range(50)]
        while not store.asked:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        store.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert {named(answer) for answer in answers[1:] if isinstance(answer, Client)} == {"alice"}
        assert len(store.asked) == 1

    asyncio.run(go())


def test_a_flood_of_made_up_keys(store: Counting) -> None:
    """Memory stays bounded, the good key is not driven out, threads are few."""
    highest = 0

    async def go() -> None:
        nonlocal highest
        guard = guarded(store, cache_size=100)
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        for turn in range(10):
            answers = await asyncio.gather(*(ask(guard, headers=bearer(f"lf-{turn}-{number}")) for number in range(200)))
            assert {answer.status for answer in answers} == {401}
            highest = max(highest, sum(thread.name == "find-key" for thread in threading.enumerate()))
        assert guard.known is not None
        assert (len(guard.known.bad), len(guard.known.good), len(guard.known.pending)) == (100, 1, 0)
        before = len(store.asked)
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        assert len(store.asked) == before

    asyncio.run(go())
    assert highest <= guard_keys.AT_ONCE


def test_a_flood_beyond_what_may_wait(store: Counting) -> None:
    """More is told 503; but a key that was good is looked up all the same, or its owner could put off its end with a flood."""
    clock = Clock()

    async def go() -> None:
        guard = guarded(store, clock=clock, timeout_s=30.0)
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        store.revoke("alice")
        clock.now += 31
        store.go.clear()
        flood = [asyncio.create_task(ask(guard, headers=bearer(f"lf-{number}"))) for number in range(guard_keys.WAITING + guard_keys.AT_ONCE + 40)]
        await asyncio.sleep(0.05)
        alice = asyncio.create_task(ask(guard, headers=bearer(ALICE)))
        await asyncio.sleep(0.05)
        store.go.set()
        statuses = [(await task).status for task in flood]
        assert statuses.count(503) == 40 and statuses.count(401) == len(flood) - 40
        assert (await alice).status == 401

    asyncio.run(go())


# ---- outages ----


def test_postgresql_killed_and_back(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """Authentication goes on from memory while PostgreSQL is away; who is not known is told 503, never 401; then all is as before."""
    clock = Clock()
    server.empty()
    store = postgresql(server.url)
    store.open()
    filled(store)

    async def settled(headers: dict[str, str], status: int) -> Client:
        """Ask until the guard has noticed that the store is back."""
        deadline = time.monotonic() + 30
        while True:
            clock.now += guard_keys.PROBE_S
            client = await ask(guard, headers=headers)
            if client.status == status or time.monotonic() > deadline:
                assert client.status == status
                return client
            await asyncio.sleep(0.02)

    guard = guarded(store, clock=clock)

    async def go() -> None:
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        assert (await ask(guard, headers=bearer(NOBODY))).status == 401

        server.kill()
        try:
            clock.now += 31  # what is remembered is not fresh any more
            for _ in range(20):
                assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
                for secret in (BOB, NOBODY):
                    client = await ask(guard, headers=bearer(secret))
                    assert client.status == 503 and int(client.headers["retry-after"]) >= 1
                    assert client.error["type"] == "server_error"
                assert (await ask(guard)).status == 401  # no key at all is wrong at any time
                clock.now += 0.5
            shown = await ask(guard, "/v1/ws", headers=bearer(BOB), kind="websocket")
            assert shown.sent[0]["code"] == 4503
            clock.now += 3600
            assert (await ask(guard, headers=bearer(ALICE))).status == 503  # not for ever
        finally:
            server.start()

        assert named(await settled(bearer(BOB), 200)) == "bob"
        await settled(bearer(NOBODY), 401)
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"

    with caplog.at_level(logging.WARNING, logger="largeforge.guard"):
        asyncio.run(go())
    store.close()
    told = [record.getMessage() for record in caplog.records if record.name == "largeforge.guard"]
    assert len(told) == 2 and "does not answer" in told[0] and told[1] == "the store of API keys answers again"
    assert not [secret for secret in (ALICE, BOB, NOBODY) if secret in caplog.text]


def test_a_revocation_during_an_outage_is_noticed_after_it(server: Postgres) -> None:
    clock = Clock()
    server.empty()
    store, other = postgresql(server.url), postgresql(server.url)
    store.open()
    filled(store)

    async def go() -> None:
        guard = guarded(store, clock=clock)
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        server.kill()
        clock.now += 31
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        server.start()
        other.revoke("alice")
        clock.now += guard_keys.PROBE_S
        await ask(guard, headers=bearer(ALICE))  # goes on, and has the store asked meanwhile
        assert guard.known is not None
        while guard.known.pending:
            await asyncio.sleep(0.01)
        assert (await ask(guard, headers=bearer(ALICE))).status == 401
        clock.now += 31
        server.kill()
        try:
            assert (await ask(guard, headers=bearer(ALICE))).status == 503  # what is known to be revoked does not go on in the next outage
        finally:
            server.start()

    asyncio.run(go())
    store.close()
    other.close()


def test_a_store_that_does_not_answer_is_tried_now_and_then(tmp_path: Path) -> None:
    """Not once a request: each try may take as long as timeout_s."""
    clock = Clock()
    away = Counting(tmp_path / "file" / "store")
    (tmp_path / "file").write_text("")

    async def go() -> None:
        guard = guarded(away, clock=clock)
        for expected in (1, 2, 3):
            for number in range(20):
                assert (await ask(guard, headers=bearer(f"lf-{number}"))).status == 503
            assert len(away.asked) == expected
            clock.now += guard_keys.PROBE_S
        away.go.clear()
        first = asyncio.create_task(ask(guard, headers=bearer(BOB)))
        while len(away.asked) == 3:
            await asyncio.sleep(0.001)
        clock.now += 3 * guard_keys.PROBE_S
        assert (await ask(guard, headers=bearer(ALICE))).status == 503  # while one waits, nobody else does
        away.go.set()
        assert (await first).status == 503 and len(away.asked) == 4

    asyncio.run(go())


def test_postgresql_that_hangs(server: Postgres) -> None:
    """A server that takes connections and says nothing (SIGSTOP) costs one wait of timeout_s, not one a request, and a few threads."""
    clock = Clock()
    server.empty()
    store = postgresql(server.url)
    store.open()
    filled(store)

    async def go() -> None:
        guard = guarded(store, clock=clock, timeout_s=0.3)
        assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
        server.signal_all(signal.SIGSTOP)
        try:
            clock.now += 31
            assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
            for _ in range(20):
                clock.now += guard_keys.PROBE_S
                assert named(await ask(guard, headers=bearer(ALICE))) == "alice"
                assert (await ask(guard, headers=bearer(BOB))).status == 503
            assert sum(thread.name == "find-key" for thread in threading.enumerate()) <= guard_keys.AT_ONCE
            assert all(thread.daemon for thread in threading.enumerate() if thread.name == "find-key")  # none holds up the end of the process
        finally:
            server.signal_all(signal.SIGCONT)
        deadline = time.monotonic() + 30
        while (await ask(guard, headers=bearer(BOB))).status != 200:
            assert time.monotonic() < deadline
            clock.now += guard_keys.PROBE_S
            await asyncio.sleep(0.05)
        assert (await ask(guard, headers=bearer(NOBODY))).status == 401
        while [thread for thread in threading.enumerate() if thread.name == "find-key"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    asyncio.run(go())
    store.close()


# ---- over a real server ----


def test_websockets_of_browsers(store: Counting) -> None:
    """A browser sets no headers: the key comes as the subprotocol after `bearer`, and the calls inside find it as a header."""
    with served(guarded(store)) as port:
        url = f"ws://127.0.0.1:{port}/v1/ws"
        with connect(url, subprotocols=[Subprotocol("bearer"), Subprotocol(ALICE)]) as socket:
            said = json.loads(socket.recv())
            assert socket.subprotocol == "bearer" and said["name"] == "alice"
            assert f"Bearer {ALICE}" in said["headers"] and not [value for value in said["headers"] if "bearer," in value]
        with connect(url, additional_headers=bearer(BOB)) as socket:
            assert socket.subprotocol is None and json.loads(socket.recv())["name"] == "bob"
        for more in ({}, {"subprotocols": ["bearer", NOBODY]}, {"subprotocols": ["bearer"]}, {"subprotocols": [ALICE]}, {"additional_headers": bearer(NOBODY)}):
            with pytest.raises(InvalidStatus) as refused:
                connect(url, **more)
            response = refused.value.response
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert json.loads(response.body)["error"]["code"] == "invalid_api_key"


def test_every_try_is_logged(store: Counting, caplog: pytest.LogCaptureFixture) -> None:
    """Proves SYS-SEC-006, SR-NF-034: the access log outside has a line for who came in and for who did not, with the key's first letters at most."""
    app = AccessLog(configured("access_log"), app=guarded(store))
    caplog.set_level(logging.INFO, logger="largeforge.access")
    for headers in (bearer(ALICE), bearer(NOBODY), {}):
        asyncio.run(ask(app, headers=headers))
        asyncio.run(ask(app, "/v1/ws", headers=headers, kind="websocket"))
    lines = [vars(record) for record in caplog.records if record.name == "largeforge.access"]
    told = [(line["status"], line["code"], line["key"], line["key_name"]) for line in lines]
    refused = (401, "invalid_api_key", "", "")
    assert told[2:] == [refused] * 4
    assert [line[1:] for line in told[:2]] == [("", "lf-alice", "alice")] * 2
    assert not [line for line in lines if ALICE in str(line) or NOBODY in str(line)]
