"""Which files a `data.path` means, and the raw records in them, streamed with the place of each. Knows nothing about what a record says.

Importing this loads the standard library only; orjson is loaded when JSON Lines are read, pyarrow when a Parquet or Arrow file is.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from largeforge.artifact import sha256_of
from largeforge.data.record import Record, Slice
from largeforge.data.rows import BadRow
from largeforge.data.tables import table
from largeforge.errors import InputError

PLAIN = (".txt",)
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *PLAIN)
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
LINES = (".jsonl", ".ndjson")
SUFFIXES = TEXT_SUFFIXES + TABLE_SUFFIXES
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOREIGN = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is no UTF-8
PASSAGE_CHARS = 2000  # a plain text is cut at the first empty line behind so many characters, and at a line's end behind four times as many
_BLOCK_CHARS = 1 << 16
_BLOCK_BYTES = 1 << 20


def is_hub_id(path: str) -> bool:
    """True for org/name where no such file or folder is near: then a Hub data set is meant."""
    here = Path(path).expanduser()
    return bool(_HUB_ID.fullmatch(path)) and not here.exists() and here.suffix not in SUFFIXES and not here.parent.is_dir()


def locate(path: str, *, key: str = "data.path") -> list[Path]:
    """The files that a path, a folder or a glob means, in the order of their names; `key` is what the user set to it.

    Raises:
        InputError: nothing there (with the nearest name), no data file in the folder, an unknown suffix.
    """
    here = Path(path).expanduser()
    if here.is_file():
        return [_known(here)]
    if here.is_dir():
        files = rows_first(sorted(file for file in here.iterdir() if is_data(file)))
        if not files:
            raise InputError(f"{key} = {path} is a folder with no data file in it (looked for: {', '.join(SUFFIXES)}).", next_step=f"{key}=FILE")
        return files
    if glob.has_magic(path):
        files = [Path(name) for name in sorted(glob.glob(str(here), recursive=True)) if Path(name).is_file()]
        if not files:
            raise InputError(f"{key} = {path} matches no file.", next_step=f"ls {here.parent}")
        return [_known(file) for file in files]
    raise _absent(path, here, key)


def rows_first(files: Sequence[Path]) -> list[Path]:
    """The files of rows among several; plain texts count where there are no others, since one beside rows is a note about them."""
    return [file for file in files if file.suffix.lower() not in PLAIN] or list(files)


def is_data(file: Path) -> bool:
    """Whether it is a file of rows by its name, and not what `datasets` and LargeForge leave beside rows."""
    beside = ("state.json", "dataset_info.json", "dataset_dict.json", "manifest.json", "proof.json")
    known = file.suffix.lower() in SUFFIXES and file.name not in beside and not file.name.startswith((".", "cache-"))
    return known and file.is_file()


def records(source: Path | Slice) -> Iterator[Record | BadRow]:
    """Stream the records of one file, or of a slice of it. Raises InputError where the file as a whole cannot be read."""
    whole = isinstance(source, Path)
    file = source if isinstance(source, Path) else source.file
    suffix = file.suffix.lower()
    if suffix in TEXT_SUFFIXES and whole:
        _refuse_utf16(file)
    if suffix in LINES:
        return _jsonl(source if isinstance(source, Slice) else Slice(file, 0, file.stat().st_size, 1, 0))
    if not whole and suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{file} cannot be read in slices")
    if suffix == ".json":
        return _json(file)
    if suffix in (".csv", ".tsv"):
        return _csv(file, delimiter="\t" if suffix == ".tsv" else ",")
    if suffix in PLAIN:
        return _passages(file)
    return table(file) if isinstance(source, Path) else table(file, source.start, source.stop)


def jsonl_slices(file: Path, rows_per_slice: int, *, limit: int | None = None) -> Iterator[Slice]:
    """Cut a file of JSON Lines into byte ranges of so many lines each, by looking for newlines only; memory is constant.

    Args:
        file: JSON Lines.
        rows_per_slice: lines of each slice; the last has what is left.
        limit: lines that are not blank to stop after; None is all.
    """
    _refuse_utf16(file)
    start, at, line, held, left = 0, 0, 1, 0, limit
    said, ended = False, True
    with file.open("rb") as stream:
        while block := stream.readline(_BLOCK_BYTES) if limit is not None else stream.read(_BLOCK_BYTES):
            ended = block.endswith(b"\n")
            newlines, found = block.count(b"\n"), 0
            while held + newlines >= rows_per_slice:
                for _ in range(rows_per_slice - held):
                    found = block.index(b"\n", found) + 1
                newlines -= rows_per_slice - held
                yield Slice(file, start, at + found, line, rows_per_slice)
                start, line, held = at + found, line + rows_per_slice, 0
            held += newlines
            at += len(block)
            if left is not None:
                said = said or bool(block.strip())  # a long line comes in pieces, and is one row
                if ended:
                    left, said = left - said, False
                    if left == 0:
                        break
    if at > start:
        yield Slice(file, start, at, line, held if ended else held + 1)


def files_hash(files: Sequence[Path]) -> str:
    """sha256 of the files' bytes, in order; their names and places do not matter."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.suffix.lower()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def count_rows(file: Path) -> int | None:
    """Rows of a file where that is quick to know: lines of JSONL, the metadata of Parquet; None elsewhere."""
    if file.suffix.lower() in LINES:
        with file.open("rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    if file.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.ParquetFile(file).metadata.num_rows)
        except (pa.ArrowException, OSError):  # told where it is read
            return None
    return None


# ---- one reader a format ----


def _jsonl(part: Slice) -> Iterator[Record | BadRow]:
    from orjson import JSONDecodeError, loads

    file, at = part.file, part.start
    with file.open("rb") as stream:
        stream.seek(at)
        for number, line in enumerate(stream, start=part.first):
            if at >= part.stop:
                return
            at += len(line)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield Record(loads(line), f"{file}:{number}")
            except JSONDecodeError:
                if line.strip():
                    yield _careful(line, file, number)


def _careful(line: bytes, file: Path, number: int) -> Record | BadRow:
    """A line that the fast parser refuses: what is wrong with it, where a person would look; or what Python's parser makes of it."""
    origin = f"{file}:{number}"
    if b"\0" in line:
        return BadRow(origin, "", "holds NUL bytes: the file was cut off or filled with zeros", "write the file again")
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        return BadRow(origin, "", f"is not UTF-8 (byte {line[fault.start]:#04x} at column {fault.start + 1})", _recode(file))
    try:
        return Record(json.loads(text), origin)
    except (ValueError, RecursionError) as fault:
        return BadRow(origin, "", f"is no JSON: {_json_fault(fault, text)}", "put one JSON object on each line (an array belongs into a .json file)")


def _json(file: Path) -> Iterator[Record | BadRow]:
    """An array of records, one record, or records one after another; read in blocks, one record in memory at a time."""
    with closing(_Window(file)) as text:
        array = text.peek() == "["
        if array:
            text.take(1)
        while (head := text.peek()) != "":
            if array and head in ",]":
                text.take(1)
                continue
            origin = f"{file}:{text.line}"
            try:
                value, foreign = text.value()
            except (ValueError, RecursionError) as fault:
                yield BadRow(origin, "", f"is no JSON: {fault}", "check the file with: python -m json.tool FILE")
                return  # where the next record would begin is not known
            yield BadRow(origin, "", f"is not UTF-8 (byte {foreign:#04x})", _recode(file)) if foreign else Record(value, origin)


class _Window:
    """A moving window over a JSON text: decodes one value at a time and counts lines."""

    def __init__(self, file: Path) -> None:
        # Bytes that are no UTF-8 come through as lone surrogates, so that the row can be named and reading goes on.
        self._stream = file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._decoder = json.JSONDecoder()
        self._text = ""
        self.line = 1

    def close(self) -> None:
        self._stream.close()

    def peek(self) -> str:
        """The next character that is not whitespace; "" at the end."""
        while True:
            rest = self._text.lstrip()
            self.take(len(self._text) - len(rest))
            if rest or not self._more():
                return rest[:1]

    def take(self, count: int) -> None:
        self.line += self._text.count("\n", 0, count)
        self._text = self._text[count:]

    def value(self) -> tuple[Any, int]:
        """Decode the value that begins here, reading on until it is whole; with its first byte that is no UTF-8, or 0. Raises ValueError."""
        wanted = _BLOCK_CHARS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text)
                # A number or word that touches the end of the window may go on in the next block.
                if end < len(self._text) or not self._more():
                    foreign = _FOREIGN.search(self._text, 0, end)
                    self.take(end)
                    return value, ord(foreign[0]) - 0xDC00 if foreign else 0
            except json.JSONDecodeError as fault:
                # Broken well before the end of what was read is broken for good; near the end it may only be unfinished.
                unfinished = fault.pos >= len(self._text) - 16 or "Unterminated" in fault.msg
                if not (unfinished and self._more(wanted)):
                    line = self.line + self._text.count("\n", 0, fault.pos)
                    raise ValueError(f"{fault.msg} (line {line})") from fault
                wanted *= 2  # so that a value of n characters is decoded log n times

    def _more(self, count: int = _BLOCK_CHARS) -> bool:
        """Read on; False at the end of the file."""
        if self._stream.closed:
            return False
        block = self._stream.read(count)
        if not block:
            self._stream.close()
        self._text += block
        return bool(block)


