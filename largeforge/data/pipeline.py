"""A pipeline of steps over shards: where the shards must meet, what runs side by side, and how it goes on after a kill.

Between two meetings (a step that must have seen every row) a shard goes its own way in one pass: the verdict of the last meeting, then each
step that looks at one row at a time, then the survey for the next meeting. Knows nothing about what steps do, nor where work runs.

    work/fingerprint.json      what decides the result; another one is refused
    work/steps/<n>-<name>/     what a step keeps for its workers
    work/<n>-<name>/<shard>/   rows, counts, dropped rows, survey of one shard after segment n
    work/<n>-<name>.done       what the segment counted, once every shard is done and its verdict stands
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.artifact import write_atomically
from largeforge.data.rows import BadRow, BadRows
from largeforge.data.shard_work import BAD, CHECKS, COUNTS, SURVEY, ShardTask, StepPlan, Tally, read_shard, whole, work, write_json, write_row
from largeforge.data.step.base import Step, Survey, WholeStep
from largeforge.errors import InputError

if TYPE_CHECKING:
    from largeforge.contract import Executor
    from largeforge.run import Run


@dataclass
class Segment:
    """What is done to every shard between two meetings."""

    number: int
    first: StepPlan | None = None
    steps: list[StepPlan] = field(default_factory=list)
    survey: StepPlan | None = None
    here: bool = False
    """Whether a step needs live objects: then the main process does it, one shard at a time."""

    @property
    def name(self) -> str:
        names = [plan.config.target.rpartition(".")[0].rpartition(".")[2] for plan in (*self.steps, *([self.survey] if self.survey else []))]
        return f"{self.number}-{'-'.join(names) or 'write'}"


class Pipeline:
    """Runs steps over slices of rows, in `folder`, which it may find half done.

    Args:
        plans: (config, live) of each step, in order.
        seed: of the steps.
        folder: for the work in progress; grows to about twice the rows' size.
        executor: where the shards are worked on.
        here: the executor of this process, for steps with live objects.
        run: progress and stops.
        live: what steps may need: "engine", "ask", "model", "storage"; made when the first step asks.
    """

    def __init__(
        self, configs: Sequence[Any], *, seed: int, folder: Path, executor: Executor, here: Executor, run: Run, live: dict[str, Callable[[], Any]]
    ) -> None:
        self.seed = seed
        self.folder = folder
        self.executor = executor
        self.here = here
        self.run = run
        self._makers = live
        self._live: dict[str, Any] = {}
        self._alone = False
        self.plans = [StepPlan(config, seed, folder / "steps" / f"{number}-{_name(config)}") for number, config in enumerate(configs)]

    def process(self, slices: Callable[[], Sequence[Any]], *, fingerprint: dict[str, Any], skip_bad: bool, checks: Any = None) -> Outcome:
        """Run everything that is not done yet; return what came out.

        Args:
            slices: makes the slices of the raw rows, the same ones at every call.
            fingerprint: all that decides the result. Work of another one is refused.
            skip_bad: whether bad rows are left out; otherwise they end the run, all told together.
            checks: typed config of the checks that look at the final rows; None is none.

        Raises:
            RowError: bad rows.
            InputError: the folder holds work on something else.
        """
        made_of = {plan.folder.name: step.made_of() for plan, step in ((plan, plan.build()) for plan in self.plans)}
        self._own({**fingerprint, "made_of": {name: known for name, known in made_of.items() if known}})
        steps = [self._ready(plan) for plan in self.plans]
        segments = _segments(self.plans, steps)
        sources: list[Any] = list(slices())
        self._alone = len(sources) <= 1
        tallies: list[Tally] = []
        raw = bad = 0
        verdict: Path | None = None
        for segment in segments:
            final = segment is segments[-1]
            done = self._segment(segment, sources, verdict, final=final, checks=checks if final else None)
            tallies += done.tallies
            raw, bad = raw + done.raw, bad + done.bad
            if segment.number == 0 and bad and (not skip_bad or bad == raw):
                raise self._bad_rows(done.folders, raw).error(raw, skippable=not skip_bad)
            sources, verdict = list(done.folders), done.verdict
            if done.moved is not None:
                sources, verdict = list(done.moved), None
        return Outcome(folders=list(sources), tallies=tallies, rows_in=raw, rows_bad=bad, work=self.folder, segments=[s.name for s in segments])

    # ---- inside ----

    def _own(self, fingerprint: dict[str, Any]) -> None:
        """Claim the work folder, or see that what stands there is on the same rows and steps."""
        path = self.folder / "fingerprint.json"
        said = json.loads(json.dumps(fingerprint, sort_keys=True, default=str))
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            other = sorted(key for key in {*before, *said} if before.get(key) != said.get(key))
            if other:
                raise InputError(
                    f"{self.folder.parent} holds the half-done work of another run: {', '.join(other)} differ.",
                    next_step="the settings it began with, or another folder=...",
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(said, indent=2, sort_keys=True) + "\n")

    def _ready(self, plan: StepPlan) -> Step:
        """Build a step in this process, with what it needs, and let it do what is done once."""
        step = plan.build()
        if step.needs:
            step = plan.build(**self._live_for(step))
        if not plan.folder.is_dir():
            with whole(plan.folder) as draft:
                replace_folder = replace(plan, folder=draft)
                replace_folder.build(**(self._live_for(step) if step.needs else {})).ready()
        return step

    def _live_for(self, step: Step) -> dict[str, Any]:
        for name in sorted(step.needs):
            if name not in self._live:
                self._live[name] = self._makers[name]()
        return {name: self._live[name] for name in sorted(step.needs)}

    def _segment(self, segment: Segment, sources: Sequence[Any], verdict: Path | None, *, final: bool, checks: Any) -> _Done:
        place = self.folder / segment.name
        folders = [place / f"{shard:05d}" for shard in range(len(sources))]
        marker = self.folder / f"{segment.name}.done"
        found = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
        if found is None:
            place.mkdir(exist_ok=True)
            for draft in place.glob(".*"):  # by workers that were killed
                shutil.rmtree(draft, ignore_errors=True)
            live = dict(self._live) if segment.here else {}
            tasks = [
                ShardTask(shard, source, folders[shard], segment.first, verdict, tuple(segment.steps), segment.survey, final, checks, live)
                for shard, source in enumerate(sources)
            ]
            left = [task for task in tasks if not (task.folder / COUNTS).is_file()]
            for _ in (self.here if segment.here else self.executor).map(work, left, run=self.run, title=segment.name.partition("-")[2]):
                pass
            found = _sum_up(folders)
            self._meet(segment, folders)
            write_atomically(marker, json.dumps(found, sort_keys=True) + "\n")
            for source in sources:  # what the next segment does not read again
                if isinstance(source, Path):
                    (source / "rows.jsonl").unlink(missing_ok=True)
        tallies = [Tally(**tally) for tally in found["steps"]]
        after = self.folder / f"{segment.name}.verdict"
        moved = self.folder / f"{segment.name}.moved"
        return _Done(folders, tallies, found["raw"], found["bad"], after if after.is_dir() else None, sorted(moved.iterdir()) if moved.is_dir() else None)

    def _meet(self, segment: Segment, folders: Sequence[Path]) -> None:
        """Let the step that surveyed every shard decide; where it moves rows, move them."""
        if segment.survey is None:
            return
        verdict = self.folder / f"{segment.name}.verdict"
        step = segment.survey.build(**self._live)
        assert isinstance(step, WholeStep)
        surveys = [Survey(folder / SURVEY, shard, _rows_in(folder)) for shard, folder in enumerate(folders)]
        if not verdict.is_dir():
            with whole(verdict) as draft:
                step.decide(surveys, draft, self._parallel)
        if step.moves:
            self._move(segment, folders, verdict)
        for folder in folders:
            shutil.rmtree(folder / SURVEY, ignore_errors=True)

    def _parallel(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
        executor = self.here if self._alone else self.executor  # one shard: starting processes would take longer than deciding
        results = dict(executor.map(function, tasks, run=self.run, title="deciding"))
        return [results[number] for number in range(len(tasks))]

    def _move(self, segment: Segment, folders: Sequence[Path], verdict: Path) -> None:
        """Put rows into their new order: every shard is dealt out by where its rows go, then every new shard is put together."""
        sizes = [_rows_in(folder) for folder in folders]
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        dealt, moved = self.folder / f"{segment.name}.dealt", self.folder / f"{segment.name}.moved"
        dealt.mkdir(exist_ok=True)
        assert segment.survey is not None
        deals = [_Deal(shard, folder, dealt / f"{shard:05d}", segment.survey, verdict, tuple(ends)) for shard, folder in enumerate(folders)]
        list(self.executor.map(_deal, deals, run=self.run, title=f"{segment.survey.folder.name}: moving"))
        with whole(moved) as draft:
            gathers = [_Gather(tuple(deal.target for deal in deals), shard, draft / f"{shard:05d}") for shard in range(len(folders))]
            list(self.executor.map(_gather, gathers, run=self.run, title=f"{segment.survey.folder.name}: in order"))
        shutil.rmtree(dealt)

    @staticmethod
    def _bad_rows(folders: Sequence[Path], raw: int) -> BadRows:
        found = BadRows()
        for folder in folders:
            with (folder / BAD).open(encoding="utf-8") as lines:
                for line in lines:
                    found.add(BadRow(**json.loads(line)))
        return found


@dataclass(frozen=True)
class Outcome:
    """What a pipeline left, in its work folder."""

    folders: list[Path]
    tallies: list[Tally]
    rows_in: int
    rows_bad: int
    work: Path
    segments: list[str]

    def lines(self, name: str) -> list[Path]:
        """Every shard's file of that name (DROPPED or BAD), in the order of segments and shards."""
        return [path for segment in self.segments for path in sorted((self.work / segment).glob(f"[0-9]*/{name}"))]

    def looks(self) -> Iterator[Any]:
        """What the checks saw in each shard, in the order of shards."""
        for folder in self.folders:
            if (folder / CHECKS).is_file():
                yield pickle.loads((folder / CHECKS).read_bytes())


