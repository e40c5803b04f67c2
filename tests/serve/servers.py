"""A real `python -m largeforge task=serve` on a free port of loopback, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_S = 120


@dataclass
class Server:
    """A running server.

    Args:
        process: of the door.
        url: without a path.
        folder: of the run.
        printed: where what it prints goes.
    """

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    printed: Path

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.printed.read_text(encoding="utf-8")

    @property
    def grpc(self) -> str:
        """host:port of gRPC."""
        return next(line.split()[1] for line in self.said.splitlines() if line.strip().startswith("gRPC"))

    def get(self, path: str, **headers: str) -> Any:
        """The JSON (or text) of a GET, whatever its status."""
        return self.ask(path, None, **headers)[1]

    def ask(self, path: str, body: dict[str, Any] | bytes | None, **headers: str) -> tuple[int, Any]:
        """Status, and JSON or text, of a request."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        lines = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        request = urllib.request.Request(self.url + path, data=data, headers=lines)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as refusal:
            status, text = refusal.code, refusal.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def requests(self, path: str) -> int:
        """How many requests of a path stand in its log."""
        return (self.folder / "log.jsonl").read_text(encoding="utf-8").count(f'"path": "{path}"')

    def family(self) -> list[psutil.Process]:
        """Every process of it, the door first."""
        door = psutil.Process(self.process.pid)
        return [door, *door.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The process that holds the model."""
        return max(self.family()[1:], key=lambda one: one.memory_info().rss)

    def until_ready(self, seconds: float = 60) -> None:
        """Wait until it says that it is."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(OSError):
                if self.ask("/ready", None)[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s: {self.said}")

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def start(tmp_path: Path, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the command; what it prints goes to printed.txt."""
    printed = (tmp_path / "printed.txt").open("wb")
    with printed:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "largeforge",
                "task=serve",
                "serve.port=0",
                f"folder={tmp_path / 'run'}",
                *([] if any(word.startswith("store=") for word in words) else [f"store.path={tmp_path / 'store.sqlite3'}"]),
                *words,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
        )


@contextmanager
def serving(tmp_path: Path, *words: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server while the block runs; nothing of it is left afterwards."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    process = start(tmp_path, *words, environment=environment)
    printed = tmp_path / "printed.txt"
    family: list[psutil.Process] = []
    try:
        until = time.monotonic() + START_S
        while "ready in" not in printed.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < until, printed.read_text(encoding="utf-8")
            time.sleep(0.05)
        line = next(line for line in printed.read_text(encoding="utf-8").splitlines() if "ready in" in line)
        server = Server(process, line.rpartition(" at ")[2].removesuffix("/v1"), tmp_path / "run", printed)
        family = server.family()
        yield server
    finally:
        with suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion of nano or echo."""
    return {"model": "nano", "messages": [{"role": "user", "content": text}], **fields}