def _csv(file: Path, *, delimiter: str) -> Iterator[Record | BadRow]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 27))  # answers longer than the default of 128 KiB are fine
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as fault:
            yield BadRow(f"{file}:1", "", f"is no CSV: {fault} (in the header)", "close every quote of the header")
            return
        if header is None:
            return
        if any(_FOREIGN.search(name) for name in header):
            yield BadRow(f"{file}:1", "", "is not UTF-8 (in the header)", _recode(file))
            return
        while True:
            origin = f"{file}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as fault:
                yield BadRow(origin, "", f"is no CSV: {fault}", "close every quote, and double the quotes inside a field")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(header):
                yield BadRow(
                    origin, "", f"has {len(cells)} fields; the header has {len(header)} ({', '.join(header)})", "quote fields that hold a comma or a newline"
                )
                continue
            broken = next((name for name, cell in zip(header, cells, strict=True) if _FOREIGN.search(cell)), None)
            if broken is not None:
                yield BadRow(origin, broken, "is not UTF-8", _recode(file))
                continue
            yield Record(dict(zip(header, cells, strict=True)), origin)


def _passages(file: Path) -> Iterator[Record | BadRow]:
    """A plain text in passages of some paragraphs, each as a record with `text`; one passage in memory at a time."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        held: list[str] = []
        size, first = 0, 1
        for number, line in enumerate(stream, start=1):
            held.append(line)
            size += len(line)
            if (size >= PASSAGE_CHARS and not line.strip()) or size >= 4 * PASSAGE_CHARS:
                yield from _passage(file, held, first)
                held, size, first = [], 0, number + 1
        yield from _passage(file, held, first)


def _passage(file: Path, lines: list[str], first: int) -> Iterator[Record | BadRow]:
    text = "".join(lines)
    if _FOREIGN.search(text):
        yield BadRow(f"{file}:{first}", "", "is not UTF-8", _recode(file))
    elif text.strip():
        yield Record({"text": text}, f"{file}:{first}")


# ---- saying what is wrong ----


def _known(file: Path) -> Path:
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{file} is of an unknown kind (allowed: {', '.join(SUFFIXES)}).", next_step="rename the file for what it holds, or convert it")
    if not os.access(file, os.R_OK):
        raise InputError(f"{file} may not be read by this user.", next_step=f"chmod u+r {file}")
    if file.stat().st_size == 0:
        raise InputError(f"{file} is empty.", next_step="give a file with rows: data.path=FILE")
    return file


def _absent(path: str, here: Path, key: str) -> InputError:
    folder = here.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(file.name for file in folder.iterdir() if file.is_dir() or file.suffix.lower() in SUFFIXES)
    near = get_close_matches(here.name, names, n=1, cutoff=0.5)
    shown = near or names[:5]
    message = f"{key} = {path}: no such file; in {folder.resolve() if str(folder) == '.' else folder}: {', '.join(shown) or 'no data file'}."
    return InputError(message, next_step=f"{key}={folder / near[0]}" if near else f"{key}=FILE, a glob in quotes, or a Hub data set (org/name)")


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(4)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file} is UTF-16; rows must be UTF-8.", next_step=f"iconv -f UTF-16 -t UTF-8 {file} > {file.stem}.utf8{file.suffix}")


def _recode(file: Path) -> str:
    return f"iconv -f LATIN1 -t UTF-8 {file.name} > {file.stem}.utf8{file.suffix} (where it is Latin-1)"


def _json_fault(fault: Exception, text: str) -> str:
    if isinstance(fault, json.JSONDecodeError):
        return f"{fault.msg} at column {fault.colno} ({text[max(0, fault.pos - 12) : fault.pos + 12].strip()!r})"
    return str(fault)
