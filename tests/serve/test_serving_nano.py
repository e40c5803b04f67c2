"""task=serve with the hf engine on LitServe: the proof, cancellation at the engine, crashes, kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from largeforge.process import free_port
from tests.serve.servers import Server, chat, serving, start

NANO = ("model=nano", "serve.grpc_port=0", "model.dtype=fp32", "engine.batch_size=64")
LONG = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("nano"), *NANO, environment={"LARGEFORGE_CACHE": str(shared_models)}) as found:
        yield found


def until(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait until something holds; whether it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def sent(server: Server, body: dict[str, Any]) -> socket.socket:
    """A request under way, on a socket of its own."""
    host, port = server.url.removeprefix("http://").split(":")
    one = socket.create_connection((host, int(port)), timeout=30)
    data = json.dumps(body).encode()
    one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return one


def metric(server: Server, name: str) -> float:
    """One number of /metrics."""
    lines = server.get("/metrics").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_the_proof_is_told(server: Server) -> None:
    """Prompt token ids and greedy answers of the endpoint equal those in-process and of transformers' generate."""
    assert "proof    3 of 3 pinned prompts: the same token ids, and the same 48 greedy tokens as in-process and by transformers' generate\n" in server.said


def test_what_a_client_asks_for(server: Server) -> None:
    """Proves SYS-F-052, SR-F-023: temperature, top_p, top_k, seed and the number of tokens are each answer's own."""
    greedy = chat("Hello", temperature=0, max_tokens=12)
    status, first = server.ask("/v1/chat/completions", greedy)
    assert status == 200 and first["usage"]["completion_tokens"] <= 12
    assert server.ask("/v1/chat/completions", greedy)[1]["choices"] == first["choices"]
    drawn = [server.ask("/v1/chat/completions", chat("Hello", seed=seed, temperature=1.5, max_tokens=12))[1]["choices"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != first["choices"]
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):  # only the likeliest token is left to draw
        found = server.ask("/v1/chat/completions", chat("Hello", seed=1, temperature=1.5, max_tokens=12, **narrow))[1]["choices"]
        assert found == first["choices"], narrow
    several = server.ask("/v1/chat/completions", chat("Hello", n=3, seed=1, temperature=1.5, max_tokens=12))[1]["choices"]
    assert several[0]["message"] == drawn[0][0]["message"] and len({one["message"]["content"] for one in several}) == 3


@pytest.mark.parametrize(
    ("path", "said", "what"),
    [
        ("/v1/completions", {"prompt": "hello world " * 600_000}, "7,200,000 characters"),
        ("/v1/completions", {"prompt": [5] * 1_000_000}, "1,000,000 tokens"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 7_900_000}]}, "7,900,000 characters"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 200_000}, "at most 20000 items"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 20_000}, "20,000 turns"),
        ("/v1/completions", {"prompt": "hello world " * 1_400}, "tokens; this model reads 2,048"),
    ],
)
def test_a_prompt_of_megabytes_holds_up_nobody(server: Server, path: str, said: dict[str, Any], what: str) -> None:
    """Proves SYS-SEC-005: it is refused before anybody counts its tokens; the engine goes on answering meanwhile."""
    refusals: list[Any] = []
    thread = threading.Thread(target=lambda: refusals.append(server.ask(path, {"model": "nano", "max_tokens": 2, **said})))
    thread.start()
    longest = 0.0
    while thread.is_alive():
        begin = time.monotonic()
        assert server.ask("/v1/chat/completions", chat("Hello", max_tokens=2))[0] == 200
        longest = max(longest, time.monotonic() - begin)
    status, refusal = refusals[0]
    assert status == 400 and what in refusal["error"]["message"]
    print(f"the longest of the others took {longest:.2f} s")
    assert longest < 4  # it was 7 to 15 s


@pytest.mark.parametrize("when", ["before the first token", "mid-stream", "not streaming"])
def test_a_client_that_leaves_stops_its_generation(server: Server, when: str) -> None:
    """The engine's counter of decoded tokens stands still and all its blocks are free again."""
    assert until(lambda: metric(server, "active_requests") == 0)
    one = sent(server, chat("Tell me", stream=when != "not streaming", **LONG))
    if when == "mid-stream":
        one.recv(10)
    elif when == "not streaming":
        assert until(lambda: metric(server, "engine_active_requests") == 1)
    one.close()
    assert until(lambda: metric(server, "engine_active_requests") == 0 and metric(server, "engine_free_kv_blocks") == metric(server, "engine_total_kv_blocks"))
    before = metric(server, "engine_decoded_tokens")
    time.sleep(0.3)
    assert metric(server, "engine_decoded_tokens") == before


