"""Which storage a path leads to, what local files mean, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from largeforge.config.compose import compose
from largeforge.contract import Storage
from largeforge.errors import MissingExtra, StorageError
from largeforge.storage.address import parse
from largeforge.storage.faults import kind_of, without_secrets
from tests.storage.test_remote import auto
from tests.tiny_models import part


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "inner/c.csv"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "set"


@pytest.mark.parametrize("choice", ["auto", "local"])
def test_local_files(choice: str, files: Path, cache: Path) -> None:
    """Proves SYS-D-011: a file, a folder, a pattern, as a plain path or file://; in order, and not copied."""
    storage: Storage = auto() if choice == "auto" else part("storage", "local")
    assert storage.fetch(str(files)) == [files / "a.jsonl", files / "b.jsonl", files / "inner/c.csv"]
    assert storage.fetch(f"{files}/*.jsonl") == [files / "a.jsonl", files / "b.jsonl"]
    assert storage.fetch(f"file://{files}/a.jsonl") == [files / "a.jsonl"]
    assert not storage.is_remote(str(files)) and storage.is_remote(f"file://{files}") and storage.is_remote("s3://bucket/a")
    with pytest.raises(StorageError, match="Nothing stands at"):
        storage.fetch(f"{files}/*.parquet")
    with pytest.raises(StorageError, match="names another machine"):
        storage.fetch("file://host/a")
    assert not cache.exists()


def test_local_refuses_urls(cache: Path) -> None:
    with pytest.raises(StorageError, match="storage=local reaches only this machine's files") as caught:
        part("storage", "local").fetch("s3://bucket/a")
    assert caught.value.next_step.startswith("storage=auto")


@pytest.mark.parametrize("url", ["s3://", "gs:///a", "s3://*/a"])
def test_no_bucket(url: str, cache: Path) -> None:
    with pytest.raises(StorageError, match="names no bucket"):
        auto().fetch(url)


def test_credentials_in_a_url_are_refused_and_not_repeated(cache: Path) -> None:
    with pytest.raises(StorageError) as caught:
        auto().fetch("s3://AKIAKEY:topsecret@bucket/a")
    assert "topsecret" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


def test_schemes() -> None:
    assert [parse(url).url for url in ("S3A://b/x/", "gcs://b//x", "abfs://b/x")] == ["s3://b/x", "gs://b/x", "az://b/x"]
    assert parse("s3://b/data/2024-*/x?.jsonl").base == "data"
    with pytest.raises(StorageError, match="no storage speaks ftp://"):
        parse("ftp://b/x")


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs.core"), ("az", "adlfs")])
def test_a_missing_library_is_named(scheme: str, library: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingExtra, match="is not installed") as caught:
        auto().fetch(f"{scheme}://bucket/a")
    assert "largeforge[storage]" in caught.value.next_step


@pytest.mark.parametrize("choice", ["auto", "local", "s3", "gs", "az"])
def test_every_choice_composes(choice: str) -> None:
    config = compose(["task=push", "data.path=x", "to=y", f"storage={choice}"]).config
    assert config.storage.target.rpartition(".")[2].lower() == choice


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh")
    said = without_secrets("sent abcdefgh to https://x/y?sv=1&sig=Zm9v%3D&se=2 with AccountKey=Zm9v==;Endpoint=z")
    assert said == "sent *** to https://x/y?sv=1&sig=***&se=2 with AccountKey=***;Endpoint=z"


def test_kinds_of_faults() -> None:
    """What libraries raise, by what a user does about it; a cause deep in the chain counts."""

    class ClientError(Exception):
        def __init__(self, code: str, status: int) -> None:
            super().__init__(code)
            self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    def caused(outer: Exception, inner: Exception) -> Exception:
        outer.__cause__ = inner
        return outer

    assert kind_of(caused(PermissionError("Forbidden"), ClientError("SignatureDoesNotMatch", 403))) == "credentials"
    assert kind_of(caused(PermissionError("Forbidden"), ClientError("403", 403))) == "denied"
    assert kind_of(caused(OSError("busy"), ClientError("SlowDown", 503))) == "passing"
    assert kind_of(ConnectionResetError()) == "passing"
    assert kind_of(caused(OSError("x"), ConnectionRefusedError())) == "unreachable"
    assert kind_of(caused(FileNotFoundError("x"), ClientError("NoSuchBucket", 404))) == "missing"
    assert kind_of(ValueError("x")) == "other"
