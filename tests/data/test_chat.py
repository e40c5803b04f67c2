"""`data=chat` as a whole: counts, the split, held-out rows, what a run records, the Hub through `datasets`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from largeforge.build import build
from largeforge.contract import Reference
from largeforge.data.chat import Chat
from largeforge.data.hub import HubRows
from largeforge.errors import InputError
from tests.data.tiny import exchange, make_config, make_tokenizer, write_jsonl

ROWS = [exchange(f"say {n}", f"{n} one two three") for n in range(40)]


@pytest.fixture
def path(cache: Path, tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def test_build_makes_it_from_its_config_alone(path: Path) -> None:
    data = build(make_config(path), tokenizer=make_tokenizer(), template=None, train_on="answer", progress=None)
    assert isinstance(data, Chat)
    assert data.num_rows == 40


def test_without_a_tokenizer_rows_are_still_checked_and_counted(path: Path) -> None:
    data = Chat(make_config(path, validation=0.2))
    with_tokens = Chat(make_config(path, validation=0.2), tokenizer=make_tokenizer())
    assert data.num_rows == with_tokens.num_rows
    assert data.facts["num_validation_rows"] == with_tokens.facts["num_validation_rows"] == len(data.heldout()) > 0


def test_facts_add_up(path: Path) -> None:
    data = Chat(make_config(path), tokenizer=make_tokenizer())
    rows = data.sample(100)
    facts = data.facts
    assert len(rows) == facts["num_rows"] == facts["rows_kept"] == facts["rows_in"] == 40
    assert facts["tokens"] == sum(len(row.token_ids) for row in rows)
    assert facts["supervised_tokens"] == sum(sum(row.supervised) for row in rows)
    assert facts["longest_row"] == max(len(row.token_ids) for row in rows)
    assert [row.origin for row in rows[:2]] == [f"{path}:1", f"{path}:2"]


def test_train_on_all_learns_every_token_but_the_first(path: Path) -> None:
    for row in Chat(make_config(path), tokenizer=make_tokenizer(), train_on="all").sample(5):
        assert row.supervised == [False] + [True] * (len(row.token_ids) - 1)


def test_the_split_hangs_on_what_rows_say_not_on_their_order(path: Path, tmp_path: Path) -> None:
    shuffled = ROWS + ROWS[:5]
    random.Random(0).shuffle(shuffled)
    other = write_jsonl(tmp_path / "shuffled.jsonl", shuffled)
    first, second = ({example.answer for example in Chat(make_config(p, validation=0.3)).heldout()} for p in (path, other))
    assert first == second
    assert 4 <= len(first) <= 20
    trained = Chat(make_config(other, validation=0.3), tokenizer=make_tokenizer()).sample(100)
    tokenizer = make_tokenizer()
    assert not any(answer in tokenizer.decode(row.token_ids) for row in trained for answer in first if f" {answer}" in tokenizer.decode(row.token_ids))
    assert len(trained) + len(Chat(make_config(other, validation=0.3)).heldout()) == 45


def test_validation_rows_of_their_own(path: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [exchange("say 99", "99 one"), {"messages": ROWS[0]["messages"] + exchange("again", "two")["messages"]}])
    data = Chat(make_config(path, validation=str(held)), tokenizer=make_tokenizer())
    assert (data.num_rows, data.facts["num_validation_rows"]) == (40, 2)
    examples = data.heldout()
    assert [example.answer for example in examples] == ["99 one", "two"]
    assert [message.role for message in examples[1].prompt] == ["user", "assistant", "user"]
    assert examples[0].note == f"{held}:1"


def test_a_missing_validation_file_is_told_by_its_own_key(path: Path) -> None:
    with pytest.raises(InputError, match="data.validation = .*rws.jsonl: no such file") as caught:
        Chat(make_config(path, validation=str(path.parent / "rws.jsonl")), tokenizer=make_tokenizer()).prepare()
    assert caught.value.next_step == f"data.validation={path}"


@pytest.mark.parametrize(("change", "key"), [({"revision": "main"}, "data.revision"), ({"split": "test"}, "data.split")])
def test_what_only_a_hub_data_set_has_is_not_ignored(path: Path, change: dict[str, str], key: str) -> None:
    with pytest.raises(InputError, match=f"{key} = .* is for a Hub data set"):
        Chat(make_config(path, **change))
    Chat(make_config("org/name", **change))


def test_all_rows_set_aside_is_an_error(path: Path) -> None:
    with pytest.raises(InputError, match="No row is left to train on") as caught:
        Chat(make_config(path, validation=1.0), tokenizer=make_tokenizer()).prepare()
    assert "data.validation" in caught.value.next_step


def test_skipped_rows_are_counted_and_listed(cache: Path, tmp_path: Path) -> None:
    """Proves SYS-D-021: bad rows are found before training, and listed where they are left out."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "{broken", json.dumps(exchange("hi", "")), json.dumps(exchange("hi", "x " * 400))]), encoding="utf-8")
    said: list[str] = []

    class Voice:
        def bar(self, title: str, *, total: int | None, unit: str = "") -> Any:
            return self

        def advance(self, count: int = 1, **fields: Any) -> None: ...

        def close(self) -> None: ...

        def say(self, text: str) -> None:
            said.append(text)

    data = Chat(make_config(path, on_bad_row="skip"), tokenizer=make_tokenizer(), progress=Voice())
    assert (data.facts["rows_in"], data.facts["rows_kept"], data.facts["rows_bad"]) == (4, 1, 3)
    listed = [json.loads(line) for line in data.bad_rows()]
    assert [row["origin"] for row in listed] == [f"{path}:{n}" for n in (2, 3, 4)]
    assert [row["field"] for row in listed] == ["", "messages[1].content", "answer_cut"]
    assert len(data.facts["bad_rows"]) == 3
    assert "3 of 4 rows left out" in said[0]


def test_the_source_is_the_bytes(path: Path, tmp_path: Path) -> None:
    source = Chat(make_config(path)).source
    assert isinstance(source, Reference)
    assert (source.kind, source.name, len(source.sha256)) == ("data", str(path), 64)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert Chat(make_config(copy)).source.sha256 == source.sha256
    copy.write_bytes(path.read_bytes() + b"\n")
    assert Chat(make_config(copy)).source.sha256 != source.sha256


# ---- through `datasets` ----


def test_a_saved_dataset_is_read_from_its_folder(cache: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    data = Chat(make_config(tmp_path / "saved"), tokenizer=make_tokenizer())
    assert data.num_rows == 40
    assert data.sample(1)[0].origin.endswith(".arrow row 1")


def test_rows_through_datasets(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` itself, on a local folder in place of a Hub repository: split, order, fingerprint."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "repository"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", ROWS[:3])
    rows = HubRows(str(folder), split="test", revision=None)
    assert [record.value for record in rows.records()] == ROWS[:3]
    assert next(rows.records()).origin == f"{folder}[test] row 1"
    assert (
        rows.fingerprint()
        == HubRows(str(folder), split="test", revision=None).fingerprint()
        != HubRows(str(folder), split="train", revision=None).fingerprint()
    )
    with pytest.raises(InputError, match="no such split") as caught:
        HubRows(str(folder), split="dev", revision=None).fingerprint()
    assert "data.split" in caught.value.next_step


def test_a_hub_out_of_reach_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the data set nobody/has-this cannot be had") as caught:
        Chat(make_config("nobody/has-this"), tokenizer=make_tokenizer()).prepare()
    assert "data.path=FILE" in caught.value.next_step
