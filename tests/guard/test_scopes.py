"""What a key may do, and until when: asked of the guard that knows keys, over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from largeforge.asgi import Receive, Scope, Send, respond
from largeforge.call import ADMIN_PATHS, GENERATING, Key, digest_of
from largeforge.guard.keys import Keys
from largeforge.store.config import SQLiteConfig
from largeforge.store.sqlite import SQLite
from tests.guard.asking import ask, configured

SCOPES = {"reader": ("infer",), "keeper": ("admin",), "both": ("infer", "admin")}
ANYTHING = ("/v1/models", "/metrics", "/docs", "/v1/ws")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQLite]:
    path = tmp_path_factory.mktemp("scopes") / "store.sqlite3"
    store = SQLite(SQLiteConfig.model_validate({"_target_": "largeforge.store.sqlite.SQLite", "path": str(path), "busy_timeout_s": 5.0}))
    store.open()
    for name, scopes in SCOPES.items():
        store.add_key(Key(0, name, name[:8], scopes=scopes), digest=digest_of(name))
    yield store
    store.close()


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 200, b"{}")


def asked(store: SQLite, path: str, key: str, *, required: bool = True) -> Any:
    guard = Keys(configured("keys"), app=inside, store=store, required=required)
    return asyncio.run(ask(guard, path, headers={"x-api-key": key}))


@pytest.mark.parametrize("key", SCOPES)
@pytest.mark.parametrize("path", sorted(GENERATING | ADMIN_PATHS | set(ANYTHING)))
def test_a_key_does_what_its_scopes_say(store: SQLite, key: str, path: str) -> None:
    needed = "infer" if path in GENERATING else "admin" if path in ADMIN_PATHS else SCOPES[key][0]
    client = asked(store, path, key)
    if needed in SCOPES[key]:
        assert client.status == 200
        return
    assert client.status == 403
    assert (client.error["type"], client.error["code"]) == ("permission_error", "missing_scope")
    assert f"scopes=[{needed}]" in client.error["message"], "the command that makes one"


def test_a_key_without_any_does_not_open_what_needs_one(store: SQLite) -> None:
    assert {asked(store, path, "nobody").status for path in ADMIN_PATHS | GENERATING} == {401}


def test_a_key_expires_while_it_is_remembered(store: SQLite) -> None:
    """At the second it was made for, though the store is asked again only after `cache_s`."""
    store.add_key(Key(0, "short", "short", expires=2e9), digest=digest_of("short"))
    guard = Keys(configured("keys"), app=inside, store=store, required=True)
    assert guard.known is not None
    found = []
    for now in (2e9 - 1, 2e9, 2e9 + 1):
        guard.known.wall = lambda now=now: now  # type: ignore[misc]
        found.append(asyncio.run(ask(guard, "/v1/models", headers={"x-api-key": "short"})).status)
    assert found == [200, 401, 401]


def test_where_no_key_is_asked_for_none_does_less_than_no_key(store: SQLite) -> None:
    assert {asked(store, path, key, required=False).status for path in ADMIN_PATHS | GENERATING for key in (*SCOPES, "nobody")} == {200}
