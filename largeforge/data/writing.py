"""Rows written in any layout to any type of file, streamed, each file whole or not there. Knows nothing about where rows come from.

What a layout cannot hold is refused, never dropped; reading a written file gives the same rows again. A CSV is the exception that its kind of file
makes: its cells are text, so a label that was a number comes back as text.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from largeforge.data.formats import Layout, is_turns
from largeforge.data.rows import Kind, Row, canonical, kind_of
from largeforge.errors import InputError

WrittenLayout = Literal["canonical", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "preference_text", "text"]
FileType = Literal["jsonl", "json", "csv", "parquet", "arrow"]
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
ROWS_PER_BATCH = 2048
TURN_COLUMNS = ("prompt", "completion")  # text in one row and turns in another: turns stand as JSON text where a column has one type


class _Impossible(Exception):
    """A row that a layout cannot hold, and why."""


def laid_out(content: dict[str, Any], layout: WrittenLayout) -> dict[str, Any]:
    """One canonical content as a record of a layout; what else the row has stands beside.

    A pair of answers as chat is its prompt and the chosen answer. Raises _Impossible, which `write_rows` tells with the row's place.
    """
    kind = kind_of(content)
    own = {"messages": ("messages",), "preference": ("prompt", "chosen", "rejected"), "text": ("text",)}[kind]
    extras = {name: value for name, value in content.items() if name not in own}
    record = _LAYOUTS[layout](content, kind)
    if clash := sorted(record.keys() & extras.keys()):
        raise _Impossible(f"it has a field {clash[0]} of its own, and this layout needs that name")
    return {**record, **extras}


def read_layout(layout: str, kind: Kind) -> Layout:
    """As what `formats.read_row` reads back rows of a kind that were written in a layout."""
    named: dict[str, Layout] = {"sharegpt": "sharegpt", "alpaca": "alpaca", "prompt_completion": "prompt_completion"}
    return named.get(layout, kind)


def written_kind(layout: str, kind: Kind) -> Kind:
    """What kind rows of a kind are once they are written in a layout: pairs as chat are chat."""
    return "messages" if layout in ("messages", "sharegpt", "alpaca", "prompt_completion") else kind


def write_rows(rows: Iterable[Row], file: Path, *, layout: WrittenLayout = "canonical", file_type: FileType | None = None) -> int:
    """Write rows to a file, whole or not at all; return how many. Memory does not grow with them.

    Args:
        rows: of one kind.
        file: where; an older one is replaced once the new one is whole.
        layout: how a row is written.
        file_type: None is what the file's suffix says.

    Raises:
        InputError: a row that the layout or the type of file cannot hold, with its place and the reason.
    """
    kind: FileType = file_type or file.suffix[1:]  # type: ignore[assignment]
    lines, whole = file.with_name(f".{file.name}.{os.getpid()}.lines"), file.with_name(f".{file.name}.{os.getpid()}")
    count, columns = 0, dict[str, None]()
    try:
        with lines.open("wb") as stream:
            for row in rows:
                try:
                    record = laid_out(row.content, layout)
                except _Impossible as fault:
                    raise InputError(
                        f"{row.origin} (a row of {row.kind}) cannot be written as layout={layout}: {fault}.", next_step="layout=canonical"
                    ) from None
                columns.update(dict.fromkeys(record))
                stream.write(canonical(record) + b"\n")
                count += 1
            _settle(stream)
        if kind == "jsonl":
            os.replace(lines, file)
        else:
            _WRITERS[kind](lines, whole, list(columns), layout)
            with whole.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(whole, file)
    finally:
        lines.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return count


def rewrite(file: Path, *, split: str, layout: WrittenLayout, file_type: FileType, lineage: Path | None = None) -> Path:
    """Replace a file of canonical JSON lines by the same rows in another layout and type of file; return the new file.

    Args:
        file: of a data artifact in the making.
        split: of its rows.
        layout: how a row is written.
        file_type: what it is written to.
        lineage: its lines get the ids of what is written, where that makes another kind of row.

    Raises:
        InputError: a row that the layout or the type of file cannot hold.
    """
    target = file.with_suffix(f".{file_type}")
    pairs = any(kind_of(content) == "preference" for content in islice(_records(file), 1))

    def rows() -> Iterator[Row]:
        for number, content in enumerate(_records(file), start=1):
            yield Row(content, f"{file.name}:{number}", split=split)

    if pairs and lineage is not None and written_kind(layout, "preference") != "preference":
        _with_new_ids(lineage, (Row(laid_out(row.content, "messages"), row.origin) for row in rows()))
    write_rows(rows(), target, layout=layout, file_type=file_type)
    if target != file:
        file.unlink()
    return target


def _with_new_ids(lineage: Path, rows: Iterator[Row]) -> None:
    draft = lineage.with_name(f".{lineage.name}.{os.getpid()}")
    with draft.open("wb") as stream:
        for known, row in zip(_records(lineage), rows, strict=True):
            stream.write(canonical({**known, "id": row.id, "pair": known["id"]}) + b"\n")
        _settle(stream)
    os.replace(draft, lineage)


# ---- layouts ----


def _canonical(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    names = {"messages": ("messages",), "preference": ("prompt", "chosen", "rejected"), "text": ("text",)}[kind]
    return {name: content[name] for name in names}


def _messages(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    return {"messages": _turns(content, kind)}


def _sharegpt(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    return {"conversations": [{"from": SHAREGPT_NAMES[turn["role"]], "value": turn["content"]} for turn in _turns(content, kind)]}


def _alpaca(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    turns = _turns(content, kind)
    exchange = _exchange(turns)
    if exchange is None:
        raise _Impossible(f"it holds one question and one answer, and this is a conversation of {len(turns)} turns")
    system, question, answer = exchange
    return {**system, "instruction": question, "input": "", "output": answer}


def _prompt_completion(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    turns = _turns(content, kind)
    exchange = _exchange(turns)
    if exchange is not None and not any(map(is_turns, exchange[1:])):  # text that looks like turns would be read as such
        system, question, answer = exchange
        return {**system, "prompt": question, "completion": answer}
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise _Impossible("it ends with an answer to something, and this conversation does not")
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def _preference(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    if kind != "preference":
        raise _Impossible("there is no second answer to prefer one over")
    return _canonical(content, kind)


def _preference_text(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    _preference(content, kind)
    sides = [_exchange([*content["prompt"], *content[name]]) for name in ("chosen", "rejected")]
    if sides[0] is None or sides[1] is None or any(map(is_turns, (*sides[0][1:], sides[1][2]))):
        raise _Impossible("it holds one question and one answer to it on each side, and this pair has more turns (layout=preference holds them)")
    system, question, chosen = sides[0]
    return {**system, "prompt": question, "chosen": chosen, "rejected": sides[1][2]}


def _text(content: dict[str, Any], kind: Kind) -> dict[str, Any]:
    if kind != "text":
        raise _Impossible("who says what would be lost; training writes turns as the model's own chat template has them")
    return {"text": content["text"]}


_LAYOUTS: dict[str, Callable[[dict[str, Any], Kind], dict[str, Any]]] = {
    "canonical": _canonical,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "preference_text": _preference_text,
    "text": _text,
}


def _turns(content: dict[str, Any], kind: Kind) -> list[dict[str, str]]:
    if kind == "text":
        raise _Impossible("plain text does not say who asks and who answers")
    turns: list[dict[str, str]] = content["messages"] if kind == "messages" else [*content["prompt"], *content["chosen"]]
    return turns


def _exchange(turns: list[dict[str, str]]) -> tuple[dict[str, str], str, str] | None:
    """(system, question, answer) of a conversation that is nothing else; None for any other."""
    system = {"system": turns[0]["content"]} if turns and turns[0]["role"] == "system" else {}
    rest = turns[len(system) :]
    if [turn["role"] for turn in rest] != ["user", "assistant"]:
        return None
    return system, rest[0]["content"], rest[1]["content"]


# ---- types of file: from JSON lines that stand already ----


def _json(lines: Path, target: Path, columns: list[str], layout: str) -> None:
    with lines.open("rb") as source, target.open("wb") as stream:
        stream.write(b"[")
        for number, line in enumerate(source):
            stream.write((b",\n" if number else b"\n") + line.rstrip(b"\n"))
        stream.write(b"\n]\n")


def _csv(lines: Path, target: Path, columns: list[str], layout: str) -> None:
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)  # \r\n ends a row (RFC 4180), so that a lone \r in a text is quoted
        writer.writerow(columns)
        for record in _records(lines):
            writer.writerow([_cell(record.get(name, "")) for name in columns])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value).decode()


def _parquet(lines: Path, target: Path, columns: list[str], layout: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(lines, columns, layout)
    try:
        with pq.ParquetWriter(str(target), schema) as writer:
            for batch in _batches(lines, schema, layout):
                writer.write_batch(batch)
    except pa.ArrowException as fault:  # what Arrow can hold and Parquet cannot: objects without fields
        raise InputError(f"Parquet cannot hold these rows: {fault}", next_step="file_type=jsonl") from fault


def _arrow(lines: Path, target: Path, columns: list[str], layout: str) -> None:
    import pyarrow as pa

    schema = _schema(lines, columns, layout)
    with pa.ipc.new_file(str(target), schema) as writer:
        for batch in _batches(lines, schema, layout):
            writer.write_batch(batch)


_WRITERS: dict[str, Callable[[Path, Path, list[str], str], None]] = {"json": _json, "csv": _csv, "parquet": _parquet, "arrow": _arrow}


def _schema(lines: Path, columns: list[str], layout: str) -> Any:
    """The type of every column, from all rows. Raises InputError where rows differ."""
    import pyarrow as pa

    types = {name: pa.null() for name in columns}
    for records in _groups(lines, layout):
        for name in columns:
            try:
                found = pa.array([record.get(name) for record in records]).type
                merged = [pa.schema([(name, one)]) for one in (types[name], found)]
                types[name] = pa.unify_schemas(merged, promote_options="permissive").field(0).type
            except (pa.ArrowException, OverflowError) as fault:
                raise _one_type(name, str(fault)) from fault
    return pa.schema(list(types.items()))


def _batches(lines: Path, schema: Any, layout: str) -> Iterator[Any]:
    import pyarrow as pa

    for records in _groups(lines, layout):
        arrays = []
        for field in schema:
            values = [record.get(field.name) for record in records]
            try:
                array = pa.array(values, type=field.type)
                kept = canonical({"": array.to_pylist()}) == canonical({"": values})
            except (pa.ArrowException, OverflowError) as fault:
                raise _one_type(field.name, str(fault)) from fault
            if not kept:  # 1 beside 1.5, or objects with other fields: the column would say something else than the rows
                raise _one_type(field.name, "some rows would come back changed")
            arrays.append(array)
        yield pa.record_batch(arrays, schema=schema)


def _one_type(name: str, reason: str) -> InputError:
    said = " ".join(reason.split())
    return InputError(f"the field {name} is of another type in one row than in another ({said}); a column has one type.", next_step="file_type=jsonl")


def _groups(lines: Path, layout: str) -> Iterator[list[dict[str, Any]]]:
    records = _records(lines)
    while group := list(islice(records, ROWS_PER_BATCH)):
        if layout == "prompt_completion":
            for record in group:
                record.update({name: _cell(record[name]) for name in TURN_COLUMNS})
        yield group


def _records(file: Path) -> Iterator[dict[str, Any]]:
    import orjson

    with file.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)


def _settle(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
