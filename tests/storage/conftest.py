"""Fixtures of the storage tests: servers that start once, an environment that holds nobody's credentials, an artifact to send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from largeforge.artifact import Artifact, write_artifact
from tests.storage import servers
from tests.storage.servers import Server


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Servers that run already, by scheme; each starts when it is first asked for."""
    running = Running(tmp_path_factory.mktemp("servers"))
    yield running
    running.close()


class Running(dict[str, Server]):
    """Starts what is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.open: list[object] = []

    def __missing__(self, scheme: str) -> Server:
        server = {"s3": servers.s3, "gs": lambda: servers.gs(self.folder), "az": lambda: servers.az(self.folder)}[scheme]()
        self[scheme] = server.__enter__()
        self.open.append(server)
        return self[scheme]

    def close(self) -> None:
        for server in self.open:
            server.__exit__(None, None, None)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def botocore_loader() -> object:
    """What botocore knows of S3, read once: every new client of a test would read it again for a third of a second."""
    loaders = pytest.importorskip("botocore.loaders")
    return loaders.create_loader()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, botocore_loader: object) -> None:
    """Nobody's credentials, and no waiting for a cloud's metadata server."""
    for name in servers.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr("largeforge.storage.bucket.PAUSE_S", 0.01)
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: botocore_loader)


def reach(server: Server, monkeypatch: pytest.MonkeyPatch, bucket: str) -> Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.bucket(bucket)
    if server.scheme == "s3":
        server.rule()
    return server


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """A name for this test's own bucket."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    return f"lf-{letters[5:45].strip('-')}-x"


@pytest.fixture(params=["s3", "gs", "az"])
def server(request: pytest.FixtureRequest, started: dict[str, Server], environment: None, monkeypatch: pytest.MonkeyPatch, bucket: str) -> Server:
    """Each of the three, with this test's bucket in it, and the environment that leads there."""
    return reach(started[request.param], monkeypatch, bucket)


@pytest.fixture
def s3(started: dict[str, Server], environment: None, monkeypatch: pytest.MonkeyPatch, bucket: str) -> Server:
    """moto alone, which can be made to fail."""
    return reach(started["s3"], monkeypatch, bucket)


def make_artifact(folder: Path, *, rows: int = 3, note: str = "", text: str = "row") -> Artifact:
    """A small data artifact of several files; `note` is outside its id."""

    def fill(draft: Path) -> str:
        for number in range(rows):
            path = draft / "rows" / f"train-{number:05d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'{{"text": "{text} {number}"}}\n', encoding="utf-8")
        (draft / "summary.json").write_text("{}\n", encoding="utf-8")
        (draft / "about").mkdir()
        (draft / "about" / "sources.json").write_text(f'["{note}"]\n', encoding="utf-8")
        return "data"

    return write_artifact(folder, fill=fill, parents=[], config={})


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A small data artifact: 3 shards, a summary, a file outside the id."""
    return make_artifact(tmp_path / "made")
