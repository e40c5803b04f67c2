"""One side of the near-duplicates bench, in a process of its own: reads JSON Lines, writes the rows that stay.

Called by near_duplicates.py: SIDE ROWS_FOLDER OUT_FOLDER PROCESSES. The side "datatrove" runs in an environment without LargeForge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def main(side: str, source: Path, target: Path, processes: int) -> None:
    target.mkdir()
    (ours if side == "ours" else datatrove)(source, target, processes)


# ---- ours: survey every shard, decide, apply to every shard ----


def ours(source: Path, target: Path, processes: int) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from largeforge.data.step.base import Survey

    shards = sorted(source.glob("*.jsonl"))
    work = target / "work"
    work.mkdir()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def parallel(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
            return list(pool.map(function, tasks))

        counts = parallel(survey, [(path, work / path.stem) for path in shards])
        surveys = [Survey(work / path.stem, number, count) for number, (path, count) in enumerate(zip(shards, counts, strict=True))]
        verdict = work / "verdict"
        verdict.mkdir()
        step().decide(surveys, verdict, parallel)
        parallel(apply, [(path, number, verdict, target / path.name) for number, path in enumerate(shards)])


def step() -> Any:
    """The step as its YAML has it."""
    from largeforge.data.step.config import NearDuplicatesConfig
    from largeforge.data.step.near_duplicates import NearDuplicates

    values = {"_target_": "largeforge.data.step.near_duplicates.NearDuplicates", "threshold": 0.8, "ngram": 5, "num_perm": 128, "verify": True, "keep": "first"}
    return NearDuplicates(NearDuplicatesConfig(**values))  # type: ignore[arg-type]


def survey(task: tuple[Path, Path]) -> int:
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal count
        for row in read(task[0]):
            count += 1
            yield row

    task[1].mkdir()
    step().survey(counted(), task[1])
    return count


def apply(task: tuple[Path, int, Path, Path]) -> None:
    import orjson

    from largeforge.data.rows import Row

    path, shard, verdict, target = task
    with target.open("wb") as out:
        for item in step().apply(read(path), shard, verdict):
            if isinstance(item, Row):
                out.write(orjson.dumps(item.content, option=orjson.OPT_APPEND_NEWLINE))


def read(path: Path) -> Iterator[Any]:
    import orjson

    from largeforge.data.rows import Row

    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield Row(orjson.loads(line), f"{path.name}:{number}")


# ---- datatrove's four stages ----


def datatrove(source: Path, target: Path, processes: int) -> None:
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
    from datatrove.pipeline.dedup import minhash  # type: ignore[import-not-found]
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature  # type: ignore[import-not-found]
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-not-found]

    config = MinhashConfig()
    work = target / "work"
    minhash.load_word_tokenizer = lambda language: AtWhiteSpace()  # its default for English is spaCy, which takes longer
    stages = [
        ([JsonlReader(str(source), compression=None), MinhashDedupSignature(str(work / "signatures"), config=config)], processes),
        ([MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)], config.num_buckets),
        ([MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)], 1),
        (
            [
                JsonlReader(str(source), compression=None),
                MinhashDedupFilter(str(work / "remove")),
                JsonlWriter(str(target), output_filename="${rank}.jsonl", compression=None),
            ],
            processes,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(processes, tasks), logging_dir=str(work / f"log{number}"), start_method="fork").run()


class AtWhiteSpace:
    """A word tokenizer for rows whose words are lower case, without punctuation."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
