"""The token cache: what makes an entry its own, hits, damage, and two processes at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from largeforge.data import cache as cache_file
from largeforge.data.cache import CacheEntry, code_hash, tokenizer_hash
from largeforge.data.chat import Chat
from tests.data.tiny import CHATML, exchange, make_config, make_tokenizer, write_jsonl

ROWS = [exchange(f"say {n}", f"{n} one two three") for n in range(20)]


class Counted:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.advanced = self.closed = 0
        self.titles: list[tuple[str, int | None]] = []
        self.said: list[str] = []

    def bar(self, title: str, *, total: int | None, unit: str = "") -> Counted:
        self.titles.append((title, total))
        return self

    def advance(self, count: int = 1, **fields: Any) -> None:
        self.advanced += count

    def close(self) -> None:
        self.closed += 1

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def key(cache: Path, tmp_path: Path) -> Callable[..., str]:
    """The cache key that some rows, tokenizer and config lead to."""

    def make(*, rows: Any = ROWS, tokenizer: Any = None, template: str | None = None, train_on: Any = "answer", **changes: Any) -> str:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        data = Chat(make_config(path, **changes), tokenizer=tokenizer or make_tokenizer(), template=template, train_on=train_on)
        return str(data.facts["cache_key"])

    return make


def test_each_ingredient_makes_another_entry(key: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-D-013: tokens are cached by rows, tokenizer, template, settings and the code that applied them."""
    base = key()
    assert key() == base
    more = make_tokenizer()
    more.add_tokens(["<|more|>"])
    other_eos = make_tokenizer()
    other_eos.add_special_tokens({"unk_token": "<s>"})
    held = write_jsonl(tmp_path / "held.jsonl", ROWS[:1])
    keys = [
        base,
        key(rows=ROWS[:-1]),
        key(rows=ROWS[::-1]),
        key(tokenizer=more),
        key(tokenizer=other_eos),
        key(template=CHATML.replace("helpful", "kind")),
        key(train_on="all"),
        key(max_length=255),
        key(format="messages"),
        key(limit=19),
        key(on_bad_row="skip"),
        key(validation=0.1),
        key(validation=str(held)),
    ]
    monkeypatch.setattr(cache_file, "CODE", (*cache_file.CODE, held))
    keys.append(key())
    held.write_text("changed", encoding="utf-8")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_what_decides_no_token_makes_no_other_entry(key: Callable[..., str]) -> None:
    base = key()
    asked = make_tokenizer()
    asked("hello", padding="max_length", truncation=True, max_length=8)
    assert [key(packing=True), key(num_workers=2), key(tokenizer=asked), key(template=CHATML)] == [base] * 4


def test_the_code_is_all_that_makes_tokens() -> None:
    names = {path.name for path in cache_file.CODE}
    assert all(path.is_file() for path in cache_file.CODE)
    assert {"mask.py", "formats.py", "lint.py", "tokens.py", "files.py", "chat.py"} <= names
    assert code_hash() != code_hash(cache_file.CODE[:-1])


def test_the_tokenizers_hash_sees_every_part_of_it() -> None:
    changed = make_tokenizer()
    changed.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    assert tokenizer_hash(make_tokenizer()) == tokenizer_hash(make_tokenizer()) != tokenizer_hash(changed)


