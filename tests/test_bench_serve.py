"""scripts/bench serve: its load generator counts what a server really did, its soak fails where it must, and its parts are chosen as said."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts.benches import serve, serve_soak
from scripts.benches.serve_exact import same
from scripts.benches.serve_load import load, quantile
from scripts.benches.serve_load_side import read
from scripts.benches.serve_soak import Tally, told

FIRST_S = 0.1


class Fake(BaseHTTPRequestHandler):
    """Answers as the prompt says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        how = asked["messages"][0]["content"]
        if how == "busy":
            return self.whole(503, {"error": {"message": "no", "type": "server_error", "code": "queue_full"}})
        if how == "whole":
            choice = {"message": {"content": "a b"}, "finish_reason": "stop"}
            return self.whole(200, {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 2}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        time.sleep(FIRST_S)
        for word in ("a ", '"b"'):
            self.event({"choices": [{"delta": {"content": word}}]})
        if how == "cut":  # closed in the middle, without a word
            self.close_connection = True
            return None
        if how == "fault":
            self.event({"error": {"message": "no", "type": "engine_died"}})
        elif how != "ended early":
            self.event({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
            self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def whole(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def event(self, body: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def asked(*how: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": one}]} for one in how]


def test_the_load_generator_counts_what_was_answered(url: str) -> None:
    found = load(url, asked("stream", "whole"), clients=2, requests=12, texts=True)
    assert len(found.replies) == len(found.good) == 12 and not found.num_failed
    assert sum(reply.answer_tokens for reply in found.replies) == 24
    assert [reply.prompt_tokens for reply in found.replies] == [3, 2] * 6
    streams = [reply for reply in found.replies if reply.number % 2 == 0]
    assert {reply.text for reply in streams} == {'a "b"'}
    assert all(reply.first_s - reply.start_s >= FIRST_S for reply in streams)  # the piece that tells the role is no token
    assert found.tokens_per_s == pytest.approx(24 / found.wall_s) and found.requests_per_s == pytest.approx(12 / found.wall_s)
    assert found.first_ms(0.95) >= 1000 * FIRST_S and found.cpu_s < 10


def test_the_load_generator_tells_failures_apart(url: str) -> None:
    found = load(url, asked("busy", "cut", "fault", "ended early", "stream"), clients=1, requests=5)
    assert [reply.good for reply in found.replies] == [False, False, False, False, True]
    assert [reply.error for reply in found.replies] == ["queue_full", "", "engine_died", "", ""]
    assert [reply.silent for reply in found.replies] == [False, True, False, True, False]
    assert found.failures() == {"503 queue_full": 1, "0 silent": 1, "200 engine_died": 1, "200 silent": 1}
    assert found.requests_per_s == pytest.approx(1 / found.wall_s)


def test_a_load_by_time_ends_and_many_clients_ask_at_once(url: str) -> None:
    found = load(url, asked("stream"), clients=8, seconds=0.5)
    assert len(found.good) == len(found.replies) >= 16 and found.wall_s > 0.4
    assert max(reply.start_s for reply in found.replies[:8]) < FIRST_S


def test_a_body_that_is_no_json_is_an_error() -> None:
    assert read([b"Internal Server", b" Error"])["error"] == "not JSON"
    assert read([b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\nda', b"ta: [DONE]\n\n"]) == {
        "text": "a", "prompt_tokens": 0, "answer_tokens": 0, "finished": True, "error": "",
    }  # fmt: skip


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(one) for one in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1.0, 50.0, 95.0, 99.0, 100.0]
    assert quantile([], 0.5) == 0.0


def test_what_is_asked_of_the_bench() -> None:
    every = serve.parsed([])
    assert every.only == ["engine", "door", "streams", "exact", "soak"] and (every.pairs, every.minutes) == (5, 30.0) and every.model == ["nano", "smollm2"]
    quick = serve.parsed(["--quick", "--only", "door"])
    assert (quick.only, quick.pairs, quick.minutes, quick.model) == (["door"], 2, 1.0, ["nano"])
    assert serve.parsed(["--gpu"]).only == ["gpu"] and serve.parsed(["--only", "soak", "--minutes", "3"]).minutes == 3.0


def soaked(**changes: Any) -> Tally:
    tally = Tally(kills=2, recoveries=[4.0, 8.0], engines=[300.0, 310.0], probes=[(second / 4, second % 60 != 0) for second in range(240)])
    size = {"door_mib": 100.0, "door_threads": 9.0, "door_files": 30.0, "engine_mib": 300.0, "engine_threads": 20.0, "engine_files": 60.0}
    tally.sizes = [size | {"at_s": 2.0 * number} for number in range(30)]
    tally.answered["stream"], tally.errors["stream engine_died"], tally.refused["400"] = 990, 10, 32
    for name, value in changes.items():
        setattr(tally, name, value)
    return tally


def test_a_soak_that_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve_soak.Table, "publish", lambda table: print(table.text()))
    assert told(soaked(), minutes=1.0) == 0
    text = capsys.readouterr().out
    assert "1000 requests: 99.00% answered" in text and "Down 1.0 s of 60 s" in text and "98.333% of a month" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"silent": serve_soak.Counter({"stream: closed": 1})},
        {"recoveries": [31.0]},
        {"never": 1},
        {"wrongly": serve_soak.Counter({"500": 1})},
        {"engines": [300.0, 350.0]},
    ],
)
def test_a_soak_that_is_not(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_soak.Table, "publish", lambda table: None)
    assert told(soaked(**changes), minutes=1.0) == 1


def test_a_door_that_grows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_soak.Table, "publish", lambda table: None)
    tally = soaked()
    for number, size in enumerate(tally.sizes):
        size["door_mib"] = 100.0 + number
    assert told(tally, minutes=1.0) == 1


def test_another_answer_is_seen() -> None:
    expected = {"text": "a b", "prompt_tokens": 3, "answer_tokens": 2, "ended": False}
    answered = {"status": 200, "text": "a b", "prompt_tokens": 3, "answer_tokens": 2, "reason": "length"}
    assert same(expected, answered) and same(expected | {"ended": True}, answered | {"reason": "stop", "answer_tokens": 1})
    for change in ({"text": "a c"}, {"answer_tokens": 3}, {"prompt_tokens": 4}, {"reason": "stop"}, {"status": 500}):
        assert not same(expected, answered | change)