def test_an_engine_that_dies_under_streams(server: Server) -> None:
    """Proves SYS-R-003, SR-NF-021: kill -9 of the engine under 50 streams: each ends by success or a typed error; it is ready again by itself."""
    ends: list[str] = []

    def ask() -> None:
        host, port = server.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat("Tell me", stream=True, max_tokens=400, ignore_eos=True)), {"Content-Type": "application/json"}
        )
        text = connection.getresponse().read().decode().strip()
        connection.close()
        last = text.rpartition("\n\n")[2].removeprefix("data: ")  # of a stream; a whole body where nothing was streamed
        ends.append("done" if last == "[DONE]" else json.loads(last)["error"]["type"])

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    assert until(lambda: metric(server, "engine_active_requests") >= 30, 30)
    server.worker().kill()
    killed_at = time.monotonic()
    assert until(lambda: metric(server, "engine_restarts_total") == 1)
    server.until_ready(30)
    ready_s = time.monotonic() - killed_at
    for thread in threads:
        thread.join(60)
    assert len(ends) == 50 and set(ends) <= {"done", "server_error"} and "server_error" in ends
    print(f"ready again after {ready_s:.1f} s; {ends.count('done')} of 50 done")
    assert server.ask("/v1/chat/completions", chat("Hello", max_tokens=3))[0] == 200


def test_requests_that_have_sent_nothing_are_asked_again(server: Server) -> None:
    """One that waits for its whole answer when the engine dies is answered by the next engine."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(server.ask("/v1/chat/completions", chat("Tell me", **LONG))))
    thread.start()
    assert until(lambda: metric(server, "engine_active_requests") == 1)
    server.worker().kill()
    thread.join(60)
    assert found[0][0] == 200 and found[0][1]["usage"]["completion_tokens"] == LONG["max_tokens"]


@pytest.mark.parametrize("which", ["the door", "the engine's main process"])
def test_a_kill_leaves_no_process(tmp_path: Path, shared_models: Path, which: str) -> None:
    """kill -9 of any parent: its children die with it."""
    with serving(tmp_path, *NANO, "serve.prove=false", environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        family = server.family()
        assert len(family) >= 5
        hit = family[0] if which == "the door" else family[1]
        below = [one for one in family if hit in one.parents()]
        os.kill(hit.pid, signal.SIGKILL)
        server.process.poll()
        gone, alive = psutil.wait_procs([*below, *([hit] if which == "the door" else [])], timeout=15)
        assert not alive
        if which != "the door":
            server.until_ready(30)


def test_the_api_process_dies(tmp_path: Path, shared_models: Path) -> None:
    """Its socket is held by others too and would take connections for ever: the engine server ends, and is started again."""
    with serving(tmp_path, *NANO, "serve.prove=false", environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        host = server.family()[1]
        worker = server.worker()
        api = [one for one in host.children() if one.pid != worker.pid and one.cmdline()[-1] == "largeforge.serve.hosting"][-1]  # forked last
        api.kill()
        assert until(lambda: metric(server, "engine_restarts_total") == 1, 30)
        server.until_ready(60)
        assert server.ask("/v1/chat/completions", chat("Hello", max_tokens=3))[0] == 200


def test_it_says_that_it_is_loading(tmp_path: Path, shared_models: Path) -> None:
    """Proves SR-NF-004: from the first moment on 503 and Retry-After while the model is loaded, then 200, within a minute of the start."""
    port = free_port()
    begin = time.monotonic()
    with closing_process(start(tmp_path, *NANO, f"serve.port={port}", environment={"LARGEFORGE_CACHE": str(shared_models)})) as process:
        server = Server(process, f"http://127.0.0.1:{port}", tmp_path / "run", tmp_path / "printed.txt")
        states: list[Any] = []
        refused: list[Any] = []
        end = time.monotonic() + 90
        while (200, {"status": "ready"}) not in states and time.monotonic() < end:
            with contextlib.suppress(OSError):
                states.append(server.ask("/ready", None))
                if not refused:
                    refused.append(server.ask("/v1/chat/completions", chat("Hello")))
            time.sleep(0.05)
        ready_s = time.monotonic() - begin
        assert states[0] == (503, {"status": "loading"}) and states[-1] == (200, {"status": "ready"})
        assert ready_s < 60, f"a client was first told that it is ready {ready_s:.1f} s after the command was started"
        assert refused[0][0] == 503 and refused[0][1]["error"]["code"] == "loading"


@contextlib.contextmanager
def closing_process(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_a_model_that_is_not_there(tmp_path: Path, shared_models: Path) -> None:
    process = start(tmp_path, "model=outputs/nowhere/artifact", environment={"LARGEFORGE_CACHE": str(shared_models)})
    assert process.wait(90) == 2
    said = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    assert "nowhere" in said and "Traceback" not in said
