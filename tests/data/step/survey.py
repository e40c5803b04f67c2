"""Run a step that must see every row first, over any number of shards, as a pipeline does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Survey, WholeStep

Parallel = Callable[[Callable[[Any], Any], Sequence[Any]], "list[Any]"]


def here(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """One after the other, the last first: results must not depend on who comes when."""
    return [function(task) for task in tasks[::-1]][::-1]


def elsewhere(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """In two fresh processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, tasks))


def in_shards(count: int, num_shards: int) -> list[range]:
    """Rows dealt to shards as evenly as it goes."""
    edges = [count * number // num_shards for number in range(num_shards + 1)]
    return [range(first, end) for first, end in zip(edges, edges[1:], strict=False)]


def run(step: WholeStep, rows: Sequence[Row], folder: Path, *, num_shards: int = 1, parallel: Parallel = here) -> list[Row | Dropped]:
    """What becomes of each row."""
    surveys = []
    for shard, part in enumerate(in_shards(len(rows), num_shards)):
        place = folder / f"survey-{shard}"
        place.mkdir(parents=True)
        step.survey((rows[index] for index in part), place)
        surveys.append(Survey(place, shard, len(part)))
    verdict = folder / "verdict"
    verdict.mkdir()
    step.decide(surveys, verdict, parallel)
    return [item for shard, part in enumerate(in_shards(len(rows), num_shards)) for item in step.apply((rows[index] for index in part), shard, verdict)]


def gone(items: Sequence[Row | Dropped]) -> list[int]:
    """Which rows were dropped."""
    return [index for index, item in enumerate(items) if isinstance(item, Dropped)]