def test_a_hit_reads_no_row(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-D-013."""
    config = make_config(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    first = Chat(config, tokenizer=make_tokenizer(), progress=Counted())
    assert (first.facts["cache_hit"], first.progress.advanced, first.progress.closed) == (False, 20, 1)
    assert first.progress.titles == [("tokenizing", 20)]
    monkeypatch.setattr(Chat, "rows", lambda self: pytest.fail("rows were read again"))
    again = Chat(config, tokenizer=make_tokenizer(), progress=Counted())
    assert (again.facts["cache_hit"], again.progress.titles) == (True, [])
    assert again.sample(20) == first.sample(20)
    assert {**again.facts, "cache_hit": False} == first.facts


def test_a_failed_pass_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, exchange("hi", "")])
    with pytest.raises(Exception, match="1 of 21 rows"):
        Chat(make_config(path), tokenizer=make_tokenizer()).prepare()
    assert list((cache / "tokens").iterdir()) == []


def test_a_killed_process_leaves_a_draft_that_the_next_one_clears(cache: Path) -> None:
    entry = CacheEntry.at("k")
    finished = subprocess.Popen([sys.executable, "-S", "-c", ""])
    finished.wait()
    dead = finished.pid
    (cache / "tokens" / f".k.{dead}.abc").mkdir(parents=True)
    (cache / "tokens" / f".k.{os.getpid()}.abc").mkdir()
    draft = entry.draft()
    assert sorted(path.name for path in (cache / "tokens").iterdir()) == sorted([draft.name, f".k.{os.getpid()}.abc"])


@pytest.mark.parametrize("damage", ["cut", "gone", "facts"])
def test_a_damaged_entry_is_made_again(cache: Path, tmp_path: Path, damage: str) -> None:
    config = make_config(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    whole = Chat(config, tokenizer=make_tokenizer()).sample(20)
    (folder,) = (cache / "tokens").iterdir()
    if damage == "cut":
        os.truncate(folder / "train.arrow", 100)
    elif damage == "gone":
        (folder / "validation.arrow").unlink()
    else:
        (folder / "facts.json").write_text("{", encoding="utf-8")
    mended = Chat(config, tokenizer=make_tokenizer())
    assert mended.facts["cache_hit"] is False
    assert mended.sample(20) == whole
    assert [path.name for path in (cache / "tokens").iterdir()] == [folder.name]


def _prepare(path: str, cache_folder: str, barrier: Any, results: Any) -> None:
    os.environ["LARGEFORGE_CACHE"] = cache_folder
    data = Chat(make_config(path), tokenizer=make_tokenizer())
    barrier.wait(timeout=120)
    results.put((data.facts["cache_key"], [row.token_ids for row in data.sample(20)]))


def test_two_processes_at_once_leave_one_whole_entry(cache: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    context = multiprocessing.get_context("spawn")  # a forked child would inherit the tokenizer's threads, stopped
    barrier, results = context.Barrier(2), context.Queue()
    other = context.Process(target=_prepare, args=(str(path), str(cache), barrier, results))
    other.start()
    _prepare(str(path), str(cache), barrier, results)
    found = [results.get(timeout=120) for _ in range(2)]
    other.join(timeout=120)
    assert other.exitcode == 0
    assert found[0] == found[1]
    assert [folder.name for folder in (cache / "tokens").iterdir()] == [found[0][0]]
    assert Chat(make_config(path), tokenizer=make_tokenizer()).facts["cache_hit"] is True


def test_the_second_to_finish_gives_way(cache: Path) -> None:
    entry = CacheEntry.at("k")
    drafts = [entry.draft(), entry.draft()]
    for number, draft in enumerate(drafts):
        (draft / "train.arrow").write_text(str(number), encoding="utf-8")
        entry.seal(draft, {"number": number})
    assert entry.facts() == {"number": 0}
    assert not any(draft.exists() for draft in drafts)
    assert json.loads((entry.folder / "facts.json").read_text(encoding="utf-8"))["sizes"] == {"train.arrow": 1}


def test_tokenizing_holds_no_whole_data_set(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the rows take little more memory: a chunk and a batch are held, never the set (law 7)."""
    monkeypatch.setattr("largeforge.data.tokens.CHUNK", 16)
    monkeypatch.setattr(cache_file, "ROWS_PER_BATCH", 32)

    def peak(num_rows: int) -> int:
        path = write_jsonl(tmp_path / f"rows{num_rows}.jsonl", [exchange(f"say {n}", "one two three four " * 20) for n in range(num_rows)])
        data = Chat(make_config(path), tokenizer=make_tokenizer())
        tracemalloc.start()
        data.prepare()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(8)  # imports and compiled templates
    small, large = peak(64), peak(512)
    assert large < 1.5 * small + 20_000
