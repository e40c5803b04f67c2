"""Files of every kind: what a path means, records with their places, and every way a file can be wrong."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from largeforge.data.chat import Chat
from largeforge.data.files import count_rows, is_hub_id, locate, records
from largeforge.data.record import Record
from largeforge.data.rows import BadRow, ChatRow
from largeforge.errors import InputError, RowError
from tests.data.tiny import exchange, make_config, write_jsonl

ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}, über 🙂"} for n in range(3)]


def write_csv(path: Path, delimiter: str = ",") -> Path:
    lines = [delimiter.join(("question", "answer"))] + [delimiter.join(f'"{row[name]}"' for name in ("question", "answer")) for row in ROWS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_stream(path: Path) -> Path:
    """Arrow's stream format, as `datasets` writes it."""
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def write(path: Path) -> Path:
    if path.suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, ROWS)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        write_csv(path, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(path))
    else:
        write_stream(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".feather", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """Proves SR-F-010: JSONL, and the other kinds beside it."""
    path = write(tmp_path / f"rows{suffix}")
    read = list(records(path))
    assert [record.value for record in read if isinstance(record, Record)] == ROWS
    kept = [row for row in Chat(make_config(path)).rows() if isinstance(row, ChatRow)]
    assert [row.messages[1].content for row in kept] == [row["answer"] for row in ROWS]


def test_places_are_lines_or_row_numbers(tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text('[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n', encoding="utf-8")
    assert [record.origin for record in records(array)] == [f"{array}:2", f"{array}:4", f"{array}:5"]
    table = write(tmp_path / "rows.parquet")
    assert [record.origin for record in records(table)] == [f"{table} row {n}" for n in (1, 2, 3)]
    lines = tmp_path / "rows.csv"
    lines.write_text('question,answer\n"two\nlines",x\ny,z\n', encoding="utf-8")
    assert [record.origin for record in records(lines)] == [f"{lines}:2", f"{lines}:4"]


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1}\n{"a": 2}\n', '[{"a": 1},\n{"a": 2}]', '\ufeff[{"a": 1}]', "[]"])
def test_json_is_an_array_an_object_or_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    assert [record.value["a"] for record in records(path) if isinstance(record, Record)] == list(range(1, text.count("{") + 1))


def test_json_values_that_straddle_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut through numbers, escapes and words gives the same records."""
    values = [{"n": 12.5e-3, "s": 'a"\\\n\u00e9', "w": [True, None, {"x": -7}]}, {"n": 1}, {}]
    path = tmp_path / "rows.json"
    for indent in (None, 2):
        path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
        for size in (1, 2, 3, 5, 7, 50):
            monkeypatch.setattr("largeforge.data.files._BLOCK_CHARS", size)
            assert [record.value for record in records(path) if isinstance(record, Record)] == values


GOOD = json.dumps(exchange("hi", "there")).encode()


@pytest.mark.parametrize(
    ("name", "content", "place", "says"),
    [
        ("r.jsonl", GOOD + b"\n{'a': 1}\n", ":2", "is no JSON: Expecting property name"),
        ("r.jsonl", GOOD + b"\n" + GOOD[:-9] + b"\n", ":2", "is no JSON"),
        ("r.jsonl", GOOD + b"\n\xef\xbb\xbf" + GOOD, ":2", "BOM"),
        ("r.jsonl", GOOD + b"\n" + b"[" * 100_000, ":2", "is no JSON"),
        ("r.jsonl", GOOD + b"\n" + GOOD.replace(b"there", b"th\xe9re"), ":2", "is not UTF-8 (byte 0xe9"),
        ("r.jsonl", GOOD + b"\n" + GOOD.replace(b"there", b"the\0re"), ":2", "NUL"),
        ("r.jsonl", GOOD + b'\n"hello"\n', ":2", "is text; an object"),
        ("r.jsonl", GOOD + b"\n[1]\n", ":2", "is a list; an object"),
        ("r.jsonl", GOOD + b'\n{"text": "x"}', ":2", "messages: missing; the row has: text"),
        ("r.jsonl", b'{"text": "x"}\n' + GOOD, ":1", "fit no format"),
        ("r.jsonl", b"\n  \n", "r.jsonl", "holds no rows"),
        ("r.json", b"[]", "r.json", "holds no rows"),
        ("r.json", b"[" + GOOD + b",\n" + GOOD[:-9], ":2", "is no JSON"),
        ("r.json", b"[" + GOOD + b",\n7]", ":2", "is a number"),
        ("r.json", b"[" + GOOD + b",\n" + GOOD.replace(b"there", b"th\xe9re") + b"]", ":2", "is not UTF-8 (byte 0xe9"),
        ("r.csv", b"question,answer\na,b\nc\n", ":3", "has 1 fields; the header has 2 (question, answer)"),
        ("r.csv", b"question,answer\na,b\nc,d,e\n", ":3", "has 3 fields"),
        ("r.csv", b"question,answer\na,b\nc,th\xe9re\n", ":3", "answer: is not UTF-8"),
        ("r.csv", b'question,answer\na,b\nc,"d\n', ":3", "is no CSV"),
        ("r.csv", b"question;answer\na;b\n", ":2", "its fields (question;answer) fit no format"),
        ("r.csv", b"question,answer\n", "r.csv", "holds no rows"),
        ("r.csv", b"question,answer\na,\n", ":2", "answer: an empty answer"),
    ],
)
def test_bad_rows_are_told_with_file_line_and_field(cache: Path, tmp_path: Path, name: str, content: bytes, place: str, says: str) -> None:
    """Proves SYS-D-021: what is wrong is said before training, with its place."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RowError) as caught:
        Chat(make_config(path)).prepare()
    assert f"{path.parent / path.name}{place if place.startswith(':') else ''}" in str(caught.value)
    assert says in str(caught.value)
    if content.count(GOOD) + content.count(b"a,b\n"):
        skipping = Chat(make_config(path, on_bad_row="skip"))
        assert (skipping.num_rows, skipping.facts["rows_bad"]) == (1, 1)


def test_a_byte_order_mark_at_the_start_is_fine(tmp_path: Path) -> None:
    for name, body in (("r.jsonl", GOOD), ("r.json", b"[" + GOOD + b"]"), ("r.csv", b"question,answer\na,b")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + body)
        assert [type(row) for row in Chat(make_config(tmp_path / name)).rows()] == [ChatRow]


def test_every_bad_row_is_counted_and_the_first_are_shown(cache: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [exchange("hi", "") for _ in range(50)] + [exchange("hi", "there")])
    with pytest.raises(RowError) as caught:
        Chat(make_config(path)).prepare()
    text = str(caught.value)
    assert "50 of 51 rows cannot be used" in text
    assert text.count("an empty answer") == 20
    assert "and 30 more" in text
    assert "data.on_bad_row=skip" in text


def test_no_row_left_is_an_error_even_when_skipping(cache: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [exchange("hi", "")])
    with pytest.raises(RowError, match="1 of 1 row cannot be used") as caught:
        Chat(make_config(path, on_bad_row="skip")).prepare()
    assert "on_bad_row" not in caught.value.next_step


# ---- which files ----


def test_paths_folders_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert [file.name for file in locate(str(tmp_path))] == ["a.jsonl", "b.jsonl", "c.csv"]
    assert [file.name for file in locate(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    assert len(list(Chat(make_config([tmp_path / "c.csv", tmp_path / "?.jsonl"])).rows())) == 9
    assert len(list(Chat(make_config(tmp_path, limit=4)).rows())) == 4


def test_each_file_has_a_format_of_its_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [exchange("hi", "there")])
    write_jsonl(tmp_path / "b.jsonl", [{"instruction": "hi", "input": "", "output": "there"}])
    assert [row.messages[1].content for row in Chat(make_config(tmp_path)).rows() if isinstance(row, ChatRow)] == ["there", "there"]


def test_a_named_format_holds_for_every_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "hi", "answer": "there"}])
    assert [type(row) for row in Chat(make_config(path, format="prompt_completion")).rows()] == [ChatRow]
    assert [type(row) for row in Chat(make_config(path, format="alpaca")).rows()] == [BadRow]


