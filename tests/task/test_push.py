"""task=push: to a folder, to a bucket on loopback, to a Hub on loopback that checks what it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.__main__ import main
from largeforge.artifact import Artifact, read_artifact, write_artifact
from largeforge.contract import Reference

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"org/forbidden": (403, ""), "nobody/set": (401, ""), "org/broken": (500, "")}


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.chdir(tmp_path)


def make_data(folder: str, *, text: str = "hello", shards: int = 2) -> Artifact:
    def fill(draft: Path) -> str:
        (draft / "rows").mkdir()
        for number in range(shards):
            (draft / "rows" / f"train-{number:05d}.jsonl").write_text(json.dumps({"text": f"{text} {number}"}) + "\n", encoding="utf-8")
        (draft / "rows" / "test-00000.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
        return "data"

    return write_artifact(Path(folder), fill=fill, parents=[], config={})


def make_model(folder: str, kind: str) -> Artifact:
    def fill(draft: Path) -> str:
        (draft / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        (draft / "model.safetensors").write_bytes(os.urandom(1000))
        return kind

    return write_artifact(Path(folder), fill=fill, parents=[Reference("model", "org/base", "main")], config={})


# ---- folders ----


def test_to_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-D-011: a copy that is whole and verified; a second push copies nothing; another artifact is refused."""
    made = make_data("made")
    assert main(["task=push", "data=made", "to=there/first", "folder=run"]) == 0
    assert read_artifact(Path("there/first"), full=True).id == made.id
    said = capsys.readouterr().err
    assert f"data {made.id[:12]} stands at there/first (3 files" in said and "task=sft data=there/first" in said
    assert json.loads(Path("run/pushed.json").read_text()) == {"id": made.id, "kind": "data", "at": "there/first"}
    assert json.loads(Path("run/result.json").read_text())["metrics"]["files"] == 3
    times = {path: path.stat().st_mtime_ns for path in Path("there").rglob("*.json*")}
    assert main(["task=push", "data=made", f"to=file://{Path('there/first').resolve()}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("there").rglob("*.json*")} == times
    other = make_data("other", text="other")
    assert main(["task=push", "data=other", "to=there/first"]) == 2
    assert f"holds another: data artifact {made.id[:12]}; this is data artifact {other.id[:12]}" in capsys.readouterr().err


def test_a_half_copy_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    """What a killed push left is no artifact, and is completed; a stranger's file there is not touched."""
    made = make_data("made")
    half = Path("half/rows")
    half.mkdir(parents=True)
    (half / "train-00000.jsonl").write_bytes((made.folder / "rows/train-00000.jsonl").read_bytes())
    (half / ".train-00001.jsonl.77.part").write_bytes(b"{")
    assert main(["task=push", "data=made", "to=half"]) == 0
    assert read_artifact(Path("half"), full=True).id == made.id
    Path("mine").mkdir()
    Path("mine/photo.jpg").write_bytes(b"sun")
    assert main(["task=push", "data=made", "to=mine"]) == 2
    assert "holds a file that is not of this folder (photo.jpg)" in capsys.readouterr().err
    assert sorted(path.name for path in Path("mine").iterdir()) == ["photo.jpg"]


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_any_kind_goes(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_model("made", kind)
    assert main(["task=push", "data=made", "to=there"]) == 0
    assert read_artifact(Path("there"), full=True).id == made.id
    assert "task=chat model=there" in capsys.readouterr().err


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    made = make_data("made")
    for words, expected in {
        ("data=made", "storage=local", "to=s3://bucket/a"): "storage=local reaches only this machine's files.\nTry: storage=auto",
        ("data=made", "to=ftp://host/a"): "no storage speaks ftp://",
        ("data=made", "to=hub://name"): "names no repository of the Hub.\nTry: to=hub://ORG/NAME",
        ("data=made", "to=s3://key:secret@bucket/a"): "holds no account and no credentials",
        ("data=demo", "to=there"): "task=push takes one of: artifact",
        ("data=made", "to=there", "plan=true"): "leave plan=... out",
    }.items():
        assert main(["task=push", *words]) == 2
        said = capsys.readouterr().err
        assert expected in said and "Traceback" not in said
    assert "secret@" not in said
    (made.folder / "rows" / "test-00000.jsonl").write_text("{}\n")
    assert main(["task=push", "data=made", "to=there"]) == 2
    assert not Path("there").exists()


# ---- the Hub ----


class Repository:
    """What a repository holds after its commits."""

    def __init__(self, kind: str, private: bool) -> None:
        self.kind = kind
        self.private = private
        self.files: dict[str, bytes] = {".gitattributes": b""}
        self.commits: list[str] = []


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, Repository]]]:
    """A Hub over real HTTP that knows one token: makes repositories, lists and serves files, takes commits."""
    repositories: dict[str, Repository] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] == "api" and "/".join(parts[2:4]) in repositories:
                repository = repositories["/".join(parts[2:4])]
                tree = [{"type": "file", "path": name, "size": len(text), "oid": hashlib.sha1(text).hexdigest()} for name, text in repository.files.items()]
                page = {
                    "id": "/".join(parts[2:4]),
                    "sha": COMMIT,
                    "private": repository.private,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in repository.files],
                }
                self.tell(200, tree if "tree" in parts else page)
            elif "resolve" in parts:
                at = parts.index("resolve")
                self.send(200, repositories["/".join(parts[at - 2 : at])].files["/".join(parts[at + 2 :])])
            else:
                self.tell(404, {}, code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if self.headers.get("Authorization") != "Bearer hf_secret":
                self.tell(401, {"error": "Invalid username or password."})
            elif parts == ["api", "repos", "create"]:
                self.create(json.loads(body))
            elif parts == ["api", "validate-yaml"]:
                head = json.loads(body)["content"].split("---\n")[1]
                self.tell(200, {"errors": [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no head"}], "warnings": []})
            elif parts[4] == "preupload":
                asked = json.loads(body)["files"]
                self.tell(200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
            elif parts[4] == "commit":
                self.commit(repositories["/".join(parts[2:4])], [json.loads(line) for line in body.splitlines()])
            else:
                self.tell(200, {})

        def create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization')}/{asked['name']}"
            if name in REFUSALS:
                self.tell(REFUSALS[name][0], {"error": "no"})
            elif name in repositories:
                self.tell(409, {"error": "You already created this repo", "url": f"http://127.0.0.1:{server.server_port}/datasets/{name}"})
            else:
                repositories[name] = Repository(asked["type"], asked.get("private", asked.get("visibility") == "private"))
                prefix = "datasets/" if asked["type"] == "dataset" else ""
                self.tell(200, {"url": f"http://127.0.0.1:{server.server_port}/{prefix}{name}", "name": name, "id": name})

        def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    repository.commits.append(value["summary"])
                elif line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del repository.files[value["path"]]
            self.tell(200, {"success": True, "commitOid": COMMIT, "commitUrl": f"http://127.0.0.1:{server.server_port}/org/x/commit/{COMMIT}"})

        def tell(self, status: int, value: Any, code: str = "") -> None:
            self.send(status, json.dumps(value).encode(), code)

        def send(self, status: int, content: bytes, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            for name, text in (("Content-Length", str(len(content))), ("ETag", f'"{hashlib.sha256(content).hexdigest()}"'), ("X-Repo-Commit", COMMIT)):
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Repository]]:
    with hub() as (address, found):
        for name, value in {
            "ENDPOINT": address,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield found


def test_data_to_the_hub(repositories: dict[str, Repository], capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-I-002 (push): one commit holds every file as it is and a card whose head names the files of each split."""
    made = make_data("made")
    assert main(["task=push", "data=made", "to=hub://org/set"]) == 0
    repository = repositories["org/set"]
    assert (repository.kind, repository.private, repository.commits) == ("dataset", True, [f"data artifact {made.id[:12]}"])
    assert {name: hashlib.sha256(text).hexdigest() for name, text in repository.files.items() if name in made.files} == {
        name: facts["sha256"] for name, facts in made.files.items()
    }
    assert json.loads(repository.files["manifest.json"])["id"] == made.id
    card = repository.files["README.md"].decode()
    files = yaml.safe_load(card.split("---\n")[1])["configs"][0]["data_files"]
    assert files == [{"split": "test", "path": ["rows/test-00000.jsonl"]}, {"split": "train", "path": ["rows/train-00000.jsonl", "rows/train-00001.jsonl"]}]
    said = capsys.readouterr().err
    assert "/datasets/org/set" in said and "task=sft data=org/set" in said


def test_a_newer_artifact_follows(repositories: dict[str, Repository], capsys: pytest.CaptureFixture[str]) -> None:
    """The same is not sent twice; a newer one replaces it in one commit that leaves none of the old rows; strangers' files are refused."""
    make_data("made", shards=3)
    newer = make_data("newer", text="newer", shards=1)
    assert main(["task=push", "data=made", "to=hub://org/set", "private=false"]) == 0
    assert main(["task=push", "data=made", "to=hub://org/set"]) == 0
    assert "holds this artifact already" in capsys.readouterr().err
    assert len(repositories["org/set"].commits) == 1
    assert main(["task=push", "data=newer", "to=hub://org/set"]) == 0
    assert len(repositories["org/set"].commits) == 2 and repositories["org/set"].private is False
    assert set(repositories["org/set"].files) == {*newer.files, "manifest.json", "README.md", ".gitattributes"}
    repositories["org/own"] = Repository("dataset", False)
    repositories["org/own"].files["photo.jpg"] = b"sun"
    capsys.readouterr()
    assert main(["task=push", "data=made", "to=hub://org/own"]) == 2
    assert "1 files that LargeForge did not put there (photo.jpg)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_models_to_the_hub(kind: str, repositories: dict[str, Repository]) -> None:
    """Proves SYS-I-002 (push): models and adapters become model repositories whose card says which library reads them."""
    made = make_model("made", kind)
    assert main(["task=push", "data=made", "to=hub://org/model"]) == 0
    repository = repositories["org/model"]
    assert repository.kind == "model"
    assert repository.files["model.safetensors"] == (made.folder / "model.safetensors").read_bytes()
    head = yaml.safe_load(repository.files["README.md"].decode().split("---\n")[1])
    assert head["library_name"] == ("peft" if kind == "adapter" else "transformers")
    assert head.get("base_model") == ("org/base" if kind == "adapter" else None)


def test_what_the_hub_refuses(repositories: dict[str, Repository], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-I-002 (errors): each tells what to do, none shows the token."""
    make_data("made")
    for name, expected in {"org/forbidden": "does not let you write to org (it answered 403)", "org/broken": "the Hub answered 500"}.items():
        assert main(["task=push", "data=made", f"to=hub://{name}"]) == 2
        said = capsys.readouterr().err
        assert expected in said and "Try: " in said and "hf_secret" not in said and "Traceback" not in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["task=push", "data=made", "to=hub://org/set"]) == 2
    said = capsys.readouterr().err
    assert "the Hub does not know you (it answered 401)" in said and "hf auth login" in said and "hf_wrong" not in said
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["task=push", "data=made", "to=hub://org/set"]) == 2
    assert "HF_HUB_OFFLINE=0" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["task=push", "data=made", "to=hub://org/set"]) == 2
    said = capsys.readouterr().err
    assert "the Hub at http://127.0.0.1:9 is not in reach" in said and "HF_ENDPOINT" in said


def test_from_the_command_line(tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_TOKEN are all that a user sets."""
    made = make_data("made")
    with hub() as (address, found):
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_secret",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
        }
        words = [sys.executable, "-m", "largeforge", "task=push", "data=made", "to=hub://org/set"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(found["org/set"].files["manifest.json"])["id"] == made.id
        assert f"{address}/datasets/org/set" in done.stderr
