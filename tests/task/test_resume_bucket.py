"""Copies of checkpoints in a bucket (moto's S3 as a process): sent while training goes on, found where this machine holds none, pruned alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from largeforge.storage.auto import Auto
from largeforge.storage.config import AutoConfig
from tests.storage import servers
from tests.storage.servers import Server
from tests.task.conftest import Runner
from tests.task.test_resume_stops import Stop, artifact_id, records

BUCKET = "lf-checkpoints"
WORDS = ("trainer.max_steps=6", "trainer.checkpoint.every_steps=1", "trainer.checkpoint.keep_last=2", "adapter.dropout=0.2")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in (*servers.VARIABLES, "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("largeforge.storage.bucket.PAUSE_S", 0.01)
    with servers.s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.bucket(BUCKET)
        yield server


def there(url: str) -> set[str]:
    storage: Any = Auto(AutoConfig(_target_="largeforge.storage.auto.Auto", cache_gib=1))
    return {name.partition("/")[0] for name in storage.names(url)}


def test_goes_on_from_a_bucket(train: Runner, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-F-017, SYS-D-010, SYS-D-020, SYS-R-006: the machine is lost, the run goes on elsewhere from the bucket and ends with the same weights."""
    url = f"s3://{BUCKET}/trial"
    copies = f"trainer.checkpoint.folder={url}"
    assert train("whole", *WORDS)[0] == 0
    with monkeypatch.context() as patch:
        Stop(patch, where="step", step=4)
        assert train("run", *WORDS, copies)[0] == 143
    assert there(url) == {"step=000003", "step=000004"}
    # a new run does not write into another's folder
    assert train("new", *WORDS, copies)[0] == 2
    assert "holds checkpoints of a run already (step=000004)" in (said := capsys.readouterr().err) and f"resume={url}" in said
    shutil.rmtree(tmp_path / "run")
    # the newest copy is damaged as well: it is named, and the one before it is taken
    s3_put(f"{BUCKET}/trial/step=000004/state.ckpt", b"garbage")
    assert train("run", *WORDS, copies, "resume=auto")[0] == 0
    assert "step=000004" in capsys.readouterr().err
    assert artifact_id(tmp_path / "run") == artifact_id(tmp_path / "whole")
    assert [one["step"] for one in records(tmp_path / "run")] == [4, 5, 6]
    assert there(url) == {"step=000005", "step=000006"}
    # one by name, into another folder: nothing is left to train, and the artifact is the same
    assert train("named", *WORDS, f"resume={url}/step=000006")[0] == 0
    assert train("newest", *WORDS, f"resume={url}")[0] == 0
    assert artifact_id(tmp_path / "named") == artifact_id(tmp_path / "newest") == artifact_id(tmp_path / "whole")
    assert train("nowhere", *WORDS, f"resume=s3://{BUCKET}/nowhere")[0] == 2
    assert "no checkpoint stands there" in capsys.readouterr().err


def test_a_bucket_that_is_gone(train: Runner, s3: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """At the start it is an error; later the run goes on and says that it left less than was asked for."""
    assert train("none", *WORDS, "trainer.checkpoint.folder=s3://lf-no-such-bucket/x")[0] == 2
    assert "lf-no-such-bucket" in capsys.readouterr().err
    s3.rule(method="PUT", match="step=000006", do="deny")
    code, result = train("run", *WORDS, f"trainer.checkpoint.folder=s3://{BUCKET}/later")
    assert code == 0 and result["status"] == "incomplete" and "could not be copied" in capsys.readouterr().err
    assert json.loads((Path("run") / "artifact" / "manifest.json").read_text())["kind"] == "adapter"
    s3.rule()


def s3_put(path: str, content: bytes) -> None:
    import s3fs

    s3fs.S3FileSystem().pipe_file(path, content)