@pytest.mark.parametrize(
    ("given", "says", "mend"),
    [
        ("chats.json", "no such file; in .*: chats.jsonl", "chats.jsonl"),
        ("*.parquet", "matches no file", "ls"),
        ("notes.doc", "unknown kind .allowed: .jsonl", "rename"),
        ("empty.jsonl", "is empty", "data.path=FILE"),
        ("hollow", "a folder with no data file", "data.path=FILE"),
        ("nowhere/deep/rows.jsonl", "no such file", "data.path"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(tmp_path: Path, given: str, says: str, mend: str) -> None:
    write_jsonl(tmp_path / "chats.jsonl", ROWS)
    (tmp_path / "notes.doc").write_text("x", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputError, match=says) as caught:
        locate(str(tmp_path / given))
    assert mend in caught.value.next_step


def test_utf16_and_broken_tables_are_refused_as_files(tmp_path: Path) -> None:
    (tmp_path / "wide.jsonl").write_bytes(GOOD.decode().encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16") as caught:
        list(Chat(make_config(tmp_path / "wide.jsonl")).rows())
    assert "iconv" in caught.value.next_step
    for name in ("cut.parquet", "cut.arrow"):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(InputError, match=f"cannot be read as {path.suffix[1:]}"):
            list(Chat(make_config(path)).rows())


def test_only_what_cannot_be_a_file_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_id("openai/gsm8k")
    for path in ("rows.jsonl", "data/rows", "openai/rows.jsonl", "./openai/gsm8k", "a/b/c", "data/*"):
        assert not is_hub_id(path)


def test_rows_that_are_quick_to_count(tmp_path: Path) -> None:
    assert [count_rows(write(tmp_path / f"rows{suffix}")) for suffix in (".jsonl", ".parquet", ".csv")] == [3, 3, None]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_reading_holds_no_whole_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the rows take no more memory (law 7)."""

    monkeypatch.setattr("largeforge.data.files._BLOCK_CHARS", 4096)
    monkeypatch.setattr("largeforge.data.tables._TABLE_ROWS", 32)

    def peak(num_rows: int) -> int:
        path = tmp_path / f"rows{suffix}"
        rows: list[dict[str, Any]] = [{"question": f"{n} " * 20, "answer": f"{n} " * 100} for n in range(num_rows)]
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=200)
        elif suffix == ".arrow":
            with pa.ipc.new_file(str(path), pa.Table.from_pylist(rows).schema) as writer:
                writer.write_table(pa.Table.from_pylist(rows))
        elif suffix == ".csv":
            path.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows), encoding="utf-8")
        elif suffix == ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        else:
            write_jsonl(path, rows)
        del rows
        tracemalloc.start()
        arrow_before = pa.total_allocated_bytes()
        arrow = 0
        for index, row in enumerate(Chat(make_config(path)).rows()):
            assert isinstance(row, ChatRow)
            if index % 50 == 0:
                arrow = max(arrow, pa.total_allocated_bytes() - arrow_before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python + arrow

    peak(10)  # imports
    small, large = peak(250), peak(2_000)
    assert large < 2 * small + 50_000
