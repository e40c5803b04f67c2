"""Writing: any layout in any type of file says the same rows again; what cannot be said is refused with the reason; whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet
import pytest

from largeforge.data.raw import Rows
from largeforge.data.rows import BadRow, Row
from largeforge.data.writing import FileType, WrittenLayout, read_layout, rewrite, write_rows, written_kind
from largeforge.errors import InputError
from tests.data.tiny import make_rows_config

Content = dict[str, Any]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PLAIN: list[Content] = [
    {"messages": [said("user", "capital?"), said("assistant", 'Paris, "the" city\r\nof light\r')], "label": "geo"},
    {"messages": [said("system", "Be brief."), said("user", "hi, über 🙂"), said("assistant", "[1, 2]")], "topic": "chat"},
    {"messages": [said("user", "[1, 2]"), said("assistant", " spaced ")]},
]
TALKS: list[Content] = [
    *PLAIN,
    {"messages": [said("user", "hi"), said("assistant", "hello"), said("user", "bye"), said("assistant", "good\nbye")], "label": "talk"},
    {"messages": [said("user", '[{"role": "user", "content": "a trap"}]'), said("assistant", "text that looks like turns")]},
]
PAIRS_PLAIN: list[Content] = [
    {"prompt": [said("user", "capital?")], "chosen": [said("assistant", "Paris.")], "rejected": [said("assistant", "Lyon.")], "label": "geo"},
    {"prompt": [said("system", "Be brief."), said("user", "hi")], "chosen": [said("assistant", "hello")], "rejected": [said("assistant", "no")]},
]
PAIRS: list[Content] = [
    *PAIRS_PLAIN,
    {
        "prompt": [said("user", "hi"), said("assistant", "hello"), said("user", "and?")],
        "chosen": [said("assistant", "fine"), said("user", "so"), said("assistant", "yes")],
        "rejected": [said("assistant", "fine"), said("user", "so"), said("assistant", "no")],
    },
]
TEXTS: list[Content] = [{"text": "a line\nand another"}, {"text": "ends with a comma,", "label": "x"}, {"text": '"quoted"'}]
LOSSLESS: list[tuple[str, list[Content]]] = [
    ("canonical", TALKS),
    ("messages", TALKS),
    ("sharegpt", TALKS),
    ("alpaca", PLAIN),
    ("prompt_completion", TALKS),
    ("canonical", PAIRS),
    ("preference", PAIRS),
    ("preference_text", PAIRS_PLAIN),
    ("canonical", TEXTS),
    ("text", TEXTS),
]
TYPES: tuple[FileType, ...] = get_args(FileType)


def rows_of(contents: list[Content]) -> list[Row]:
    return [Row(content, f"rows.jsonl:{number}") for number, content in enumerate(contents, start=1)]


def read(file: Path, **changes: Any) -> list[Row]:
    found = list(Rows(make_rows_config(file, **changes)).rows())
    assert all(isinstance(row, Row) for row in found), [str(row) for row in found if isinstance(row, BadRow)]
    return [row for row in found if isinstance(row, Row)]


@pytest.mark.parametrize(("case", "file_type"), list(product(range(len(LOSSLESS)), TYPES)))
def test_every_layout_in_every_file_reads_back_as_the_same_rows(tmp_path: Path, case: int, file_type: FileType) -> None:
    """Proves SYS-F-004, SYS-D-001, SYS-D-002, SYS-D-003, SR-F-010 and SR-F-014: layouts times types of file, ids and all."""
    layout, contents = LOSSLESS[case]
    written = rows_of(contents)
    file = tmp_path / f"rows.{file_type}"
    assert write_rows(iter(written), file, layout=layout) == len(written)  # type: ignore[arg-type]
    again = read(file)
    assert [row.content for row in again] == [row.content for row in written]
    assert [row.id for row in again] == [row.id for row in written]
    named = read_layout(layout, written[0].kind)
    assert [row.content for row in read(file, format=named)] == contents
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(("first", "second"), list(product(TYPES, TYPES)))
def test_any_type_of_file_becomes_any_other(tmp_path: Path, first: FileType, second: FileType) -> None:
    """Proves SYS-F-004 and SR-F-010: two hops through files and layouts, and nothing is lost."""
    one, two = tmp_path / f"one.{first}", tmp_path / f"two.{second}"
    write_rows(iter(rows_of(PLAIN)), one, layout="alpaca")
    write_rows(iter(read(one)), two, layout="sharegpt")
    assert [row.content for row in read(two)] == PLAIN


def test_a_layout_is_what_others_know_it_by(tmp_path: Path) -> None:
    """Proves SYS-D-001, SYS-D-002 and SYS-D-003: the fields are those of the formats."""
    fields = {}
    for layout, contents in LOSSLESS:
        write_rows(iter(rows_of(contents[1:2])), tmp_path / "r.jsonl", layout=layout)  # type: ignore[arg-type]
        fields[layout] = json.loads((tmp_path / "r.jsonl").read_text())
    assert fields["alpaca"] == {"system": "Be brief.", "instruction": "hi, über 🙂", "input": "", "output": "[1, 2]", "topic": "chat"}
    assert fields["sharegpt"]["conversations"][1:] == [{"from": "human", "value": "hi, über 🙂"}, {"from": "gpt", "value": "[1, 2]"}]
    assert fields["prompt_completion"] == {"system": "Be brief.", "prompt": "hi, über 🙂", "completion": "[1, 2]", "topic": "chat"}
    assert fields["preference_text"] == {"system": "Be brief.", "prompt": "hi", "chosen": "hello", "rejected": "no"}
    assert fields["preference"] == PAIRS[1]
    assert fields["text"] == TEXTS[1]


def test_a_pair_as_chat_is_its_chosen_answer(tmp_path: Path) -> None:
    write_rows(iter(rows_of(PAIRS)), tmp_path / "r.jsonl", layout="messages")
    assert [row.content["messages"] for row in read(tmp_path / "r.jsonl")] == [[*pair["prompt"], *pair["chosen"]] for pair in PAIRS]
    assert read(tmp_path / "r.jsonl")[0].content["label"] == "geo"


@pytest.mark.parametrize(
    ("content", "layout", "says"),
    [
        (TEXTS[0], "preference", "no second answer"),
        (TEXTS[0], "preference_text", "no second answer"),
        (TEXTS[0], "messages", "plain text does not say who asks"),
        (TEXTS[0], "sharegpt", "plain text does not say who asks"),
        (TEXTS[0], "alpaca", "plain text does not say who asks"),
        (TEXTS[0], "prompt_completion", "plain text does not say who asks"),
        (TALKS[0], "preference", "no second answer"),
        (TALKS[0], "text", "who says what would be lost"),
        (TALKS[3], "alpaca", "a conversation of 4 turns"),
        ({"messages": [*TALKS[3]["messages"], said("user", "?")]}, "prompt_completion", "this conversation does not"),
        (PAIRS[0], "text", "who says what would be lost"),
        (PAIRS[2], "preference_text", "more turns"),
        ({**PLAIN[0], "input": "mine"}, "alpaca", "a field input of its own"),
        ({**PLAIN[0], "prompt": "mine"}, "prompt_completion", "a field prompt of its own"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path, content: Content, layout: WrittenLayout, says: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("what stood there before", encoding="utf-8")
    with pytest.raises(InputError, match=f"cannot be written as layout={layout}: .*{says}") as caught:
        write_rows(iter([*rows_of([content] * 2)]), file, layout=layout)
    assert str(caught.value).startswith("rows.jsonl:1 (a row of ")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert file.read_text(encoding="utf-8") == "what stood there before"


@pytest.mark.parametrize("file_type", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "values",
    [[1, "one"], [1, 1.5], [{"a": 1}, {"b": 2}], [[1], 1], [2**63, -1]],
    ids=["text", "fraction", "fields", "list", "sign"],
)
def test_a_column_that_would_change_rows_is_refused(tmp_path: Path, file_type: FileType, values: list[Any]) -> None:
    rows = rows_of([{"text": f"row {number}", "n": value} for number, value in enumerate(values)])
    with pytest.raises(InputError, match="the field n is of another type") as caught:
        write_rows(iter(rows), tmp_path / f"rows.{file_type}")
    assert caught.value.next_step == "file_type=jsonl"
    assert list(tmp_path.iterdir()) == []
    write_rows(iter(rows), tmp_path / "rows.jsonl")
    assert [row.content for row in read(tmp_path / "rows.jsonl")] == [row.content for row in rows]


def test_further_fields_of_every_type_come_back(tmp_path: Path) -> None:
    contents: list[Content] = [{"text": f"row {n}", "n": n, "x": n / 2 + 0.25, "on": n % 2 == 0, "tags": ["a", "b"][:n], "o": {"k": n}} for n in range(1, 4)]
    contents.append({"text": "alone"})
    for file_type in TYPES:
        write_rows(iter(rows_of(contents)), tmp_path / f"rows.{file_type}")
        again = [row.content for row in read(tmp_path / f"rows.{file_type}")]
        if file_type == "csv":  # its cells are text
            assert again[0] == {"text": "row 1", "n": "1", "x": "0.75", "on": "false", "tags": '["a"]', "o": '{"k":1}'}
        else:
            assert again == contents


def test_rows_stream_and_a_break_leaves_nothing(tmp_path: Path) -> None:
    """Half of the rows, then a fault: no file, no draft; the older file stays."""

    def breaks() -> Iterator[Row]:
        yield from rows_of(TEXTS)
        raise OSError("the disk went away")

    for file_type in TYPES:
        with pytest.raises(OSError, match="went away"):
            write_rows(breaks(), tmp_path / f"rows.{file_type}")
    assert list(tmp_path.iterdir()) == []


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for file_type in TYPES:
        for name in ("a", "b"):
            write_rows(iter(rows_of(TALKS)), tmp_path / f"{name}.{file_type}")
        assert (tmp_path / f"a.{file_type}").read_bytes() == (tmp_path / f"b.{file_type}").read_bytes()


def test_columns_are_known_from_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that only the last of many rows has gets its column; batches are short here."""
    monkeypatch.setattr("largeforge.data.writing.ROWS_PER_BATCH", 2)
    contents: list[Content] = [*TEXTS, {"text": "last", "late": 7}]
    for file_type in TYPES[:2] + TYPES[3:]:
        write_rows(iter(rows_of(contents)), tmp_path / f"r.{file_type}")
        assert [row.content for row in read(tmp_path / f"r.{file_type}")] == contents
    assert pyarrow.parquet.ParquetFile(tmp_path / "r.parquet").metadata.num_row_groups == 2


