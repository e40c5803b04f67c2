"""Rows that repeat a test set are found by runs of words, told by the test row they repeat; rows on the same subject are left."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from largeforge.data.rows import Row
from largeforge.data.step.base import Step
from largeforge.data.step.decontaminate import Index
from largeforge.errors import InputError, RowError
from tests.data.step.made import chat, dropped, kept, make, recall_and_precision, text
from tests.data.tiny import exchange, write_jsonl

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def prose(seed: str, count: int) -> str:
    """Words drawn at random: two texts of different seeds share no run of them."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def _step(path: Path, **changes: Any) -> Step:
    """The step over one test set, its index in a folder of its own."""
    return make("decontaminate", against=[str(path)], folder=Path(tempfile.mkdtemp(dir=path.parent)), **changes)


@pytest.fixture
def tests_file(tmp_path: Path) -> Path:
    """Fifty test rows with a question of 30 words, one with a question of 10, one of 4, and one of 1."""
    rows = [exchange(f"{prose(f'question {n}', 30)}?", prose(f"answer {n}", 12)) for n in range(50)]
    rows.append(exchange("Which of the three rivers reaches the cold northern sea?", "The second."))
    rows += [exchange("How tall are giraffes?", "Tall."), exchange("Why?", "Yes.")]
    return write_jsonl(tmp_path / "exam.jsonl", rows)


def test_recall_and_precision_on_planted_rows(tests_file: Path, tmp_path: Path) -> None:
    """40 of 200 rows hold a test row's question, whole or 15 words of it, in other case and with other marks: recall and precision are 1."""
    rows, planted = [], []
    for n in range(200):
        said = prose(f"row {n}", 25)
        if n % 5 == 0:
            words = prose(f"question {n // 5}", 30).split()
            part = words if n % 2 else words[7:22]
            said = f"{said} -- {', '.join(part).upper()}! {prose(f'tail {n}', 5)}"
        rows.append(chat(said, prose(f"reply {n}", 20), f"rows.jsonl:{n + 1}"))
        planted.append(n % 5 == 0)
    folder = tmp_path / "step"
    folder.mkdir()
    out = {item.row.origin: item for item in dropped(make("decontaminate", against=[str(tests_file)], folder=folder)(rows))}
    assert recall_and_precision(planted, [row.origin in out for row in rows]) == (1, 1)
    assert {item.reason for item in out.values()} == {"contaminated"}
    for n in range(0, 200, 5):
        assert out[f"rows.jsonl:{n + 1}"].detail.startswith(f"{tests_file}:{n // 5 + 1} ("), out[f"rows.jsonl:{n + 1}"].detail


def test_twelve_words_are_too_few_and_thirteen_are_not(tests_file: Path) -> None:
    words = prose("question 3", 30).split()
    step = _step(tests_file)
    assert len(kept(step([text(f"before {' '.join(words[5:17])} after")]))) == 1
    assert len(dropped(step([text(f"before {' '.join(words[5:18])} after")]))) == 1


def test_short_test_rows_are_matched_whole(tests_file: Path) -> None:
    """Ten words are found inside a longer text, four only as a whole turn, and one word never by itself."""
    step = _step(tests_file)
    river = "which of the three rivers reaches the cold northern sea"
    assert len(dropped(step([text(f"Somebody asked me {river}, and I knew.")]))) == 1
    assert len(kept(step([text(f"Somebody asked {river.replace('three', 'four')}, and I knew.")]))) == 1
    assert len(dropped(step([chat("how tall are GIRAFFES", "About five metres.")]))) == 1
    assert len(kept(step([text("I was asked how tall are giraffes, once.")]))) == 1
    assert len(kept(step([chat("Why?", "Because it is so.")]))) == 1
    assert len(dropped(step([chat("Why?", "Yes.")]))) == 1


def test_a_threshold_lets_a_share_pass(tests_file: Path) -> None:
    words = prose("question 3", 30).split()
    part = text(" ".join(words[5:20]))  # 3 of the 18 runs of the question
    assert len(kept(_step(tests_file, threshold=0.2)([part]))) == 1
    [left] = dropped(_step(tests_file, threshold=0.1)([part]))
    assert left.detail == f"{tests_file}:4 (17% of its runs of words)"
    assert dropped(_step(tests_file, threshold=1.0)([text(" ".join(words))]))[0].detail == f"{tests_file}:4 (whole)"


def test_boilerplate_of_a_test_set_is_no_sign(tmp_path: Path) -> None:
    """What stands in more test rows than `common` drops nothing; a whole test row is found all the same."""
    head = "Answer the following question with one of the letters A, B, C or D, and with nothing else please."
    path = write_jsonl(tmp_path / "exam.jsonl", [{"question": f"{head} {prose(f'q {n}', 20)}", "choices": ["a", "b"], "label": n} for n in range(30)])
    rows = [chat(f"{head} {prose('mine', 20)}", "A"), chat(f"{head} {prose('q 7', 20)}", "A")]
    assert [item.row for item in dropped(_step(path)(rows))] == [rows[1]]
    assert len(dropped(_step(path, common=30)(rows))) == 2


def test_no_plan_of_the_rows_order_or_of_memory(tests_file: Path, tmp_path: Path) -> None:
    """The index is the same bytes each time, and holds 12 bytes a word of the test set at most (and the origins)."""
    sizes = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        make("decontaminate", against=[str(tests_file)], folder=folder)
        sizes.append({file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    assert sizes[0] == sizes[1]
    rows = [json.loads(line)["messages"] for line in tests_file.read_text(encoding="utf-8").splitlines()]
    assert len(Index(tmp_path / "a").grams) <= sum(len(f"{asked['content']} {said['content']}".split()) for asked, said in rows) + 50 * 18


@pytest.mark.parametrize("said", ["去海边的火车每天早上七点半出发,请问它几点到站?"])
def test_a_language_without_spaces(tmp_path: Path, said: str) -> None:
    path = write_jsonl(tmp_path / "exam.jsonl", [exchange(said, "十点。")])
    assert len(dropped(_step(path)([text(f"有人问我:{said}我不知道。")]))) == 1
    assert len(kept(_step(path)([text("有人问我:火车几点到站?我不知道。")]))) == 1


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no test set"):
        make("decontaminate", folder=tmp_path)
    with pytest.raises(InputError, match="no such file"):
        make("decontaminate", folder=tmp_path, against=[str(tmp_path / "nothing.jsonl")])
    with pytest.raises(InputError, match="fewer than 8"):
        make("decontaminate", folder=tmp_path, against=["x"], n=5)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(RowError, match=r"broken\.jsonl:2"):
        make("decontaminate", folder=tmp_path, against=[str(broken)])


def test_preferences_are_read_too(tests_file: Path) -> None:
    turn = {"role": "user", "content": prose("question 9", 30)}
    row = Row({"prompt": [turn], "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}, "f:1")
    assert len(dropped(_step(tests_file)([row]))) == 1
