"""Artifacts: whole or not there, the same id for the same bytes, and every damage found at the next read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from largeforge.artifact import Artifact, read_artifact, write_artifact
from largeforge.contract import Reference
from largeforge.errors import ArtifactError

PARENTS = [Reference("data", "demo", sha256="ab")]


def fill(folder: Path) -> str:
    (folder / "config.json").write_text("{}")
    (folder / "part").mkdir()
    (folder / "part" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return "model"


@pytest.fixture
def artifact(tmp_path: Path, cache: Path) -> Artifact:
    return write_artifact(tmp_path / "run" / "artifact", fill=fill, parents=PARENTS, config={"seed": 0})


def test_what_is_written_is_read(artifact: Artifact) -> None:
    assert read_artifact(artifact.folder, kind="model") == artifact
    assert artifact.parents == tuple(PARENTS)
    assert set(artifact.files) == {"config.json", "part/model.safetensors"}


def test_equal_payload_equal_id(artifact: Artifact, tmp_path: Path) -> None:
    """The id is of the payload: neither the config nor the parents nor the time is in it."""
    again = write_artifact(tmp_path / "elsewhere", fill=fill, parents=[], config={"seed": 1})
    assert again.id == artifact.id


@pytest.mark.parametrize("name", ["config.json", "part/model.safetensors", "manifest.json"])
def test_a_flipped_byte_is_an_error_at_the_next_read(artifact: Artifact, name: str) -> None:
    read_artifact(artifact.folder)
    path = artifact.folder / name
    data = bytearray(path.read_bytes())
    position = data.index(b'"sha256": "') + 12 if name == "manifest.json" else len(data) // 2
    data[position] = ord("0") if data[position] != ord("0") else ord("1")
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError):
        read_artifact(artifact.folder)


def test_weights_are_hashed_once_and_in_full_on_demand(artifact: Artifact) -> None:
    """A damage that keeps size, time and inode (a disk's, not a person's) is found where a full read is asked for."""
    read_artifact(artifact.folder)
    path = artifact.folder / "part" / "model.safetensors"
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    read_artifact(artifact.folder)
    with pytest.raises(ArtifactError, match="sha256"):
        read_artifact(artifact.folder, full=True)


@pytest.mark.parametrize(("harm", "words"), [("truncate", "bytes"), ("remove", "missing"), ("unmanifest", "no artifact")])
def test_damage_is_named(artifact: Artifact, harm: str, words: str) -> None:
    path = artifact.folder / "part" / "model.safetensors"
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "remove":
        path.unlink()
    else:
        (artifact.folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=words):
        read_artifact(artifact.folder)


def test_another_kind_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="kind model; needed: adapter"):
        read_artifact(artifact.folder, kind="adapter")


def test_a_manifest_may_not_name_files_outside(artifact: Artifact) -> None:
    path = artifact.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../secret"] = {"sha256": "00", "size_bytes": 0}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError):
        read_artifact(artifact.folder)


def test_a_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> str:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_artifact(tmp_path / "artifact", fill=broken, parents=[], config={})
    assert list(tmp_path.iterdir()) == []
