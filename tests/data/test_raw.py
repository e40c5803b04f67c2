"""Raw rows: slices say what the whole says, with the same places; artifacts, buckets, limits; what is told and refused."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from largeforge.artifact import write_artifact
from largeforge.contract import Reference
from largeforge.data.files import jsonl_slices, records
from largeforge.data.preference import Preference
from largeforge.data.raw import Rows, RowSlice, read_slice
from largeforge.data.record import Slice
from largeforge.data.rows import BadRow, Row
from largeforge.data.shards import DataWriter
from largeforge.data.tables import table_slices
from largeforge.data.text import Text
from largeforge.errors import InputError
from tests.data.tiny import exchange, make_rows_config, write_jsonl

ROWS = [{"text": f"row {n}, über 🙂", "label": n % 3} for n in range(23)]


def write(path: Path) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, ROWS)
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows([row["text"], row["label"]] for row in ROWS)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=5)
    else:
        table = pa.Table.from_pylist(ROWS)
        new = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=6)
    return path


def read_all(data: Rows, folder: Path, size: int = 7) -> tuple[list[Row | BadRow], list[RowSlice]]:
    slices: list[RowSlice] = [pickle.loads(pickle.dumps(piece)) for piece in data.slices(size, folder)]
    return [row for piece in slices for row in read_slice(piece)], slices


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.arrow", "r.feather"])
def test_slices_say_what_the_whole_says(tmp_path: Path, name: str) -> None:
    """Proves SR-F-010: JSON Lines among them; every slice alone gives its rows with the places they have in the whole."""
    path = write(tmp_path / name)
    data = Rows(make_rows_config(path))
    sliced, slices = read_all(data, tmp_path / "spill")
    assert sliced == list(data.rows())
    rows = [row for row in sliced if isinstance(row, Row)]
    assert [row.content["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [str(row.content["label"]) for row in rows] == [str(row["label"]) for row in ROWS]
    assert [piece.part.num_rows for piece in slices] == [7, 7, 7, 2]
    place = f"{path}:{{}}" if path.suffix == ".jsonl" else f"{path} row {{}}"
    if path.suffix not in (".json", ".csv"):
        assert [row.origin for row in rows] == [place.format(n) for n in range(1, 24)]
    assert (tmp_path / "spill").exists() == (path.suffix in (".json", ".csv"))
    assert sorted(file.name for file in (tmp_path / "spill").glob("*")) == ([f"{n:05d}.jsonl" for n in range(4)] if path.suffix in (".json", ".csv") else [])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_are_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Blank lines, a byte order mark, Windows line ends, no newline at the end: slices name the same lines as the whole."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}\n{broken\n\n\n{"text": "c"}\n{"text": "' + b"d" * 300 + b'"}')
    whole = list(records(path))
    for block in (1, 7, 64, 1 << 20):
        monkeypatch.setattr("largeforge.data.files._BLOCK_BYTES", block)
        cut = list(jsonl_slices(path, size))
        assert [item for part in cut for item in records(part)] == whole
        assert sum(part.num_rows for part in cut) == 8
        assert [part.num_rows for part in cut[:-1]] == [size] * (len(cut) - 1)
    assert [item.origin for item in whole] == [f"{path}:{n}" for n in (1, 3, 4, 7, 8)]


def test_a_table_of_one_long_group_is_spilled(tmp_path: Path) -> None:
    """A row range is only cut where it can be entered without decoding all that stands before it."""
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    assert table_slices(path, 2) is None
    assert table_slices(path, 6) == [Slice(path, 0, 6, 1, 6), Slice(path, 6, 12, 7, 6), Slice(path, 12, 18, 13, 6), Slice(path, 18, 23, 19, 5)]
    rows, slices = read_all(Rows(make_rows_config(path)), tmp_path / "spill", size=2)
    assert len(rows) == 23 and all(piece.spilled for piece in slices)


def test_bad_rows_come_with_their_places_in_every_slice(tmp_path: Path) -> None:
    """Proves SYS-D-021."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n{"tex": 1}\n[1]\n{"text": "b", "n": 1e999}\n{"text": "c"}\n', encoding="utf-8")
    rows, _ = read_all(Rows(make_rows_config(path)), tmp_path, size=2)
    assert [(row.origin, row.field) for row in rows if isinstance(row, BadRow)] == [
        (f"{path}:2", "text"),
        (f"{path}:3", "text"),
        (f"{path}:4", ""),
        (f"{path}:5", "n"),
    ]
    as_csv = tmp_path / "rows.csv"
    as_csv.write_text("text,label\na,1\n,2\nb\n", encoding="utf-8")
    spilled, _ = read_all(Rows(make_rows_config(as_csv)), tmp_path / "spill", size=2)
    assert [str(row) for row in spilled if isinstance(row, BadRow)] == [
        f"{as_csv}:3  text: an empty text",
        f"{as_csv}:4  has 1 fields; the header has 2 (text, label)",
    ]


