"""Broken files of every kind, the same ones for the same seed: each must end in an error that names file and place, or in a counted skip.

    python -m tests.data.fuzz_files 1000        # so many files; a fault ends in exit code 1 with the number of the file that shows it
    python -m tests.data.fuzz_files 1000 417    # only file 417, with what was found

Looked for in each file: an exception that is not the user's, a bad row without a place, a spill or an output that is half there, slices that say
something else than the whole, and rows that cannot be written again.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from largeforge.data.chat import Chat
from largeforge.data.raw import Rows, read_slice
from largeforge.data.rows import BadRow, ChatRow, Row
from largeforge.data.writing import write_rows
from largeforge.errors import InputError, LargeForgeError
from tests.data.tiny import make_config, make_rows_config

Random = random.Random
WORDS = ("alpha", "beta", "über", "🙂", "名前", 'a "quoted" word', "comma, here", "[1, 2]", "tab\there", "line\nbreak", "\r", "\\", "0", "null", "{}", "")
SUFFIXES = (".jsonl", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


# ---- records, sound ones and strange ones ----


def said(draw: Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6))) or "x"


def record(draw: Random) -> dict[str, Any]:
    """One sound record of any layout."""
    chat = [{"role": "user", "content": f"q {said(draw)}"}, {"role": "assistant", "content": f"a {said(draw)}"}]
    made: list[dict[str, Any]] = [
        {"messages": chat},
        {"conversations": [{"from": "human", "value": f"q {said(draw)}"}, {"from": "gpt", "value": f"a {said(draw)}"}]},
        {"instruction": f"q {said(draw)}", "input": "", "output": f"a {said(draw)}"},
        {"prompt": f"q {said(draw)}", "completion": f"a {said(draw)}"},
        {"prompt": f"q {said(draw)}", "chosen": f"a {said(draw)}", "rejected": f"b {said(draw)}"},
        {"text": f"t {said(draw)}", "label": draw.choice(["x", "y"])},
    ]
    return draw.choice(made)


def strange(draw: Random) -> Any:
    """A value that stands where another is meant."""
    deep: Any = None
    for _ in range(draw.choice([3, 40, 400])):
        deep = [deep] if draw.random() < 0.5 else {"a": deep}
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        1.5,
        10**30,
        float("nan"),
        float("inf"),
        "",
        " ",
        "\0",
        "\ud800",
        "x" * 70_000,
        [],
        {},
        [None],
        [[]],
        {"role": None},
    ]
    return draw.choice([*values, deep, [{"role": "user"}], [{"role": 3, "content": {}}], [{"from": "gpt", "value": None}], {"": {"": None}}])


def spoilt(draw: Random, value: dict[str, Any]) -> Any:
    """A record with something wrong in it, or in its place."""
    way = draw.randrange(7)
    value = json.loads(json.dumps(value))
    names = list(value)
    if way == 0:
        return strange(draw)
    if way == 1 and names:
        value[draw.choice(names)] = strange(draw)
    elif way == 2 and names:
        del value[draw.choice(names)]
    elif way == 3:
        value[draw.choice(["messages", "chosen", "text", "prompt", "id", "label", "tools", "system", ""])] = strange(draw)
    elif way == 4:
        turns = next((turns for turns in value.values() if isinstance(turns, list)), None)
        if turns:
            turns[draw.randrange(len(turns))] = strange(draw)
    elif way == 5:
        turns = next((turns for turns in value.values() if isinstance(turns, list)), None)
        if turns:
            turn = draw.choice(turns)
            turn[draw.choice(list(turn))] = strange(draw)
    return value


# ---- files ----


def lines(draw: Random, records: list[Any]) -> bytes:
    end = draw.choice(["\n", "\n", "\r\n", "\n\n"])
    written = [json.dumps(value, ensure_ascii=draw.random() < 0.3) for value in records]
    if draw.random() < 0.2 and written:  # a key twice
        at = draw.randrange(len(written))
        written[at] = written[at].replace("{", '{"text": "first", "text": "second", ', 1) if written[at] != "{}" else written[at]
    return end.join(written).encode("utf-8", "surrogatepass") + (b"" if draw.random() < 0.3 else end.encode())


def array(draw: Random, records: list[Any]) -> bytes:
    return json.dumps(records, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.3).encode("utf-8", "surrogatepass")


def cells(draw: Random, records: list[Any], delimiter: str) -> bytes:
    rows = [value for value in records if isinstance(value, dict)]
    header = list(dict.fromkeys(str(name) for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=draw.choice(["\n", "\r\n"]))
    writer.writerow(header)
    for row in rows:
        line = [row.get(name) if isinstance(row.get(name), str) else json.dumps(row.get(name)) for name in header]
        if draw.random() < 0.1:
            line = line[:-1] if draw.random() < 0.5 else [*line, "more"]
        writer.writerow([(cell or "").replace("\0", "") for cell in line])
    return stream.getvalue().encode("utf-8", "surrogatepass")


def table(draw: Random, records: list[Any], suffix: str) -> bytes:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    kept: list[dict[str, Any]] = []
    for value in records:  # what a table of one type a column can hold at all
        try:
            pa.Table.from_pylist([*kept, value])
        except Exception:
            continue
        kept.append(value)
    made = pa.Table.from_pylist(kept) if kept and any(kept) else pa.table({"text": ["a", "b"]})
    sink = pa.BufferOutputStream()
    try:
        if suffix == ".parquet":
            pyarrow.parquet.write_table(made, sink, row_group_size=draw.choice([2, 1000]))
        elif suffix == ".feather":
            pyarrow.feather.write_feather(made, sink)
        else:
            with draw.choice([pa.ipc.new_file, pa.ipc.new_stream])(sink, made.schema) as writer:
                writer.write_table(made, max_chunksize=3)
    except pa.ArrowException:
        return b""
    return bytes(sink.getvalue())


def damaged(draw: Random, data: bytes) -> bytes:
    """What disks, editors and copying do to a file."""
    at = draw.randrange(len(data) + 1)
    ways: list[Callable[[], bytes]] = [
        lambda: data,
        lambda: data[:at],
        lambda: data[:at] + bytes(draw.randrange(256) for _ in range(draw.randint(1, 8))) + data[at:],
        lambda: data[:at] + b"\0" * draw.choice([1, 512]) + data[at:],
        lambda: data[:at] + bytes([data[at - 1] ^ (1 << draw.randrange(8))]) + data[at:] if at else data,
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data[:at] + b"\xef\xbb\xbf" + data[at:],
        lambda: data.decode("utf-8", "replace").encode("utf-16"),
        lambda: data.decode("utf-8", "replace").encode("latin-1", "replace").replace(b"?", b"\xe9"),
        lambda: data + data[:at],
        lambda: data.replace(b"\n", b"\r"),
        lambda: data.replace(b'"', b"'", draw.randint(1, 5)),
        lambda: data.replace(b",", b",,", draw.randint(1, 5)),
        lambda: data[:at] + b"[" * draw.choice([5, 5000, 200_000]) + data[at:],
        lambda: data[at:],
        lambda: b"",
        lambda: draw.choice([b"\n", b"   ", b"[]", b"{}", b"null", b"[", b"]", b'"', b"PAR1", b"ARROW1\0\0", b"\x1f\x8b\x08", b"\xff\xfe", b"0"]),
    ]
    return draw.choice(ways)()


def make(number: int, folder: Path, *, seed: int = 0) -> Path:
    """Write file `number` of a seed."""
    draw = Random(f"fuzz {seed} {number}")
    suffix = SUFFIXES[number % len(SUFFIXES)]
    same = record(draw)
    records = [same if draw.random() < 0.6 else record(draw) for _ in range(draw.randint(1, 12))]
    records = [spoilt(draw, value) if draw.random() < 0.25 else value for value in records]
    if suffix in (".jsonl", ".ndjson"):
        data = lines(draw, records)
    elif suffix == ".json":
        data = array(draw, records) if draw.random() < 0.8 else lines(draw, records)
    elif suffix in (".csv", ".tsv"):
        data = cells(draw, records, "\t" if suffix == ".tsv" else ",")
    else:
        data = table(draw, records, suffix)
    path = folder / f"rows{suffix}"
    path.write_bytes(damaged(draw, data) if draw.random() < 0.75 else data)
    return path


# ---- what must hold ----


def check(path: Path, folder: Path) -> str:
    """Read one file in every way; return what came of it: "error", "skip", "clean". Raises AssertionError where something is not as it must be."""
    outcome = told(path, lambda: _raw(path, folder))
    trained = told(path, lambda: _chat(path))
    return outcome if outcome != "clean" else trained


def told(path: Path, read: Callable[[], int]) -> str:
    """What a reader found: its number of bad rows, or the error that it told."""
    try:
        bad = read()
    except InputError as error:
        assert path.name in str(error), f"an error that does not name the file: {error}"
        return "error"
    except LargeForgeError as error:
        raise AssertionError(f"an error of another kind: {error!r}") from error
    return "skip" if bad else "clean"


def _raw(path: Path, folder: Path) -> int:
    data = Rows(make_rows_config(path, on_bad_row="skip"))
    whole = list(data.rows())
    spill, out = folder / "spill", folder / "out"
    out.mkdir(exist_ok=True)
    try:
        sliced = [row for piece in data.slices(4, spill) for row in read_slice(piece)]
    finally:
        left = [file.name for file in spill.glob("*")] if spill.is_dir() else []
        assert all(name[0] != "." for name in left), f"half of a spill is left: {left}"
    places = [row for row in whole if not (isinstance(row, BadRow) and row.message == "holds no rows")]
    assert [row for row in sliced if not (isinstance(row, BadRow) and row.message == "holds no rows")] == places, "slices differ from the whole"
    for row in whole:
        assert row.origin.startswith(str(path)) and (row.origin != str(path) or "holds no rows" in str(row)), f"no place: {row.origin}"
    good = [row for row in whole if isinstance(row, Row)]
    for kind in ("messages", "preference", "text"):
        rows = [row for row in good if row.kind == kind]
        if rows:
            file = out / f"{kind}.jsonl"
            write_rows(iter(rows), file)
            again = [row for row in Rows(make_rows_config(file, format=kind)).rows() if isinstance(row, Row)]
            assert [row.id for row in again] == [row.id for row in rows], f"{kind} rows come back changed"
            _into_tables(rows, out)
    return sum(isinstance(row, BadRow) for row in whole)


def _into_tables(rows: list[Row], out: Path) -> None:
    for file_type in ("parquet", "csv"):
        file = out / f"rows.{file_type}"
        try:
            write_rows(iter(rows), file, layout="canonical", file_type=file_type)
        except InputError as error:
            assert error.next_step == "file_type=jsonl", error
        assert not [name for name in out.iterdir() if name.name.startswith(".")], "half of a file is left"
        file.unlink(missing_ok=True)


def _chat(path: Path) -> int:
    rows = list(islice(Chat(make_config(path, on_bad_row="skip")).rows(), 200))
    for row in rows:
        assert isinstance(row, (BadRow, ChatRow)) and row.origin.startswith(str(path)), f"no place: {row.origin}"
    return sum(isinstance(row, BadRow) for row in rows)


def fuzz(count: int, *, seed: int = 0, only: int | None = None) -> Counter[str]:
    """Make and read files; count what came of them. Raises AssertionError with the number of the first file that shows a fault."""
    found: Counter[str] = Counter()
    for number in range(count) if only is None else [only]:
        with tempfile.TemporaryDirectory() as place:
            path = make(number, Path(place), seed=seed)
            try:
                found[check(path, Path(place))] += 1
            except Exception as fault:
                head = path.read_bytes()[:300] if path.is_file() else b""
                raise AssertionError(f"file {number} ({path.name}) of seed {seed}: {type(fault).__name__}: {fault}\n{head!r}") from fault
    return found


def main() -> int:
    """Fuzz so many files and print what came of them."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    began = time.perf_counter()
    try:
        found = fuzz(count, only=int(sys.argv[2]) if len(sys.argv) > 2 else None)
    except AssertionError as fault:
        print(fault)
        return 1
    print(f"{sum(found.values())} files: {dict(sorted(found.items()))} in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
