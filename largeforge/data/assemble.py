"""From what a pipeline's shards left to the payload of a data artifact. Knows no steps; changes no row.

The parts of shards are put together in their order, a new file begun after `ROWS_PER_FILE` rows, so that the bytes depend on nothing but the rows and
the number of raw rows a shard has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from largeforge.contract import Reference
from largeforge.data import audit
from largeforge.data.pipeline import Outcome
from largeforge.data.rows import Kind, Row, canonical
from largeforge.data.shard_work import BAD, COUNTS, DROPPED
from largeforge.data.shards import DROPPED as DROPPED_FILE
from largeforge.data.shards import KIND, ROWS_PER_FILE, SPLITS, lineage_file, row_file, write_summary
from largeforge.data.writing import FileType, WrittenLayout


def assemble(draft: Path, outcome: Outcome, *, sources: Sequence[Reference], layout: WrittenLayout = "canonical", file_type: FileType = "jsonl") -> str:
    """Fill an artifact in the making; return its kind.

    Args:
        draft: what `write_artifact` gives its `fill`.
        outcome: of the pipeline.
        sources: what the raw rows were read from.
        layout: how a row is written.
        file_type: what files rows are written to.

    Raises:
        InputError: no row is left, rows of two kinds, or a layout that these rows do not have.
    """
    counts = [json.loads((folder / COUNTS).read_text(encoding="utf-8")) for folder in outcome.folders]
    kinds: dict[Kind, int] = {}
    for one in counts:
        for kind, count in one["kinds"].items():
            kinds[kind] = kinds.get(kind, 0) + count
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        parts = [(folder, int(one["splits"][split])) for folder, one in zip(outcome.folders, counts, strict=True) if one["splits"].get(split)]
        if parts:
            splits[split] = _write_split(draft, split, parts)
    if layout != "canonical" or file_type != "jsonl":
        from largeforge.data.writing import rewrite, written_kind

        for split, facts in splits.items():
            known = [lineage_file(draft, split, number) for number in range(len(facts["files"]))]
            names = zip(facts["files"], known, strict=True)
            made = [rewrite(draft / name, split=split, layout=layout, file_type=file_type, lineage=lineage) for name, lineage in names]
            facts["files"] = [file.relative_to(draft).as_posix() for file in made]
        kinds = {written_kind(layout, kind): count for kind, count in kinds.items()} if len(kinds) == 1 else kinds
    write_summary(draft, kinds=kinds, splits=splits, sources=sources, layout=layout, file_type=file_type)
    _write_dropped(draft / DROPPED_FILE, outcome)
    for tally in outcome.tallies:
        audit.append(draft, "step", **vars(tally))
    audit.append(draft, "prepared", rows_in=outcome.rows_in, rows_bad=outcome.rows_bad, splits={name: facts["num_rows"] for name, facts in splits.items()})
    return KIND


def final_rows(outcome: Outcome) -> Iterator[Row]:
    """Stream the rows as they will stand in the artifact, split by split."""
    import orjson

    for split in SPLITS:
        for folder in outcome.folders:
            path = folder / f"{split}.jsonl"
            if path.is_file():
                with path.open("rb") as stream:
                    for line in stream:
                        yield Row(orjson.loads(line), "", {}, split)


def _write_split(draft: Path, split: str, parts: Sequence[tuple[Path, int]]) -> dict[str, Any]:
    files: list[str] = []
    total = held = 0
    for folder, count in parts:
        if not files or held >= ROWS_PER_FILE:
            files.append(row_file(draft, split, len(files)).relative_to(draft).as_posix())
            held = 0
        number = len(files) - 1
        for source, target in ((f"{split}.jsonl", row_file(draft, split, number)), (f"{split}.lineage.jsonl", lineage_file(draft, split, number))):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / source).open("rb") as read, target.open("ab") as write:
                shutil.copyfileobj(read, write, 1 << 20)
        held, total = held + count, total + count
    return {"num_rows": total, "files": files}


def _write_dropped(path: Path, outcome: Outcome) -> None:
    """Every row that is not in the artifact: those that could not be read first, then those that steps left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for bad in outcome.lines(BAD):
            for line in bad.read_text(encoding="utf-8").splitlines():
                known = json.loads(line)
                field = f"{known['field']}: " if known["field"] else ""
                stream.write(canonical({"origin": known["origin"], "step": "read", "reason": "bad_row", "detail": f"{field}{known['message']}"}) + b"\n")
        for dropped in outcome.lines(DROPPED):
            with dropped.open("rb") as read:
                shutil.copyfileobj(read, stream, 1 << 20)
