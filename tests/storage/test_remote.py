"""Fetch and put against real servers: S3 (moto), Google (fake-gcs-server), Azure (azurite), each a process on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from largeforge.__main__ import main
from largeforge.artifact import MANIFEST, Artifact, read_artifact
from largeforge.contract import Storage
from largeforge.errors import ArtifactError, Interrupted, StorageError
from largeforge.storage.auto import Auto
from largeforge.storage.config import AutoConfig, AZConfig, GSConfig, S3Config
from tests.storage.conftest import make_artifact
from tests.storage.servers import ACCOUNT_KEY, ROOT, Server


def auto(cache_gib: float = 1.0) -> Storage:
    storage: Storage = Auto(AutoConfig(_target_="largeforge.storage.auto.Auto", cache_gib=cache_gib))
    return storage


def texts(files: list[Path]) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in files}


# ---- there and back ----


def test_round_trip(server: Server, bucket: str, artifact: Artifact) -> None:
    """Proves SYS-D-012, SYS-I-004: an artifact goes into a bucket of each kind and comes back whole; so do an object, a prefix, a pattern."""
    url = f"{server.scheme}://{bucket}/sets/first"
    assert auto().put(artifact.folder, url + "/") == url
    files = auto().fetch(url)
    folder = next(path.parent for path in files if path.name == MANIFEST)
    assert read_artifact(folder, full=True).id == artifact.id
    assert {path.relative_to(folder).as_posix() for path in files} == {*artifact.files, *artifact.about, MANIFEST}
    assert texts(auto().fetch(f"{url}/rows/train-00001.jsonl")) == {"train-00001.jsonl": '{"text": "row 1"}\n'}
    assert list(texts(auto().fetch(f"{url}/rows/"))) == [f"train-0000{number}.jsonl" for number in range(3)]
    assert list(texts(auto().fetch(f"{url}/*/train-*[02].jsonl"))) == ["train-00000.jsonl", "train-00002.jsonl"]
    assert [path.relative_to(path.parents[1]).as_posix() for path in auto().fetch(f"{url}/ro*/*1.jsonl")] == ["rows/train-00001.jsonl"]


def test_names_and_removal(server: Server, bucket: str, artifact: Artifact) -> None:
    """What stands below a folder is listed and deleted; a folder whose name only begins alike stays."""
    url = f"{server.scheme}://{bucket}/kept/step=000001"
    assert auto().names(url) == []
    for number in ("1", "10"):
        auto().put(artifact.folder, f"{server.scheme}://{bucket}/kept/step=00000{number}")
    assert auto().names(url) == sorted({*artifact.files, *artifact.about, MANIFEST})
    auto().remove(url)
    assert {name.partition("/")[0] for name in auto().names(f"{server.scheme}://{bucket}/kept")} == {"step=0000010"}
    with pytest.raises(StorageError, match="whole bucket"):
        auto().remove(f"{server.scheme}://{bucket}/")


def test_changed_object_is_fetched_again(server: Server, bucket: str, tmp_path: Path) -> None:
    """Proves SYS-D-013: what changed under the same name and size comes anew; both contents are kept by their hash."""
    url = f"{server.scheme}://{bucket}/one"
    for text in ("old", "new"):
        folder = tmp_path / text
        folder.mkdir()
        (folder / "a.txt").write_text(text)
        if text == "new":
            with pytest.raises(StorageError, match="holds another a.txt"):
                auto().put(folder, url)
            file_system(server).pipe_file(f"{bucket}/one/a.txt", b"new")
        else:
            auto().put(folder, url)
        assert texts(auto().fetch(f"{url}/a.txt")) == {"a.txt": text}


def test_second_put_sends_only_what_is_missing(server: Server, bucket: str, artifact: Artifact) -> None:
    """The same artifact is found to stand there already; a payload file that was lost is sent again."""
    url = f"{server.scheme}://{bucket}/a"
    auto().put(artifact.folder, url)
    before = file_system(server).info(f"{bucket}/a/summary.json")
    file_system(server).rm_file(f"{bucket}/a/rows/train-00001.jsonl")
    auto().put(artifact.folder, url)
    assert file_system(server).info(f"{bucket}/a/summary.json") == before  # not written again
    assert read_artifact(next(path.parent for path in auto().fetch(url) if path.name == MANIFEST), full=True).id == artifact.id


def test_another_artifact_is_not_overwritten(server: Server, bucket: str, artifact: Artifact, tmp_path: Path) -> None:
    url = f"{server.scheme}://{bucket}/a"
    auto().put(artifact.folder, url)
    other = make_artifact(tmp_path / "other", text="other")
    with pytest.raises(StorageError, match=f"holds another: data artifact {artifact.id[:12]}; this is data artifact {other.id[:12]}"):
        auto().put(other.folder, url)
    assert texts(auto().fetch(f"{url}/rows/train-00000.jsonl")) == {"train-00000.jsonl": '{"text": "row 0"}\n'}


def test_an_object_of_another_tool_is_read_before_it_is_judged(server: Server, bucket: str, artifact: Artifact) -> None:
    """No digest beside it: the same bytes are not sent again, others of the same size are refused, and so are strangers."""
    name = f"{bucket}/a/rows/train-00000.jsonl"
    url = f"{server.scheme}://{bucket}/a"
    content = (artifact.folder / "rows/train-00000.jsonl").read_bytes()
    file_system(server).pipe_file(name, b"x" * len(content))
    with pytest.raises(StorageError, match=r"holds another rows/train-00000\.jsonl"):
        auto().put(artifact.folder, url)
    file_system(server).pipe_file(name, content)
    file_system(server).pipe_file(f"{bucket}/a/holiday.jpg", b"sun")
    with pytest.raises(StorageError, match=r"holds a file that is not of this folder \(holiday.jpg\)"):
        auto().put(artifact.folder, url)
    file_system(server).rm_file(f"{bucket}/a/holiday.jpg")
    before = file_system(server).info(name)
    auto().put(artifact.folder, url)
    assert file_system(server).info(name) == before


def test_a_damaged_artifact_is_not_sent(s3: Server, bucket: str, artifact: Artifact) -> None:
    (artifact.folder / "summary.json").write_text("[]\n")
    with pytest.raises(ArtifactError, match="summary.json is not what was written"):
        auto().put(artifact.folder, f"s3://{bucket}/a")
    assert s3.seen("PUT") == []


# ---- the cache ----


def test_what_is_there_is_fetched_once(s3: Server, bucket: str, artifact: Artifact, cache: Path) -> None:
    """Proves SYS-D-013: a second fetch asks whether anything changed and brings nothing; files are kept once, under the hash of their bytes."""
    url = f"s3://{bucket}/a"
    auto().put(artifact.folder, url)
    s3.rule()
    first = auto().fetch(url)
    assert len(objects_read(s3)) == 6
    s3.rule()
    assert auto().fetch(url) == first
    assert texts(auto().fetch(f"{url}/rows")) == {path.name: path.read_text() for path in sorted((artifact.folder / "rows").iterdir())}
    assert objects_read(s3) == []
    kept = {path.name for path in (cache / "storage" / "objects").iterdir()}
    assert {fact["sha256"] for fact in artifact.files.values()} < kept


def test_two_processes_fetch_an_object_once(s3: Server, bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "a.bin").write_bytes(os.urandom(2_000_000))
    url = auto().put(folder, f"s3://{bucket}/big")
    s3.rule(method="GET", match="a.bin", do="slow")  # so that both are at it together
    children = [child(f"auto().fetch({url!r})") for _ in range(2)]
    assert [process.wait(timeout=30) for process in children] == [0, 0]
    assert objects_read(s3) == [f"/{bucket}/big/a.bin"]


def test_a_broken_download_leaves_nothing(s3: Server, bucket: str, artifact: Artifact, cache: Path) -> None:
    url = f"s3://{bucket}/a"
    auto().put(artifact.folder, url)
    s3.rule(method="GET", match="summary", do="fail")
    with pytest.raises(StorageError, match="failed again and again") as caught:
        auto().fetch(url)
    assert "run it again" in caught.value.next_step
    left = [path for path in (cache / "storage" / "leases").rglob("*") if path.is_file() and path.name != "lock" and path.parent.name != "uses"]
    assert left == [] and not list((cache / "storage" / "views").iterdir())
    s3.rule()
    assert len(auto().fetch(url)) == 6
    assert len(objects_read(s3)) < 6  # what had come is not fetched again


def test_names_that_leave_the_folder_are_refused(s3: Server, bucket: str, cache: Path) -> None:
    from tests.storage.servers import ask

    ask("PUT", f"{s3.endpoint}/{bucket}/a/%2E%2E/%2E%2E/evil", b"x", {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request"})
    with pytest.raises(StorageError, match="whose name cannot be a file's"):
        auto().fetch(f"s3://{bucket}/a")
    assert not list(cache.rglob("evil"))


# ---- interrupted uploads ----


def test_killed_in_the_middle(server: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-D-012 (interrupted): kill -9 while bytes flow leaves no artifact; a second put goes on and sends no file again."""
    made = make_artifact(tmp_path / "made")
    shutil.rmtree(made.folder)
    made = make_artifact(tmp_path / "made", rows=12, text="x" * 30_000)
    url = f"{server.scheme}://{bucket}/killed"
    with throttled(server, monkeypatch, allow=200_000) as stalled:
        process = child(f"auto().put(Path({str(made.folder)!r}), {url!r})")
        assert stalled.wait(timeout=30)
        process.kill()
        process.wait()
    there = sorted(name for name in file_system(server).find(f"{bucket}/killed"))
    assert f"{bucket}/killed/{MANIFEST}" not in there
    assert 0 < len(there) < 13
    for name in there:  # each whole
        assert file_system(server).info(name)["size"] == (made.folder / name.removeprefix(f"{bucket}/killed/")).stat().st_size
    before = {name: file_system(server).info(name) for name in there}
    auto().put(made.folder, url)
    assert {name: file_system(server).info(name) for name in there} == before
    assert read_artifact(next(path.parent for path in auto().fetch(url) if path.name == MANIFEST), full=True).id == made.id


