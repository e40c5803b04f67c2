"""Hub data sets through `datasets` itself, on a local folder in place of a repository: split, subset, revision, streaming, and what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.data.chat import Chat
from largeforge.data.hub import HubRows
from largeforge.data.raw import Rows, read_slice
from largeforge.data.rows import Row
from largeforge.data.sources import Source
from largeforge.errors import InputError
from tests.data.tiny import exchange, make_config, make_rows_config, make_tokenizer, write_jsonl

ROWS = [exchange(f"say {n}", f"{n} one two three") for n in range(12)]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "repository"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", ROWS[:3])
    return folder


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """org/name, which means the folder: everything but the way to the network is real."""
    real = Source

    def redirected(name: str, **parts: object) -> Source:
        rows = parts.get("hub")
        if isinstance(rows, HubRows):
            rows.name = str(repository)
        return real(name, **parts)  # type: ignore[arg-type]

    monkeypatch.setattr("largeforge.data.sources.Source", redirected)
    return "org/name"


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_are_read_whole_or_as_a_stream(cache: Path, repository: Path, streaming: bool) -> None:
    """Proves SR-F-011: both ways give the same rows in the same order, with the same places."""
    rows = HubRows(str(repository), split="test", revision=None, streaming=streaming)
    assert [record.value for record in rows.records()] == ROWS[:3]
    assert [record.origin for record in rows.records()][:2] == [f"{repository}[test] row 1", f"{repository}[test] row 2"]
    assert bool(list((repository.parent / "hf").rglob("*.arrow"))) is not streaming  # a stream keeps nothing on disk
    again = HubRows(str(repository), split="test", revision=None, streaming=streaming)
    other = HubRows(str(repository), split="train", revision=None, streaming=streaming)
    assert rows.fingerprint() == again.fingerprint() != other.fingerprint()


def test_a_streams_fingerprint_follows_the_bytes(cache: Path, repository: Path) -> None:
    before = HubRows(str(repository), split="test", revision=None, streaming=True).fingerprint()
    write_jsonl(repository / "test.jsonl", ROWS[:4])
    assert HubRows(str(repository), split="test", revision=None, streaming=True).fingerprint() != before


@pytest.mark.parametrize("streaming", [False, True])
def test_raw_rows_come_from_the_hub(cache: Path, hub: str, tmp_path: Path, streaming: bool) -> None:
    """Proves SR-F-011: an id and a split, streamed or not, cut into slices that other processes read."""
    data = Rows(make_rows_config(hub, split="test", streaming=streaming))
    rows = [row for piece in data.slices(2, tmp_path / "spill") for row in read_slice(piece)]
    assert [row.content for row in rows if isinstance(row, Row)] == ROWS[:3]
    assert rows == list(data.rows())
    assert (data.sources()[0].name, len(data.sources()[0].sha256)) == (hub, 64)
    assert data.expected_rows() == (None if streaming else 3)
    assert len([*Rows(make_rows_config(hub, streaming=streaming, limit=5)).rows()]) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_chat_trains_on_the_hub(cache: Path, hub: str, streaming: bool) -> None:
    """Proves SR-F-011."""
    data = Chat(make_config(hub, streaming=streaming), tokenizer=make_tokenizer())
    assert data.num_rows == 12
    assert data.source.name == hub


def test_what_is_not_there_is_told(cache: Path, repository: Path) -> None:
    with pytest.raises(InputError, match="no such split") as caught:
        HubRows(str(repository), split="dev", revision=None).fingerprint()
    assert "data.split" in caught.value.next_step
    with pytest.raises(InputError, match="has several") as caught:
        list(HubRows(str(repository), split="train", revision=None, subset="french").records())
    assert "data.subset=" in caught.value.next_step


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_files_of_a_repository_are_told(cache: Path, repository: Path, streaming: bool) -> None:
    (repository / "test.jsonl").write_text('{"a": 1}\n{broken\n', encoding="utf-8")
    with pytest.raises(InputError, match="cannot be had from the Hub or its local cache"):
        list(HubRows(str(repository), split="test", revision=None, streaming=streaming).records())
