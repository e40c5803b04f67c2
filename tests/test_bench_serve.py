"""scripts/bench serve: its load generator counts what a server did, its soak fails where it must, it sees who is answered on, its parts are chosen as said."""

from __future__ import annotations

import json
import math
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from scripts.benches import serve, serve_leaving, serve_soak
from scripts.benches.serve_exact import same
from scripts.benches.serve_leaving import MOMENTS, READING, STREAMING, Engine, Left, Seen, leave
from scripts.benches.serve_load import Reply, load, quantile
from scripts.benches.serve_load_side import read
from scripts.benches.serve_servers import Server
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
    assert (
        every.only == ["engine", "door", "streams", "exact", "leaving", "soak"]
        and (every.pairs, every.minutes) == (5, 30.0)
        and every.model == ["nano", "smollm2"]
    )
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


# ---- clients that leave ----

NOTICED_S = 0.05


class Deserted(BaseHTTPRequestHandler):
    """An engine of one request at a time: says how it is, and answers until its client has gone, or longer, as `how` says."""

    protocol_version = "HTTP/1.1"
    how = "stops"
    now: dict[str, float]

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        data = json.dumps(self.now).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        now, self.close_connection = self.now, True
        if self.how == "never begins":
            return self.until_gone()
        now["active"], now["held"], now["begun"] = now["active"] + 1, now["held"] + 4, now["begun"] + len(asked["prompt"])
        if asked["stream"]:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(OSError):
            while not self.gone():
                time.sleep(0.001)
                now["decoded"] += 1
                if asked["stream"]:
                    self.wfile.write(b'f\r\ndata: {"a": 1}\n\r\n')
        time.sleep(NOTICED_S)
        if self.how == "keeps its blocks":
            return None
        now["active"], now["held"] = now["active"] - 1, now["held"] - 4
        if self.how == "one of the others ends too":
            now["active"] -= 1
        for _ in range(20 if self.how == "decodes on" else 0):
            time.sleep(0.01)
            now["decoded"] += 1
        return None

    def gone(self) -> bool:
        return bool(select.select([self.connection], [], [], 0)[0]) and not self.connection.recv(1, socket.MSG_PEEK)

    def until_gone(self) -> None:
        while not self.gone():
            time.sleep(0.001)


@contextmanager
def deserted(how: str, tmp_path: Path, *, others: int = 0, says_at_once: bool = True) -> Iterator[Engine]:
    now = {"active": others, "waiting": 0, "decoded": 7, "held": 4 * others, "begun": 9}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Deserted,), {"how": how, "now": now}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    engine = Engine("fake", Server("fake", url, "nano", cast(Any, None), tmp_path), url, "/", lambda body: Seen(**json.loads(body)), says_at_once=says_at_once)
    try:
        yield engine
    finally:
        engine.close()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_leaving, "PATIENCE_S", 0.3)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("says_at_once", [True, False])
def test_the_time_until_a_client_that_left_is_noticed(tmp_path: Path, moment: str, says_at_once: bool) -> None:
    with deserted("stops", tmp_path, says_at_once=says_at_once) as engine:
        left = leave(engine, moment, random.Random(0), others=0)
    assert left is not None and left.still and 1000 * NOTICED_S <= left.ms < 1000


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_engine_that_answers_on_is_seen(tmp_path: Path, moment: str) -> None:
    with deserted("decodes on", tmp_path) as engine:
        left = leave(engine, moment, random.Random(0), others=0)
    assert left is not None and not left.still and left.tokens_after >= 10
    with deserted("keeps its blocks", tmp_path) as engine:
        left = leave(engine, moment, random.Random(0), others=0)
    assert left is not None and not left.still and left.ms == math.inf


def test_a_client_that_left_among_others(tmp_path: Path) -> None:
    """What cannot be told is not counted: one of the others ended at about the same time."""
    with deserted("stops", tmp_path, others=16) as engine:
        left = leave(engine, STREAMING, random.Random(0), others=16)
        assert left is not None and left.still and 1000 * NOTICED_S <= left.ms < 1000
    with deserted("one of the others ends too", tmp_path, others=16) as engine:
        assert leave(engine, STREAMING, random.Random(0), others=16) is None


@pytest.mark.usefixtures("impatient")
def test_a_client_that_left_before_the_engine_had_it_is_not_counted(tmp_path: Path) -> None:
    with deserted("never begins", tmp_path, says_at_once=False) as engine:
        assert leave(engine, READING, random.Random(0), others=0) is None


def test_what_engines_say() -> None:
    said = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="nano"} 2.0
vllm:num_requests_waiting{engine="0",model_name="nano"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 5.0
vllm:generation_tokens_total{engine="0"} 1.2e+03
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:prefix_cache_queries_total{engine="0"} 64.0
"""
    assert serve_leaving.metrics(said) == Seen(2, 1, 1200.0, 0.25, 64.0)
    load = {"active": 2, "waiting": 1, "decoded_tokens": 5, "free_blocks": 90, "total_blocks": 96, "engine": "nano"}
    assert serve_leaving.stats(json.dumps(load).encode()) == Seen(2, 1, 5, 6)


@pytest.mark.parametrize(("late", "still", "status", "code"), [(1, 20, 200, 0), (2, 20, 200, 1), (1, 19, 200, 1), (1, 20, 503, 1)])
def test_targets_of_clients_that_leave(late: int, still: int, status: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 one may take longer; none may be answered on, and nobody else may suffer."""
    monkeypatch.setattr(serve_leaving.Table, "publish", lambda table: None)
    left = [Left(500.0 if number < late else 9.0, number < still, 0) for number in range(20)]
    answer = Reply(0, status, True, 0.0, 0.1, 0.2, 3, 5, True, "", "")
    assert serve_leaving.told({"hf, mid-stream": left}, 20, [answer], []) == code
