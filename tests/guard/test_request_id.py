"""Every request has a name, in its answer and for whoever stands inside."""

from __future__ import annotations

import asyncio
import re

import pytest

from largeforge.asgi import Message, Receive, Scope, Send, refuse, respond
from largeforge.call import Call, call_of
from largeforge.guard.request_id import RequestID
from tests.guard.asking import ROUTES, Client, answer, configured, identified, scope_of


def asked(scope: Scope) -> tuple[Client, Call]:
    client = Client()
    asyncio.run(identified(answer)(scope, client.receive, client.send))
    return client, call_of(scope)


@pytest.mark.parametrize("sane", ["a", "7f3c-11", "trace:1/2+3=@host.b_c", "x" * 128])
def test_a_sane_id_of_the_client_is_kept(sane: str) -> None:
    client, call = asked(scope_of(headers={"X-Request-ID": sane}))
    assert client.headers["x-request-id"] == call.id == sane


@pytest.mark.parametrize("insane", ["", "x" * 129, "two words", 'quote"', "new\nline", "tab\t", "<script>", "ä", "\x00", "a;b"])
def test_any_other_is_replaced(insane: str) -> None:
    """What would break a log line or a header never gets there."""
    client, call = asked(scope_of(headers={"X-Request-ID": insane}))
    assert re.fullmatch("req_[0-9a-f]{32}", call.id)
    assert client.headers["x-request-id"] == call.id


def test_ids_are_not_given_twice() -> None:
    assert len({asked(scope_of())[1].id for _ in range(50)}) == 50


def test_a_refusal_has_it_too() -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(scope, receive, send, 418, "no", kind="invalid_request_error", code="teapot")

    scope, client = scope_of(), Client()
    asyncio.run(identified(refusing)(scope, client.receive, client.send))
    call = call_of(scope)
    assert client.headers["x-request-id"] == call.id
    assert (call.status, call.error, call.code, call.begun, call.whole) == (418, "invalid_request_error", "teapot", True, True)


def test_the_call_knows_how_far_the_answer_is() -> None:
    seen = []

    async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(scope)
        seen.append((call.status, call.begun, call.whole))
        await send({"type": "http.response.start", "status": 201, "headers": []})
        seen.append((call.status, call.begun, call.whole))
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        seen.append((call.status, call.begun, call.whole))
        await send({"type": "http.response.body", "body": b"b"})
        seen.append((call.status, call.begun, call.whole))

    client = Client()
    asyncio.run(identified(slowly)(scope_of(), client.receive, client.send))
    assert seen == [(0, False, False), (201, True, False), (201, True, False), (201, True, True)]


@pytest.mark.parametrize("transport", ["websocket", "grpc"])
def test_a_call_from_inside_says_how_it_came(transport: str) -> None:
    assert asked(scope_of(transport=transport))[1].transport == transport
    assert asked(scope_of())[1].transport == "http"


def test_paths_that_nobody_knows_are_one() -> None:
    assert {asked(scope_of(path))[1].path for path in ROUTES} == set(ROUTES)
    assert {asked(scope_of(path))[1].path for path in ("/wp-admin", "/v1/chat/completions/", "/" + "x" * 5000)} == {"other"}


def test_a_websocket_is_named_at_its_handshake() -> None:
    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    scope, client = scope_of("/v1/ws", kind="websocket"), Client()
    asyncio.run(identified(accepting)(scope, client.receive, client.send))
    call = call_of(scope)
    assert client.headers["x-request-id"] == call.id
    assert (call.transport, call.status, call.whole) == ("websocket", 101, True)


def test_lifespan_passes() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing() -> Message:
        return {}

    scope: Scope = {"type": "lifespan"}
    asyncio.run(RequestID(configured("request_id"), app=app, routes=())(scope, nothing, lambda message: respond(nothing, 200, b"")))  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]
