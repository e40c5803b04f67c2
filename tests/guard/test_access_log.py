"""One line for every request, whatever becomes of it, and nothing in it that was said."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from largeforge.asgi import App, Receive, Scope, Send, refuse, respond
from largeforge.call import call_of
from largeforge.guard.access_log import AccessLog
from largeforge.run import JSONLines
from tests.guard.asking import CHAT, Client, answer, configured, connected, identified, key, read_all, scope_of, served

FIELDS = {
    *("time", "level", "logger", "message", "request_id", "transport", "method", "path", "status", "error", "code", "key", "key_name", "model", "stream"),
    *("prompt_tokens", "completion_tokens", "finish_reason", "queued_ms", "ttft_ms", "total_ms", "retried"),
}


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """The run's own handler and form, as task=serve has them."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JSONLines())
    log = logging.getLogger("largeforge")
    before = log.level
    log.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        log.setLevel(before)
        with suppress(OSError):  # what a full disk did not take is tried again
            handler.close()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Any]:
    """Call it for the lines that were written so far."""
    path = tmp_path / "log.jsonl"
    with written_to(path):
        yield lambda: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def logged(app: App) -> App:
    return identified(AccessLog(configured("access_log"), app=app), key(7))


def asked(app: App, scope: Scope | None = None, client: Client | None = None) -> Client:
    client = client or Client()
    asyncio.run(logged(app)(scope or scope_of(), client.receive, client.send))
    return client


async def full(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that tells the Call all it can."""
    call = call_of(scope)
    call.model, call.stream, call.prompt_tokens, call.completion_tokens, call.finish_reason = "nano", True, 11, 5, "stop"
    call.queued_s, call.first_token_at, call.retried = 0.25, call.started + 0.5, True
    await respond(send, 200, b"done")


def test_a_line_has_it_all(lines: Any) -> None:
    """Proves SYS-F-066: every request leaves one line, with its times."""
    client = asked(full, scope_of(headers={"X-Request-ID": "mine"}, transport="grpc"))
    (line,) = lines()
    assert set(line) == FIELDS
    assert client.headers["x-request-id"] == line["request_id"] == "mine"
    assert line["total_ms"] >= 0
    expected = {
        **{"level": "info", "logger": "largeforge.access", "message": f"POST {CHAT} 200", "transport": "grpc", "method": "POST", "path": CHAT, "status": 200},
        **{"error": "", "code": "", "key": "lf-7", "key_name": "name-7", "model": "nano", "stream": True, "prompt_tokens": 11, "completion_tokens": 5},
        **{"finish_reason": "stop", "queued_ms": 250.0, "ttft_ms": 500.0, "retried": True},
    }
    assert {name: line[name] for name in expected} == expected


CANARY = "xyzzy-canary"


def test_nothing_that_was_said_is_logged(lines: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-SEC-008: not the body, the query, a header, the answer, nor an error that quotes them; the log is read as the bytes on disk."""

    async def quoting(scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"].decode()
        if "refuse" in body:
            await refuse(scope, receive, send, 400, f"cannot read {body}", kind="invalid_request_error")
        elif "raise" in body:
            raise ValueError(f"cannot read {body}")
        else:
            await respond(send, 200, body.encode())

    for what in ("answer", "refuse", "raise"):
        scope = scope_of(headers={"Authorization": f"Bearer {CANARY}", "X-API-Key": CANARY, "User-Agent": CANARY, "X-Request-ID": f"{CANARY} {CANARY}"})
        scope["query_string"] = f"prompt={CANARY}".encode()
        asked(quoting, scope, Client(body=(f"{what} {CANARY}".encode(),)))
        strange = {**scope_of(f"/{CANARY}"), "method": CANARY}
        asked(quoting, strange, Client(body=(what.encode(),)))
    assert [line["status"] for line in lines()] == [200, 200, 400, 400, 500, 500]
    out, err = capfd.readouterr()
    assert CANARY not in (tmp_path / "log.jsonl").read_text(encoding="utf-8") + out + err


def test_a_failure_is_an_error_for_the_client_and_a_place_for_us(lines: Any) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret")

    client = asked(failing)
    assert (client.status, client.error["type"]) == (500, "server_error")
    assert b"secret" not in client.text
    assert b"Traceback" not in client.text
    (line,) = lines()
    assert (line["level"], line["status"], line["error"], line["fault"]) == ("error", 500, "server_error", "ZeroDivisionError")
    assert line["frames"][-1].startswith("test_access_log.py:")
    assert line["frames"][-1].endswith(" failing")


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_after_the_answer_has_begun(lines: Any, stream: bool) -> None:
    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).stream = stream
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        raise ZeroDivisionError

    client = asked(breaking)
    if stream:
        event = client.text.split(b"\n\n")[1].removeprefix(b"data: ")
        assert json.loads(event)["error"]["type"] == "server_error"
    assert client.whole == stream
    (line,) = lines()
    assert (line["status"], line["error"], line["fault"]) == (200, "server_error", "ZeroDivisionError")


def test_who_went_away_is_499(lines: Any) -> None:
    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def begun(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await waiting(scope, receive, send)

    for app in (waiting, begun):
        client = Client()
        client.left = Left()
        asked(app, client=client)
    assert [(line["status"], line["level"]) for line in lines()] == [(499, "info")] * 2


class Left(asyncio.Event):
    def is_set(self) -> bool:
        return True

    async def wait(self) -> Any:
        return True


def test_cancelled_is_logged_too(lines: Any) -> None:
    async def story() -> None:
        async def endless(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(3600)

        client = Client()
        task = asyncio.ensure_future(logged(endless)(scope_of(), client.receive, client.send))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert [line["status"] for line in lines()] == [499]


def test_a_websocket_is_one_line(lines: Any) -> None:
    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    client = asked(accepting, scope_of("/v1/ws", kind="websocket"))
    broken = asked(failing, scope_of("/v1/ws", kind="websocket"))
    assert broken.sent[-1] == {"type": "websocket.close", "code": 1011}
    assert len(client.sent) == 1
    assert [(line["transport"], line["status"], line["path"]) for line in lines()] == [("websocket", 101, "/v1/ws")] * 2


def test_a_full_disk_costs_the_line_only(capfd: pytest.CaptureFixture[str]) -> None:
    """/dev/full refuses every write: requests are answered, stderr stays empty."""
    with written_to(Path("/dev/full")):
        assert [asked(answer).status for _ in range(50)] == [200] * 50
    assert logging.raiseExceptions
    assert capfd.readouterr() == ("", "")


def test_a_level_above_leaves_it_out(lines: Any) -> None:
    logging.getLogger("largeforge").setLevel(logging.WARNING)
    asked(answer)
    assert lines() == []


def test_over_a_real_server(lines: Any) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/models":
            raise ZeroDivisionError
        await answer(scope, receive, send)

    with served(logged(failing)) as port:
        for path, status in ((CHAT, b"200"), ("/v1/models", b"500"), ("/nowhere", b"200")):
            with connected(port) as socket:
                socket.sendall(f"GET {path}?q=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                assert read_all(socket).startswith(b"HTTP/1.1 " + status)
    assert [(line["path"], line["status"], line["method"]) for line in lines()] == [(CHAT, 200, "GET"), ("/v1/models", 500, "GET"), ("other", 200, "GET")]
