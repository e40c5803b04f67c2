"""about/audit.jsonl: appended, chained, and every way to tamper with it seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largeforge.artifact import AUDIT, read_artifact, write_artifact
from largeforge.data import audit
from largeforge.errors import ArtifactError, CheckFailed


def sealed(folder: Path) -> Path:
    def fill(draft: Path) -> str:
        (draft / "rows.jsonl").write_text("{}\n", encoding="utf-8")
        for number in range(3):
            audit.append(draft, "step", now=lambda: "2026-01-01T00:00:00+00:00", number=number)
        return "data"

    return write_artifact(folder / "artifact", fill=fill, parents=[], config={}).folder


def lines(folder: Path) -> list[str]:
    return (folder / AUDIT).read_text(encoding="utf-8").splitlines()


def test_entries_are_chained(tmp_path: Path) -> None:
    """Proves SYS-D-022: what was done to data is logged, and the log shows whether it was changed."""
    entries = audit.read(sealed(tmp_path))
    assert [entry["number"] for entry in entries] == [1, 2, 3]
    assert [entry["before"] for entry in entries] == [audit.START, entries[0]["hash"], entries[1]["hash"]]


def test_it_grows_after_the_artifact_is_sealed(tmp_path: Path) -> None:
    folder = sealed(tmp_path)
    before = read_artifact(folder).id
    audit.append(folder, "pushed", to="s3://bucket")
    assert read_artifact(folder, full=True).id == before
    assert audit.read(folder)[-1]["event"] == "pushed"


@pytest.mark.parametrize("tampering", ["change", "remove", "swap", "forge"])
def test_tampering_is_seen(tmp_path: Path, tampering: str) -> None:
    folder = sealed(tmp_path)
    entries = lines(folder)
    if tampering == "change":
        entries[1] = entries[1].replace('"number": 1}', '"number": 9}')
    elif tampering == "remove":
        del entries[1]
    elif tampering == "swap":
        entries[1], entries[2] = entries[2], entries[1]
    else:
        forged = json.loads(entries[1])
        forged["details"] = {"number": 9}
        entries[1] = json.dumps(forged, sort_keys=True)
    assert entries != lines(folder)
    (folder / AUDIT).write_text("".join(f"{line}\n" for line in entries), encoding="utf-8")
    with pytest.raises(CheckFailed, match="audit log is broken"):
        audit.read(folder)


def test_a_log_that_was_written_again_as_a_whole_is_seen_by_the_manifest(tmp_path: Path) -> None:
    folder = sealed(tmp_path)
    (folder / AUDIT).unlink()
    audit.append(folder, "step", number="another story")
    audit.read(folder)  # the chain alone is sound
    with pytest.raises(ArtifactError, match="does not begin with what was sealed"):
        read_artifact(folder)


def test_a_log_that_was_cut_short_is_seen_by_the_manifest(tmp_path: Path) -> None:
    folder = sealed(tmp_path)
    (folder / AUDIT).write_text(lines(folder)[0] + "\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not begin with what was sealed"):
        read_artifact(folder)


def test_about_is_verified_and_no_part_of_the_id(tmp_path: Path) -> None:
    def fill(said: str):  # type: ignore[no-untyped-def]
        def write(draft: Path) -> str:
            (draft / "about").mkdir()
            (draft / "about" / "sources.json").write_text(said, encoding="utf-8")
            (draft / "rows.jsonl").write_text("{}\n", encoding="utf-8")
            return "data"

        return write

    one = write_artifact(tmp_path / "one", fill=fill("[1]"), parents=[], config={})
    two = write_artifact(tmp_path / "two", fill=fill("[2]"), parents=[], config={})
    assert one.id == two.id
    (one.folder / "about" / "sources.json").write_text("[3]", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is not what was written"):
        read_artifact(one.folder)
