"""Plain text as it is learnt from: windows, rehearsal, passages of a file, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from largeforge.batch import StepWindow
from largeforge.data.files import PASSAGE_CHARS, records
from largeforge.data.record import Record
from largeforge.data.rows import TextRow
from largeforge.data.text import Text
from largeforge.errors import InputError, RowError
from tests.data.tiny import make_rows_config, make_tokenizer, write_jsonl

Make = Callable[..., Text]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))

    def build(rows: list[Any], **changes: Any) -> Text:
        path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} if isinstance(text, str) else text for text in rows])
        return Text(make_rows_config(path, "text", **changes), tokenizer=make_tokenizer(), learns="text", train_on="all")

    return build


def test_every_token_but_the_first_is_predicted_once(make: Make) -> None:
    """Proves SR-F-002: windows overlap by one token, so that the text with its EOS is whole, and no token is learnt twice."""
    tokenizer = make_tokenizer()
    text = "one two three four five six seven eight nine ten " * 4
    data = make([text, "hello there"], max_length=16)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    windows = data.sample(data.num_rows)
    first, last = windows[:-1], windows[-1]
    assert [token for window in first for token, flag in zip(window.token_ids, window.supervised, strict=True) if flag] == ids[1:]
    assert all(window.supervised == [False, *[True] * (len(window.token_ids) - 1)] for window in windows)
    assert all(len(window.token_ids) == 16 for window in first[:-1]) and len(first) == 3
    assert last.token_ids == [*tokenizer("hello there")["input_ids"], tokenizer.eos_token_id]
    assert first[1].origin.endswith("rows.jsonl:1 from token 15")


def test_bytes_of_a_validation_token_are_known(make: Make) -> None:
    data = make([f"one two {n} ü" for n in range(40)], validation=0.5)
    facts = data.facts
    tokenizer = make_tokenizer()
    texts = [row.text for row in data.rows() if isinstance(row, TextRow)]
    held = [text for text in texts if f"{text}" in {tokenizer.decode(row, skip_special_tokens=True) for row in _validation(data)}]
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in held)  # the first is given, the EOS is learnt
    assert facts["num_validation_rows"] == len(held) > 5
    assert facts["validation_bytes_per_token"] == pytest.approx(sum(len(text.encode()) for text in held) / tokens)


def _validation(data: Text) -> list[list[int]]:
    return [
        ids[: int(flags.nonzero().max()) + 1].tolist()
        for (b,) in data.validation_batches(1) or ()
        for ids, flags in zip(b.input_ids_BT, b.supervised_BT, strict=True)
    ]


def test_rehearsal_draws_its_share_and_begins_again(make: Make, tmp_path: Path) -> None:
    general = write_jsonl(tmp_path / "general.jsonl", [{"text": f"general {n}"} for n in range(7)])
    data = make([f"field {n}" for n in range(400)], rehearsal={"path": str(general), "share": 0.25})
    texts = [row.text for row in data.rows() if isinstance(row, TextRow)]
    drawn = [text for text in texts if text.startswith("general")]
    assert [text for text in texts if text.startswith("field")] == [f"field {n}" for n in range(400)]
    assert drawn[:8] == [f"general {n % 7}" for n in range(8)]
    assert 0.2 < len(drawn) / len(texts) < 0.3
    assert texts == [row.text for row in data.rows() if isinstance(row, TextRow)]
    assert data.fingerprint() != make([f"field {n}" for n in range(400)]).fingerprint()


@pytest.mark.parametrize("half", [{"path": None, "share": 0.1}, {"path": "general.jsonl", "share": 0.0}])
def test_half_a_rehearsal_is_refused(make: Make, half: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="belong together"):
        list(make(["a text"], rehearsal=half).rows())


def test_rows_that_are_no_text_are_told(make: Make) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:2"):
        make(["a text", {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}]}]).prepare()


def test_a_text_file_is_read_in_passages(tmp_path: Path) -> None:
    """Cut at empty lines behind so many characters; together they are the file, and none grows with it."""
    path = tmp_path / "book.txt"
    paragraph = "A line of some words.\n" * 10
    path.write_text("\n".join([paragraph] * 60) + "x" * 3 * PASSAGE_CHARS + "\n" + "y" * 40, encoding="utf-8")
    found = [item for item in records(path) if isinstance(item, Record)]
    assert "".join(item.value["text"] for item in found) == path.read_text(encoding="utf-8")
    assert all(item.value["text"].endswith("\n\n") for item in found[:-2]) and len(found) > 5
    assert found[0].origin == f"{path}:1" and max(len(item.value["text"]) for item in found[:-1]) < 5 * PASSAGE_CHARS
    path.write_bytes(b"caf\xe9\n")
    (bad,) = records(path)
    assert "is not UTF-8" in str(bad)


def test_steps_of_text_are_batches_of_tokens(make: Make) -> None:
    data = make([f"one two three {n}" for n in range(20)], packing=True, max_length=32)
    steps = list(data.train_steps(StepWindow(8, 4, 3)))
    assert sum(batch.num_examples for step in steps for batch in step) == 20
    assert all(batch.num_supervised == batch.num_tokens - batch.num_examples for step in steps for batch in step)