def test_the_layout_is_told_from_the_file_or_named(tmp_path: Path) -> None:
    """Proves SYS-D-001, SYS-D-002, SYS-D-003 and SR-F-014: each file of a folder has a layout of its own."""
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "hi", "input": "", "output": "there"}])
    write_jsonl(tmp_path / "b.jsonl", [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "there"}]}])
    write_jsonl(tmp_path / "c.jsonl", [{"prompt": "hi", "chosen": "there", "rejected": "no"}])
    rows, _ = read_all(Rows(make_rows_config(tmp_path)), tmp_path / "spill")
    assert all(isinstance(row, Row) for row in rows)
    assert [row.kind for row in rows if isinstance(row, Row)] == ["messages", "messages", "preference"]
    first, second = (row.content for row in rows[:2] if isinstance(row, Row))
    assert first == second == exchange("hi", "there")
    named, _ = read_all(Rows(make_rows_config(tmp_path / "c.jsonl", format="text")), tmp_path / "spill")
    assert isinstance(named[0], BadRow) and named[0].field == "text"


def test_typed_choices_read_their_own_layout(tmp_path: Path) -> None:
    """Proves SR-F-014."""
    both = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "hi", "chosen": "there", "rejected": "no", "text": "plain"}, {"text": "plain"}])
    pairs, _ = read_all(Preference(make_rows_config(both, "preference")), tmp_path / "spill")
    assert [type(row) for row in pairs] == [Row, BadRow]
    texts, _ = read_all(Text(make_rows_config(both, "text")), tmp_path / "spill")
    assert [type(row) for row in texts] == [BadRow, Row]  # the first has two answers of its own beside


def test_a_limit_counts_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{n}"}}\n' if n % 2 else "{}\n" for n in range(20)), encoding="utf-8")
    rows, slices = read_all(Rows(make_rows_config(path, limit=3)), tmp_path / "spill", size=4)
    assert [row.content["text"] for row in rows if isinstance(row, Row)] == ["1", "3", "5"]
    assert len(rows) == 6 and [piece.part.num_rows for piece in slices] == [4, 2]
    again, _ = read_all(Rows(make_rows_config(path, limit=3)), tmp_path / "spill", size=4)
    assert again == rows


