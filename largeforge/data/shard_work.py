"""What a worker does with one shard: read it, apply a verdict, run steps over it, survey it, write it. Knows nothing about other shards.

A shard's folder is filled under another name and renamed when it is whole, so that one which is there is done: work that was killed
begins again where it was, and work that is done twice leaves the same bytes.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largeforge.build import build
from largeforge.data.rows import BadRow, Dropped, Row, canonical
from largeforge.data.shards import lineage_line
from largeforge.data.step.base import Step, WholeStep
from largeforge.data.step.config import StepConfig

ROWS = "rows.jsonl"
COUNTS = "counts.json"
DROPPED = "dropped.jsonl"
BAD = "bad.jsonl"
SURVEY = "survey"
CHECKS = "checks.pickle"


@dataclass(frozen=True)
class StepPlan:
    """One step of the pipeline, as a worker builds it."""

    config: StepConfig
    seed: int
    folder: Path

    def build(self, **live: Any) -> Step:
        step: Step = build(self.config, seed=self.seed, folder=self.folder, **live)
        return step


@dataclass(frozen=True)
class ShardTask:
    """One shard on its way from one meeting of all shards to the next.

    Args:
        shard: its number.
        source: a slice of the raw rows, or the folder that the segment before left.
        folder: what it becomes.
        first: the step whose verdict is applied first.
        verdict: where that verdict lies.
        steps: what is done to each row, in order.
        survey: the step that surveys what comes out.
        final: rows leave as they will stand in the artifact, split by split.
        checks: typed config of the checks that look at the final rows.
    """

    shard: int
    source: Any
    folder: Path
    first: StepPlan | None = None
    verdict: Path | None = None
    steps: tuple[StepPlan, ...] = ()
    survey: StepPlan | None = None
    final: bool = False
    checks: Any = None
    live: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tally:
    """What one step did with one shard, or with all of them."""

    name: str
    seen: int = 0
    kept: int = 0
    changed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.seen, self.kept, self.changed = self.seen + other.seen, self.kept + other.kept, self.changed + other.changed
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())


def work(task: ShardTask) -> dict[str, Any]:
    """Do one shard's task, unless its folder stands already; return what it counted."""
    if not (task.folder / COUNTS).is_file():
        with whole(task.folder) as draft:
            write_json(draft / COUNTS, _Shard(task, draft).run())
    counts: dict[str, Any] = json.loads((task.folder / COUNTS).read_text(encoding="utf-8"))
    return counts