@dataclass(frozen=True)
class _Done:
    folders: list[Path]
    tallies: list[Tally]
    raw: int
    bad: int
    verdict: Path | None
    moved: list[Path] | None


@dataclass(frozen=True)
class _Deal:
    shard: int
    source: Path
    target: Path
    step: StepPlan
    verdict: Path
    ends: tuple[int, ...]


@dataclass(frozen=True)
class _Gather:
    sources: tuple[Path, ...]
    shard: int
    target: Path


def _deal(task: _Deal) -> None:
    """Write one shard's rows into a file for each shard that they go to."""
    import bisect

    if task.target.is_dir():
        return
    step = task.step.build()
    assert isinstance(step, WholeStep)
    places = step.destinations(task.shard, task.verdict)
    pieces: dict[int, list[bytes]] = {}
    for row, place in zip(read_shard(task.source), places.tolist(), strict=True):
        pieces.setdefault(bisect.bisect_right(task.ends, place), []).append(b"%d %b" % (place, write_row(row)))
    with whole(task.target) as draft:
        for shard, lines in pieces.items():
            (draft / f"{shard:05d}").write_bytes(b"".join(lines))


def _gather(task: _Gather) -> None:
    """Put one new shard together from the pieces that were dealt to it."""
    lines: list[tuple[int, bytes]] = []
    for source in task.sources:
        piece = source / f"{task.shard:05d}"
        if piece.is_file():
            with piece.open("rb") as stream:
                lines += [(int(place), line) for place, _, line in (one.partition(b" ") for one in stream)]
    lines.sort(key=lambda pair: pair[0])
    with whole(task.target) as draft:
        (draft / "rows.jsonl").write_bytes(b"".join(line for _, line in lines))
        write_json(draft / COUNTS, {"rows": len(lines)})