def test_a_server_that_fails_in_the_middle(s3: Server, bucket: str, artifact: Artifact) -> None:
    """Proves SYS-I-004 (interrupted): the put ends with an error and no manifest; the next one sends only the rest."""
    url = f"s3://{bucket}/a"
    s3.rule(method="PUT", match="train-00002", do="fail")
    with pytest.raises(StorageError, match=r"train-00002\.jsonl cannot be written: the server at .* failed again and again") as caught:
        auto().put(artifact.folder, url)
    assert "not sent or fetched twice" in caught.value.next_step
    sent = {path.removeprefix(f"/{bucket}/a/").partition("?")[0] for path in s3.seen("PUT")}
    s3.rule()
    auto().put(artifact.folder, url)
    again = [path.removeprefix(f"/{bucket}/a/").partition("?")[0] for path in s3.seen("PUT")]
    assert MANIFEST not in sent and again[-1] == MANIFEST
    assert "rows/train-00002.jsonl" in again and len(again) == len(set(again)) and not set(again) & (sent - {"rows/train-00002.jsonl"})


def test_stopped_by_the_user(s3: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the progress raises ends the put: what moves stops at its next block, its parts are taken back, no manifest is sent."""

    class Progress:
        def bar(self, title: str, *, total: int | None, unit: str = "") -> Progress:
            return self

        def advance(self, count: int = 1, **fields: object) -> None:
            raise Interrupted("Stopped.")

        def close(self) -> None:
            pass

        def say(self, text: str) -> None:
            pass

    monkeypatch.setattr("largeforge.storage.s3.PART_BYTES", 5 << 20)  # the smallest that S3 takes
    folder = tmp_path / "big"
    folder.mkdir()
    with (folder / "a.bin").open("wb") as stream:
        stream.truncate(11 << 20)
    (folder / "b.txt").write_text("small")
    storage = Auto(AutoConfig(_target_="x", cache_gib=1.0), progress=Progress())
    with pytest.raises(Interrupted):
        storage.put(folder, f"s3://{bucket}/a")
    assert f"{bucket}/a/a.bin" not in file_system(s3).find(f"{bucket}/a")
    assert len(s3.seen("DELETE")) == 1


def test_what_passes_is_tried_again(s3: Server, bucket: str, artifact: Artifact) -> None:
    s3.rule(method="PUT", match="summary", do="fail", times=4)
    auto().put(artifact.folder, f"s3://{bucket}/a")
    assert len([path for path in s3.seen("PUT") if "summary" in path]) == 5


def test_a_multipart_upload_that_fails_is_aborted(s3: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object of half the parts, and no parts left behind."""
    monkeypatch.setattr("largeforge.storage.s3.PART_BYTES", 5 << 20)  # the smallest that S3 takes
    folder = tmp_path / "big"
    folder.mkdir()
    with (folder / "a.bin").open("wb") as stream:
        stream.truncate(11 << 20)
    s3.rule(method="PUT", match="a.bin", after=1, do="deny")
    with pytest.raises(StorageError, match="access is denied"):
        auto().put(folder, f"s3://{bucket}/big")
    assert len(s3.seen("DELETE")) == 1
    assert file_system(s3).find(f"{bucket}/big") == []


def test_interrupted_uploads_of_the_same_rows(s3: Server, bucket: str, artifact: Artifact, tmp_path: Path) -> None:
    """What is outside the id (a time, a path) may differ from the run whose upload broke off; another payload is refused."""
    url = f"s3://{bucket}/a"
    s3.rule(method="PUT", match=MANIFEST, do="deny")
    with pytest.raises(StorageError, match="access is denied"):
        auto().put(artifact.folder, url)
    s3.rule()
    with pytest.raises(StorageError, match=r"holds another rows/train-00000\.jsonl"):
        auto().put(make_artifact(tmp_path / "other", text="other").folder, url)
    later = make_artifact(tmp_path / "later", note="another day")
    assert later.id == artifact.id
    auto().put(later.folder, url)
    folder = next(path.parent for path in auto().fetch(url) if path.name == MANIFEST)
    assert read_artifact(folder, full=True).id == artifact.id and "another day" in (folder / "about/sources.json").read_text()
    auto().put(artifact.folder, url)  # stands there: what its manifest tells stays
    assert read_artifact(next(path.parent for path in auto().fetch(url) if path.name == MANIFEST), full=True).id == artifact.id


# ---- task=push ----


def test_push_there_and_back(
    s3: Server, bucket: str, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proves SYS-I-004: an artifact goes into a bucket and out of it by the command line alone."""
    monkeypatch.chdir(tmp_path)
    assert main(["task=push", "data=made", f"to=s3://{bucket}/a"]) == 0
    said = capsys.readouterr().err
    assert f"stands at s3://{bucket}/a" in said and f"task=sft data=artifact data.path=s3://{bucket}/a" in said
    assert main(["task=push", f"data=s3://{bucket}/a", "to=back"]) == 0
    assert read_artifact(tmp_path / "back", full=True).id == artifact.id
    capsys.readouterr()
    assert main(["task=push", f"data=s3://{bucket}/b", "to=other"]) == 2
    assert f"Nothing stands at s3://{bucket}/b; in this folder: a" in capsys.readouterr().err


# ---- errors ----


def test_nothing_there(server: Server, bucket: str, artifact: Artifact) -> None:
    """The error names the URL, and what stands beside it or that the bucket is missing."""
    auto().put(artifact.folder, f"{server.scheme}://{bucket}/a")
    with pytest.raises(StorageError, match=rf"Nothing stands at {server.scheme}://{bucket}/a/row; in this folder: about, manifest.json, rows, summary.json"):
        auto().fetch(f"{server.scheme}://{bucket}/a/row")
    with pytest.raises(StorageError, match=f"Nothing stands at {server.scheme}://{bucket}/a/.*csv"):
        auto().fetch(f"{server.scheme}://{bucket}/a/*.csv")
    for ask in (lambda url: auto().fetch(url), lambda url: auto().put(artifact.folder, url)):
        with pytest.raises(StorageError, match="there is no (bucket|container) absent-for-sure") as caught:
            ask(f"{server.scheme}://absent-for-sure/a")
        assert "make the" in caught.value.next_step


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_not_in_reach(scheme: str, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: nobody answers
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
        with pytest.raises(StorageError, match=f"the storage at {endpoint} is not in reach") as caught:
            part(scheme, endpoint=endpoint).fetch(f"{scheme}://bucket/a")
    assert "storage.endpoint" in caught.value.next_step


def test_denied(s3: Server, bucket: str) -> None:
    s3.rule(method="GET", do="deny")
    with pytest.raises(StorageError, match=rf"s3://{bucket}/a/b\* cannot be read: access is denied at {s3.endpoint}") as caught:
        auto().fetch(f"s3://{bucket}/a/b*")
    assert "AWS_ACCESS_KEY_ID" in caught.value.next_step
    s3.rule(method="GET", do="key")
    with pytest.raises(StorageError, match=r"no valid credentials for s3:// at .* \(The key is not known"):
        auto().fetch(f"s3://{bucket}/a/b*")


def test_no_credentials(s3: Server, bucket: str, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any the mend is told; a public bucket needs none."""
    auto().put(artifact.folder, f"s3://{bucket}/a")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=r"no valid credentials for s3://") as caught:
        auto().fetch(f"s3://{bucket}/a")
    assert "aws configure" in caught.value.next_step and "storage.anonymous=true" in caught.value.next_step


def test_wrong_credentials_are_not_shown(started: dict[str, Server], environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure answers that the signature is wrong; the key stands in no message."""
    server = started["az"]
    wrong = ACCOUNT_KEY[:10] + "AAAA" + ACCOUNT_KEY[14:]
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.environment["AZURE_STORAGE_CONNECTION_STRING"].replace(ACCOUNT_KEY, wrong))
    with pytest.raises(StorageError, match="no valid credentials for az://|access is denied") as caught:
        auto().fetch("az://whatever/a")
    assert wrong not in str(caught.value) and "AZURE_STORAGE_ACCOUNT_KEY" in caught.value.next_step


# ---- what the tests use ----


def part(scheme: str, *, endpoint: str | None = None, anonymous: bool = False) -> Storage:
    """storage=s3, gs or az."""
    from largeforge.storage.az import AZ
    from largeforge.storage.gs import GS
    from largeforge.storage.s3 import S3

    common = {"_target_": "x", "endpoint": endpoint, "anonymous": anonymous, "cache_gib": 1.0}
    storage: Storage
    if scheme == "s3":
        storage = S3(S3Config(**common, region="us-east-1"))
    elif scheme == "gs":
        storage = GS(GSConfig(**common, project=None))
    else:
        storage = AZ(AZConfig(**common, account="devstoreaccount1"))
    return storage


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_typed_choices(scheme: str, started: dict[str, Server], environment: None, monkeypatch: pytest.MonkeyPatch, bucket: str, artifact: Artifact) -> None:
    """storage=s3|gs|az reaches an endpoint that the config names, and no other kind of URL."""
    server = started[scheme]
    if scheme == "s3":
        server.rule()
    server.bucket(bucket)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
    storage = part(scheme, endpoint=server.endpoint)
    url = storage.put(artifact.folder, f"{scheme}://{bucket}/a")
    assert len(storage.fetch(url)) == 6
    with pytest.raises(StorageError, match="storage=auto"):
        storage.fetch(f"{'gs' if scheme != 'gs' else 's3'}://{bucket}/a")


def file_system(server: Server):  # type: ignore[no-untyped-def]
    """What another tool would use."""
    fs = part(server.scheme, endpoint=server.endpoint if server.scheme != "az" else None).open("any").connect()  # type: ignore[attr-defined]
    fs.invalidate_cache()
    return fs


def objects_read(server: Server) -> list[str]:
    """Objects whose bytes were asked for since the last rule."""
    return [path for path in server.seen("GET") if "list-type" not in path and path.count("/") > 2]


def child(statement: str) -> subprocess.Popen[str]:
    """Another process that uses storage."""
    made = "Auto(AutoConfig(_target_='largeforge.storage.auto.Auto', cache_gib=1.0))"
    head = "from pathlib import Path\nfrom largeforge.storage.auto import Auto\nfrom largeforge.storage.config import AutoConfig"
    code = f"{head}\ndef auto(): return {made}\n{statement}"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), text=True)


@contextmanager
def throttled(server: Server, monkeypatch: pytest.MonkeyPatch, *, allow: int) -> Iterator[threading.Event]:
    """Lead the environment through a line that lets `allow` bytes up and then stands still; the event says that it does."""
    parts = urlsplit(server.endpoint)
    stalled, left, lock = threading.Event(), [allow], threading.Lock()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def up(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                with lock:
                    left[0] -= len(data)
                    if left[0] < 0:
                        stalled.set()
                        over.wait(40)
                        break
                target.sendall(data)
                time.sleep(0.001)
        except OSError:
            pass
        finally:
            target.close()
            source.close()

    def down(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass

    def accept() -> None:
        while not over.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            behind = socket.create_connection((parts.hostname, parts.port))
            threading.Thread(target=up, args=(client, behind), daemon=True).start()
            threading.Thread(target=down, args=(behind, client), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    with monkeypatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value.replace(f":{parts.port}", f":{listener.getsockname()[1]}"))
        try:
            yield stalled
        finally:
            over.set()
            thread.join()
            listener.close()