class whole:  # noqa: N801  (reads as a word: `with whole(folder) as draft`)
    """Fill a folder under another name; it gets its own when the block ends well, and is thrown away when it does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.draft = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> Path:
        self.draft.mkdir(parents=True)
        return self.draft

    def __exit__(self, kind: Any, fault: Any, trace: Any) -> None:
        try:
            if kind is None:
                os.replace(self.draft, self.folder)
        except OSError:
            if not self.folder.is_dir():  # else another worker was first, with the same bytes
                raise
        finally:
            shutil.rmtree(self.draft, ignore_errors=True)


def read_shard(folder: Path) -> Iterator[Row]:
    """Stream the rows that a segment left."""
    import orjson

    with (folder / ROWS).open("rb") as stream:
        for line in stream:
            yield Row(*orjson.loads(line))


def write_row(row: Row) -> bytes:
    """One row between two segments, as a line."""
    import orjson

    return orjson.dumps([row.content, row.origin, row.lineage, row.split]) + b"\n"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True), encoding="utf-8")


class _Shard:
    """One shard under way, into a folder that is not yet its own."""

    def __init__(self, task: ShardTask, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.tallies: list[Tally] = []
        self.bad = 0
        self.raw = 0

    def run(self) -> dict[str, Any]:
        """Stream the shard through; return the counts."""
        task = self.task
        with (self.folder / DROPPED).open("wb") as self.dropped, (self.folder / BAD).open("wb") as self.bad_rows:
            rows: Iterable[Row] = self._read()
            if task.first is not None and task.verdict is not None:
                first, verdict = task.first.build(**task.live), task.verdict
                assert isinstance(first, WholeStep)
                rows = self._counted(first.name, rows, lambda some: first.apply(some, task.shard, verdict))
            for plan in task.steps:
                step = plan.build(**task.live)
                rows = self._counted(step.name, rows, step)
            leave = self._leave_final if task.final else self._leave
            counts = leave(rows)
        return {
            "raw": self.raw,
            "bad": self.bad,
            "steps": [vars(tally) for tally in self.tallies],
            **counts,
        }

    def _read(self) -> Iterator[Row]:
        source = self.task.source
        if isinstance(source, Path):
            yield from read_shard(source)
            return
        from largeforge.data.raw import read_slice

        for row in read_slice(source):
            self.raw += 1
            if isinstance(row, BadRow):
                self.bad += 1
                self.bad_rows.write(canonical(vars(row)) + b"\n")
            else:
                yield row

    def _counted(self, name: str, rows: Iterable[Row], step: Callable[[Iterable[Row]], Iterable[Row | Dropped]]) -> Iterator[Row]:
        tally = Tally(name)
        self.tallies.append(tally)
        return self._counting(tally, rows, step)

    def _counting(self, tally: Tally, rows: Iterable[Row], step: Callable[[Iterable[Row]], Iterable[Row | Dropped]]) -> Iterator[Row]:
        name = tally.name

        def seen() -> Iterator[Row]:
            for row in rows:
                tally.seen += 1
                yield row

        for item in step(seen()):
            if isinstance(item, Dropped):
                tally.dropped[item.reason] = tally.dropped.get(item.reason, 0) + 1
                said = {"origin": item.row.origin, "id": item.row.id, "step": name, "reason": item.reason, "detail": item.detail}
                self.dropped.write(canonical(said) + b"\n")
                continue
            tally.kept += 1
            tally.changed += item.lineage.get("changed", ())[-1:] == [name]
            yield item

    def _leave(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Write the rows for the next segment, surveyed on their way."""
        count, moving = 0, ""
        with (self.folder / ROWS).open("wb") as stream:

            def written() -> Iterator[Row]:
                nonlocal count
                for row in rows:
                    count += 1
                    stream.write(write_row(row))
                    yield row

            passing = written()
            if self.task.survey is not None:
                (self.folder / SURVEY).mkdir()
                step = self.task.survey.build(**self.task.live)
                assert isinstance(step, WholeStep)
                step.survey(passing, self.folder / SURVEY)
                moving = step.name if step.moves else ""
            for _ in passing:  # what the survey did not read
                pass
        if moving:  # it leaves nothing out, and is asked for no verdict on a row
            self.tallies.append(Tally(moving, seen=count, kept=count))
        return {"rows": count}

    def _leave_final(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Write each split's rows and their lineage, looked at by the checks on their way."""
        splits: dict[str, int] = {}
        kinds: dict[str, int] = {}
        streams: dict[str, tuple[Any, Any]] = {}

        def written() -> Iterator[Row]:
            for row in rows:
                if row.split not in streams:
                    streams[row.split] = ((self.folder / f"{row.split}.jsonl").open("wb"), (self.folder / f"{row.split}.lineage.jsonl").open("wb"))
                content, lineage = streams[row.split]
                content.write(canonical(row.content) + b"\n")
                lineage.write(lineage_line(row))
                splits[row.split] = splits.get(row.split, 0) + 1
                kinds[row.kind] = kinds.get(row.kind, 0) + 1
                yield row

        passing = written()
        try:
            if self.task.checks is not None:
                looked = build(self.task.checks).fresh().look(passing)
                (self.folder / CHECKS).write_bytes(pickle.dumps(looked))
            for _ in passing:
                pass
        finally:
            for pair in streams.values():
                for stream in pair:
                    stream.close()
        return {"rows": sum(splits.values()), "splits": splits, "kinds": kinds}