def _segments(plans: Sequence[StepPlan], steps: Sequence[Step]) -> list[Segment]:
    """Cut the steps where shards must meet, and around those that need live objects."""
    segments = [Segment(0)]
    for plan, step in zip(plans, steps, strict=True):
        last = segments[-1]
        if isinstance(step, WholeStep) and step.whole:
            if step.needs and last.steps:
                segments.append(Segment(last.number + 1))
                last = segments[-1]
            last.survey, last.here = plan, last.here or bool(step.needs)
            segments.append(Segment(last.number + 1, first=None if step.moves else plan))
        elif step.needs:
            if last.steps or last.first:
                segments.append(Segment(last.number + 1))
            segments[-1].steps.append(plan)
            segments[-1].here = True
            segments.append(Segment(segments[-1].number + 1))
        else:
            last.steps.append(plan)
    return segments


def _sum_up(folders: Sequence[Path]) -> dict[str, Any]:
    """Add up what the shards of a segment counted."""
    total: dict[str, Any] = {"raw": 0, "bad": 0}
    steps: list[Tally] = []
    for folder in folders:
        counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        total["raw"] += counts["raw"]
        total["bad"] += counts["bad"]
        for place, one in enumerate(counts["steps"]):
            if place == len(steps):
                steps.append(Tally(one["name"]))
            steps[place].add(Tally(**one))
    return {**total, "steps": [vars(tally) for tally in steps]}


def _rows_in(folder: Path) -> int:
    return int(json.loads((folder / COUNTS).read_text(encoding="utf-8"))["rows"])


def _name(config: Any) -> str:
    return str(config.target).rpartition(".")[0].rpartition(".")[2]


def hash_of(value: Any) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