def test_a_file_of_an_artifact_is_rewritten_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "train-00000.jsonl"
    write_rows(iter(rows_of(PLAIN)), file)
    made = rewrite(file, split="train", layout="alpaca", file_type="parquet")
    assert [path.name for path in tmp_path.iterdir()] == [made.name] == ["train-00000.parquet"]
    assert [row.content for row in read(made)] == PLAIN
    write_rows(iter(rows_of(PLAIN)), file)
    assert rewrite(file, split="train", layout="sharegpt", file_type="jsonl") == file
    assert "conversations" in json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    with pytest.raises(InputError, match=r"train-00000.jsonl:1 .* cannot be written as layout=preference"):
        write_rows(iter(rows_of(PLAIN)), file)
        rewrite(file, split="train", layout="preference", file_type="csv")


def test_a_pair_written_as_chat_gets_the_id_of_what_is_written(tmp_path: Path) -> None:
    file, lineage = tmp_path / "train-00000.jsonl", tmp_path / "lineage.jsonl"
    pairs = rows_of(PAIRS)
    write_rows(iter(pairs), file)
    lineage.write_text("".join(json.dumps({"id": row.id, "origin": row.origin}) + "\n" for row in pairs), encoding="utf-8")
    made = rewrite(file, split="train", layout="sharegpt", file_type="json", lineage=lineage)
    known = [json.loads(line) for line in lineage.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in known] == [row.id for row in read(made)]
    assert [line["pair"] for line in known] == [row.id for row in pairs]
    assert (written_kind("sharegpt", "preference"), written_kind("preference_text", "preference"), written_kind("canonical", "text")) == (
        "messages",
        "preference",
        "text",
    )
