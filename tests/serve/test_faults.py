"""Faults around a server: heads without end, a full disk, a clock that jumps, a database that is away. Others: test_serving_echo, test_serving_nano."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.postgres import Postgres, running
from tests.serve import raw
from tests.serve.servers import ROOT, Server, serving

ECHO = ("engine=echo", "serve.grpc_port=0")


def say(text: str) -> dict[str, object]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


# ---- heads ----


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("faults"), *ECHO) as found:
        yield found


def test_a_head_that_does_not_end(server: Server) -> None:
    """A request's head has a limit at the door that a user starts; of seconds too: test_fuzz."""
    found = raw.ask(server.url, b"GET /ready HTTP/1.1\r\n" + b"X-Filler: y\r\n" * 100_000)
    assert (found.status, (found.error or {}).get("code")) == (431, "head_too_large")
    assert server.ask("/v1/chat/completions", say("a"))[0] == 200


# ---- a full disk ----


def test_a_full_disk(tmp_path: Path) -> None:
    """Where the log cannot be written, requests are answered all the same, in silence; it goes on once there is room again."""
    with serving(tmp_path, *ECHO) as server:
        assert server.ask("/v1/chat/completions", say("before"), X_Request_ID="before")[0] == 200
        log = server.folder / "log.jsonl"
        time.sleep(0.2)
        full = log.stat().st_size
        before = {
            one: resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (full, -1)) for one in server.family()
        }  # what writes beyond is refused, as by a full disk
        with ThreadPoolExecutor(8) as pool:
            statuses = set(pool.map(lambda number: server.ask("/v1/chat/completions", say("a"))[0], range(200)))
        assert statuses == {200}
        assert log.stat().st_size == full
        assert len(server.said) < 2000 and "Traceback" not in server.said, server.said[:3000]
        assert server.ask("/ready", None)[0] == 200 and server.get("/health")["status"] == "healthy"
        for one, limit in before.items():
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, limit)
        for name in ("after-1", "after-2"):
            assert server.ask("/v1/chat/completions", say("a"), X_Request_ID=name)[0] == 200
        time.sleep(0.2)
        lines = log.read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[-1])["request_id"] == "after-2"
        assert server.stop() == 0


# ---- a clock that jumps ----

WALL = {
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "time.ctime",
    "time.strftime",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}
TOLD = {
    "largeforge/serve/wire.py": 1,  # `created` of an answer
    "largeforge/serve/door.py": 1,  # `created` of a model
    "largeforge/serve/engine_app.py": 1,  # the same
    "largeforge/serve/base.py": 1,  # is the certificate valid, at the start
    "largeforge/guard/keys.py": 1,  # has a key expired: of that the wall's clock is the measure, as for the store
}


def test_nothing_is_timed_by_a_clock_that_jumps() -> None:
    """Limits, queues, deadlines, caches and backoff go by the monotonic clock; the wall's is only told to people."""
    found: dict[str, int] = {}
    for path in sorted([*(ROOT / "largeforge" / "serve").rglob("*.py"), *(ROOT / "largeforge" / "guard").rglob("*.py"), *(ROOT / "largeforge").glob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        if name in ("largeforge/run.py", "largeforge/report.py", "largeforge/artifact.py", "largeforge/console.py"):
            continue  # times of runs and files
        tree = ast.parse(path.read_text(encoding="utf-8"))
        uses = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL]
        uses += [
            f"from time import {alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "time" for alias in node.names
        ]
        if uses:
            found[name] = len(uses)
    assert found == TOLD


# ---- a database that is away ----


def until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    """Wait until something holds; whether it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with running() as found:
        yield found


def test_postgresql_is_restarted(tmp_path: Path, postgres: Postgres) -> None:
    """Known keys go on, unknown ones are told 503 and never 401; when it is back, all is as before, without a restart of the door."""
    environment = {"LARGEFORGE_STORE__URL": postgres.url, "PYTHONPATH": str(ROOT)}

    def make_key(name: str) -> str:
        make = [sys.executable, "-m", "largeforge", "task=keys", "store=postgresql", f"create={name}", f"folder={tmp_path / name}"]
        return subprocess.run(make, cwd=tmp_path, env={**os.environ, **environment}, check=True, capture_output=True, text=True).stdout.strip()

    known, unseen = make_key("known"), make_key("unseen")
    words = (*ECHO, "store=postgresql", "guards.keys.require=true", "guards.keys.cache_s=0.2", "guards.keys.unknown_cache_s=0.1", "guards.keys.timeout_s=2")
    with serving(tmp_path / "server", *words, environment=environment) as server:

        def ask(key: str) -> int:
            return server.ask("/v1/chat/completions", say("a"), Authorization=f"Bearer {key}")[0]

        assert (ask(known), ask("sk-wrong")) == (200, 401)
        postgres.kill()
        time.sleep(0.5)  # what the cache knows is old by now
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, [known, unseen, "sk-wrong", f"sk-{os.getpid()}"] * 20))
        assert set(found[0::4]) == {200} and set(found[1::4]) == set(found[2::4]) == set(found[3::4]) == {503}
        status, refusal = server.ask("/v1/models", None, Authorization=f"Bearer {unseen}")
        assert (status, refusal["error"]["code"], refusal["error"]["type"]) == (503, "store_unavailable", "server_error")
        health = server.get("/health")
        assert (health["status"], health["components"][1]["status"]) == ("degraded", "unhealthy") and server.ask("/ready", None)[0] == 200
        assert len(server.said) < 3000 and "Traceback" not in server.said, server.said  # once, not for every request
        postgres.start()
        assert until(lambda: ask(unseen) == 200)
        assert until(lambda: ask("sk-wrong") == 401) and ask(known) == 200
        assert until(lambda: server.get("/health")["status"] == "healthy")
        assert ask(make_key("late")) == 200
