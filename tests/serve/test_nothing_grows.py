"""Thousands of requests, a third of them left mid-stream: memory, threads and open files of every process are as they were."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serve import raw
from tests.serve.footprint import Footprint, settled
from tests.serve.servers import Server, serving

AT_ONCE = 16


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("echo"), "engine=echo") as server:
        yield server


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Iterator[Server]:
    words = ("model=nano", "model.dtype=fp32", "serve.prove=false")
    with serving(tmp_path_factory.mktemp("nano"), *words, environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        yield server


def one(server: Server, model: str, number: int) -> str:
    """Ask one request: whole, streamed to its end, or left in the middle; how it ended."""
    rng = random.Random(number)
    leaves = number % 3 == 0
    path = raw.COMPLETIONS if number % 2 else raw.CHAT
    said: dict[str, Any] = {"prompt": f"{number} words"} if number % 2 else {"messages": [{"role": "user", "content": f"{number} words"}]}
    body = {"model": model, **said, "stream": leaves or number % 3 == 1, "max_tokens": 500 if leaves else 4, "ignore_eos": leaves}
    with raw.connect(server.url, 120) as connection:
        raw.send(connection, raw.post(path, json.dumps(body).encode()))
        if leaves:
            if rng.random() < 0.8:
                connection.recv(rng.choice([1, 300]))
                if rng.random() < 0.5:
                    raw.hard_close(connection)
                    return "left"
            connection.shutdown(socket.SHUT_RDWR)  # a reset might overtake a request that nobody has read yet
            return "left"
        found = raw.read(connection)
        assert found.status == 200, found
        return "streamed" if b"[DONE]" in found.body else "whole" if b'"usage"' in found.body else repr(found)


def ask(server: Server, model: str, *, begin: int, count: int) -> dict[str, int]:
    """Ask many, some at once; how they ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = list(pool.map(lambda number: one(server, model, number), range(begin, begin + count)))
    return {end: ends.count(end) for end in sorted(set(ends))}


def unchanged(server: Server, model: str, *, warm: int, count: int, memory_mib: float) -> None:
    """Ask, after a warm-up that fills pools and caches, and compare what the processes hold before and after."""
    ask(server, model, begin=0, count=warm)
    idle = Footprint.of(server)
    assert not settled(server, idle)
    before = Footprint.of(server)
    found = ask(server, model, begin=warm, count=count)
    print(found)
    assert set(found) == {"left", "streamed", "whole"} and min(found.values()) > count // 4
    assert not settled(server, before)
    after = Footprint.of(server)
    print("MiB grown:", [round(grown, 1) for grown in after.memory(before)], "threads:", after.threads, "files:", after.files)
    assert max(after.memory(before)) < memory_mib
    until = time.monotonic() + 20
    while (left := over(server, warm + count)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def over(server: Server, count: int) -> list[str]:
    """What is not at its end: numbers that are not 0, requests that are not in the log."""
    metrics = server.get("/metrics")
    left = [name for name in ("active_requests", "queue_depth", "engine_active_requests") if f"\n{name} 0.0" not in metrics]
    logged = server.requests(raw.CHAT) + server.requests(raw.COMPLETIONS)
    return left if logged == count else [*left, f"{logged} of {count} in the log"]


def test_five_hundred_requests_of_the_door(echo: Server) -> None:
    """Nothing grows."""
    unchanged(echo, "echo", warm=300, count=500, memory_mib=20)


def test_five_hundred_requests_of_the_hf_engine(nano: Server) -> None:
    """Nothing grows, in none of its processes."""
    unchanged(nano, "nano", warm=150, count=350, memory_mib=40)


@pytest.mark.slow
def test_ten_thousand_requests_of_the_door(tmp_path: Path) -> None:
    """The same over 10,000, a third of them left."""
    with serving(tmp_path, "engine=echo") as server:
        unchanged(server, "echo", warm=1000, count=10_000, memory_mib=30)


@pytest.mark.slow
def test_ten_thousand_requests_of_the_hf_engine(tmp_path: Path, shared_models: Path) -> None:
    """The same over 10,000, a third of them left."""
    with serving(tmp_path, "model=nano", "model.dtype=fp32", "serve.prove=false", environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        unchanged(server, "nano", warm=1000, count=10_000, memory_mib=60)