def test_a_spill_that_breaks_off_leaves_only_whole_slices(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    slices = Rows(make_rows_config(path)).slices(7, tmp_path / "spill")
    first = next(slices)
    assert isinstance(slices, Iterator)
    slices.close()  # type: ignore[attr-defined]
    assert [file.name for file in (tmp_path / "spill").iterdir()] == ["00000.jsonl"]
    assert len(list(read_slice(first))) == 7


def test_sources_are_names_and_hashes(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "rows.jsonl")
    assert Rows(make_rows_config(path)).sources() == [Reference("data", str(path), "", hashlib.sha256(path.read_bytes()).hexdigest())]
    assert len(Rows(make_rows_config([path, write(tmp_path / "r.csv")])).sources()) == 2
    assert Rows(make_rows_config(path)).expected_rows() == 23
    assert Rows(make_rows_config(path, limit=5)).expected_rows() == 5


def test_an_artifact_is_read_with_its_splits_and_lineage(cache: Path, tmp_path: Path) -> None:
    source = Reference("data", "rows.jsonl", "", "ab" * 32)

    def fill(draft: Path) -> str:
        writer = DataWriter(draft, rows_per_file=3)
        for n in range(8):
            writer.add(Row({"text": f"row {n}"}, f"rows.jsonl:{n + 1}", {"template": "t1", "changed": ["normalise"]}, "test" if n == 7 else "train"))
        writer.close(sources=[source])
        return "data"

    made = write_artifact(tmp_path / "run" / "artifact", fill=fill, parents=[source], config={})
    for path in (made.folder, made.folder.parent):  # the artifact, or the run that left it
        data = Rows(make_rows_config(path))
        rows, _ = read_all(data, tmp_path / "spill", size=2)
        assert rows == list(data.rows())
        good = [row for row in rows if isinstance(row, Row)]
        assert [row.content["text"] for row in good] == [f"row {n}" for n in range(8)]
        assert [row.split for row in good] == ["train"] * 7 + ["test"]
        assert good[4].origin == f"artifact {made.id[:12]} row {good[4].id}"
        assert good[4].lineage == {"template": "t1", "before": "rows.jsonl:5"}
        assert data.sources() == [Reference("data", str(path), "", made.id)]
        assert data.expected_rows() == 8


class Bucket:
    """A storage whose URLs are folders here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_remote(self, path: str) -> bool:
        return path.startswith("s3://")

    def fetch(self, url: str) -> list[Path]:
        found = self.folder / url.removeprefix("s3://")
        return [found] if found.is_file() else sorted(path for path in found.rglob("*") if path.is_file())


def test_urls_are_fetched_and_named_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "b" / "x.jsonl", ROWS[:3])
    write_jsonl(tmp_path / "b" / "y.jsonl", ROWS[3:5])
    (tmp_path / "b" / "README.md").write_text("no rows", encoding="utf-8")
    bucket: Any = Bucket(tmp_path)
    one = Rows(make_rows_config("s3://b/x.jsonl"), storage=bucket)
    rows, _ = read_all(one, tmp_path / "spill", size=2)
    assert [row.origin for row in rows] == [f"s3://b/x.jsonl:{n}" for n in (1, 2, 3)] == [row.origin for row in one.rows()]
    assert one.sources()[0].name == "s3://b/x.jsonl"
    rows, _ = read_all(Rows(make_rows_config("s3://b/"), storage=bucket), tmp_path / "spill")
    assert [row.origin for row in rows][2:4] == ["s3://b/x.jsonl:3", "s3://b/y.jsonl:1"]


@pytest.mark.parametrize(
    ("change", "says", "mend"),
    [
        ({"revision": "main"}, "data.revision = main is for a Hub data set", "leave data.revision out"),
        ({"split": "test"}, "data.split = test is for a Hub data set", "leave data.split out"),
        ({"subset": "main"}, "data.subset = main is for a Hub data set", "leave data.subset out"),
        ({"streaming": True}, "data.streaming = true is for a Hub data set", "leave data.streaming out"),
        ({"mix_weights": [1.0, 2.0]}, "data.mix.weights has 2 values; data.path has 1 path.", "data.mix.weights=[1.0]"),
        ({"mix_caps": [1, None]}, "data.mix.caps has 2 values", "one value for each path"),
        ({"mix_temperature": 2.0}, "data.mix.temperature = 2.0 is for paths that are mixed", "data.mix.weights=rows"),
        ({"mix_exhausted": "skip"}, "data.mix.exhausted = skip is for paths that are mixed", "data.mix.weights=rows"),
        ({"mix_seed": 7}, "data.mix.seed = 7 is for paths that are mixed", "data.mix.weights=rows"),
    ],
)
def test_no_setting_is_ignored(tmp_path: Path, change: dict[str, Any], says: str, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        Rows(make_rows_config(write(tmp_path / "r.jsonl"), **change))
    assert says in str(caught.value) and mend in caught.value.next_step


@pytest.mark.parametrize("text", ["\n\n", "[]"])
def test_no_rows_at_all_are_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("r.json" if text == "[]" else "r.jsonl")
    path.write_text(text, encoding="utf-8")
    rows, _ = read_all(Rows(make_rows_config(path)), tmp_path / "spill")
    assert all(isinstance(row, BadRow) and "holds no rows" in row.message for row in rows)
    empty = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
    with pytest.raises(InputError, match=r"r\.parquet holds no rows"):
        list(Rows(make_rows_config(empty)).slices(5, tmp_path))


def test_a_worker_loads_neither_torch_nor_pyarrow_for_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    piece = next(Rows(make_rows_config(path)).slices(50, tmp_path))
    code = (
        "import pickle, sys\nfrom largeforge.data.raw import read_slice\n"
        "assert len(list(read_slice(pickle.load(sys.stdin.buffer)))) == 23\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(piece), capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"
