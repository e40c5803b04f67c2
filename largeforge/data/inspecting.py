"""What a data artifact holds and where it came from: numbers, rows, lineage up to the raw files, an audit log that is verified. Changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largeforge.artifact import AUDIT, is_artifact
from largeforge.contract import Reference
from largeforge.data import audit
from largeforge.data.rows import TURNS, Row
from largeforge.data.shards import DataFolder, open_data
from largeforge.errors import InputError, LargeForgeError
from largeforge.report import Section

STATISTICS_ROWS = 100_000  # statistics are of so many rows of a split; the counts are of all
TEXT_SHOWN = 240
VALUES_SHOWN = 8


class Inspection:
    """Looks at one data artifact.

    Args:
        folder: the artifact's; every file of it is verified against its hash first.
    """

    def __init__(self, folder: Path) -> None:
        self.data: DataFolder = open_data(folder, full=True)

    def sections(self, *, show: int) -> list[Section]:
        """Everything but single rows: splits, lengths, fields, what was left out, where it came from, what was done."""
        return [self._facts(), self._splits(), *self._fields(), *self._dropped(), self._sources(), self._log(), *self._rows(show)]

    def row(self, beginning: str) -> list[Section]:
        """One row by its id or the beginning of it: what it says, and the way back to a raw file. Raises InputError."""
        found = self._find(beginning)
        said = [(field, _shown(value)) for field, value in _pieces(found.content)]
        return [Section(f"Row {found.id}", ("field", "value"), said), Section("Where it came from", ("artifact", "what is known"), self._way_back(found))]

    # ---- inside ----

    def _facts(self) -> Section:
        artifact = self.data.artifact
        size = sum(facts["size_bytes"] for facts in artifact.files.values())
        rows = [
            ("id", artifact.id),
            ("kind", f"{artifact.kind} of {self.data.kind}"),
            ("files", f"{len(artifact.files)} in the id, {len(artifact.about)} about them; each as it was written"),
            ("size", f"{size / 1e6:,.1f} MB"),
            ("made by", f"seed {artifact.config.get('seed')}, {(artifact.config.get('task') or {}).get('_target_', '')}"),
        ]
        return Section("Artifact", ("", ""), rows)

    def _splits(self) -> Section:
        rows = []
        for split, count in self.data.splits.items():
            lengths = sorted(sum(len(text) for text in row.texts()) for row in self._some(split))
            turns = [sum(len(row.content[name]) for name in TURNS[row.kind]) for row in self._some(split)] if self.data.kind != "text" else []
            middle, high = lengths[len(lengths) // 2], lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))]
            rows.append((split, count, f"{sum(lengths) / len(lengths):.0f}", middle, high, lengths[-1], f"{sum(turns) / len(turns):.1f}" if turns else "-"))
        return Section("Splits", ("split", "rows", "characters a row", "median", "95 %", "longest", "turns"), rows)

    def _fields(self) -> list[Section]:
        """What stands beside the text: the values of further fields, the commonest first."""
        values: dict[str, Counter[str]] = {}
        own = {"messages", "prompt", "chosen", "rejected", "text"}
        for split in self.data.splits:
            for row in self._some(split):
                for field, value in row.content.items():
                    if field not in own:
                        values.setdefault(field, Counter())[_shown(value, 40)] += 1
        rows = [
            (
                field,
                len(counts),
                ", ".join(f"{value} {count:,}" for value, count in sorted(counts.most_common(VALUES_SHOWN), key=lambda pair: (-pair[1], pair[0]))),
            )
            for field, counts in sorted(values.items())
        ]
        return [Section("Further fields", ("field", "values", "commonest"), rows)] if rows else []

    def _dropped(self) -> list[Section]:
        counts = Counter((line["step"], line["reason"]) for line in self.data.dropped())
        rows = [(step, reason, count) for (step, reason), count in sorted(counts.items())]
        return [Section("Rows left out", ("step", "why", "rows"), rows)] if rows else []

    def _sources(self) -> Section:
        rows = [(depth, source.kind, source.name, source.revision, source.sha256[:16]) for depth, source in lineage_of(self.data)]
        return Section("Made of", ("", "kind", "name", "revision", "sha256"), rows)

    def _log(self) -> Section:
        path = self.data.folder / AUDIT
        entries = audit.read(self.data.folder) if path.is_file() else []
        rows = [(entry["number"], entry["time"], entry["event"], _shown(json.dumps(entry["details"], sort_keys=True), 160)) for entry in entries]
        said = f"{len(entries)} entries, each chained to the one before: verified." if entries else "This artifact has no audit log."
        return Section("Audit log", ("", "time", "event", "details"), rows, said)

    def _rows(self, show: int) -> list[Section]:
        sections = []
        for split in self.data.splits if show else ():
            for number, row in enumerate(self.data.rows(split)):
                if number == show:
                    break
                known = [("id", row.id), ("origin", row.origin)]
                sections.append(
                    Section(f"{split} row {number + 1}", ("field", "value"), [*known, *((field, _shown(value)) for field, value in _pieces(row.content))])
                )
        return sections

    def _some(self, split: str) -> Iterator[Row]:
        for number, row in enumerate(self.data.rows(split)):
            if number == STATISTICS_ROWS:
                return
            yield row

    def _find(self, beginning: str) -> Row:
        for split in self.data.splits:
            for row, known in zip(self.data.rows(split), self.data.lineage(split), strict=True):
                if known["id"].startswith(beginning.lower()):
                    return row
        raise InputError(f"{self.data.folder} has no row whose id begins with {beginning}.", next_step=f"task=inspect data={self.data.folder} show=10")

    def _way_back(self, row: Row) -> list[tuple[str, str]]:
        """From this artifact to what its row was made of, as far as the parents are within reach."""
        known = {key: value for key, value in row.lineage.items() if value not in (None, "", [], {})}
        way = [(str(self.data.folder), f"{row.split} row {row.id}, from {row.origin}" + (f"; {json.dumps(known, sort_keys=True)}" if known else ""))]
        for source in self.data.sources:
            folder = Path(source.name)
            parent_id = row.origin.rpartition(" ")[2]
            if source.kind == "data" and is_artifact(folder) and len(parent_id) == 32:
                try:
                    parent = Inspection(folder)
                    way += parent._way_back(parent._find(parent_id))
                    return way
                except LargeForgeError as fault:
                    way.append((str(folder), f"cannot be followed: {fault.message}"))
        return way


def lineage_of(data: DataFolder, depth: int = 0) -> Iterator[tuple[str, Reference]]:
    """Yield what an artifact was made of, and what that was made of, where it is still there and still itself."""
    for source in data.sources:
        yield "  " * depth + ("- " if depth else ""), source
        folder = Path(source.name)
        if is_artifact(folder):
            try:
                parent = open_data(folder)
            except LargeForgeError:
                continue
            if parent.artifact.id == source.sha256:
                yield from lineage_of(parent, depth + 1)


def _pieces(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for field, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
            for turn in value:
                yield (turn["role"] if field == "messages" else f"{field}: {turn['role']}"), turn["content"]
        else:
            yield field, value


def _shown(value: Any, limit: int = TEXT_SHOWN) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= limit else text[: limit - 1] + "…"
