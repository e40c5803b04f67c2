"""What a step of a pipeline is. Knows nothing about files, shards on disk or processes: `largeforge/data/pipeline.py` runs steps.

A step is one file here, one YAML in conf/data/step/, one class in config.py, and two lines where it can be chosen: the defaults list of
conf/task/prepare.yaml and `StepsConfig`. Rows come in shards (a fixed number of raw rows each), so that shards can be done side by side, in other
processes and on other machines, and again after a kill: a step is a pure function of its config, its seed and the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from largeforge.data.rows import Dropped, Row

if TYPE_CHECKING:
    import numpy as np

    from largeforge.data.step.config import StepConfig

Parallel = Callable[[Callable[[Any], Any], Sequence[Any]], "list[Any]"]
"""parallel(function, tasks) -> results in the order of the tasks; function and tasks are picklable."""


@dataclass(frozen=True)
class Survey:
    """What one shard's survey left: its folder, which shard, and how many rows it had."""

    folder: Path
    shard: int
    num_rows: int


class Step:
    """Looks at one row at a time, with no memory of the others.

    Args:
        config: typed.
        seed: of everything random; a draw for a row depends on (seed, row.id), never on the order of rows.
        folder: a folder of this step's own, the same for every process; None where a step is tried alone.
        live: what `needs` names.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Live objects that it must be given, of "engine", "ask", "model", "storage": such a step runs in the main process, one shard at a time."""

    def __init__(self, config: StepConfig, *, seed: int = 0, folder: Path | None = None, **live: Any) -> None:
        self.config: Any = config
        self.seed = seed
        self.folder = folder
        self.live = live

    @property
    def name(self) -> str:
        """The module's name, as users choose it: "length"."""
        return type(self).__module__.rpartition(".")[2]

    def made_of(self) -> dict[str, Any]:
        """What decides the result besides config, seed and rows: hashes of files that it reads. JSON values."""
        return {}

    def ready(self) -> None:
        """Do what is done once, in the main process, before any row: build an index in `folder`, check a path. Raises LargeForgeError."""

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Stream one shard: give every row on, changed (`row.changed`, `row.rewritten`) or not, or a Dropped in its place."""
        raise NotImplementedError


class WholeStep(Step):
    """Must have seen every row before it can decide on one: survey every shard, decide once, apply to every shard.

    Memory stays bounded: surveys hold hashes or signatures, in files bucketed by their prefix; `decide` works a bucket at a time.
    """

    @property
    def whole(self) -> bool:
        """Whether this config makes it one at all; False where every row can be judged alone: then `__call__` is used."""
        return True

    moves: ClassVar[bool] = False
    """Whether rows change places: then `destinations` is asked, and `apply` is not."""

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Read one shard to its end and write what `decide` needs of it into `folder` (exists, empty)."""
        raise NotImplementedError

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Read every survey, in the order of shards, and write the verdict into `folder` (exists, empty). Runs once, in the main process."""
        raise NotImplementedError

    def apply(self, rows: Iterable[Row], shard: int, verdict: Path) -> Iterator[Row | Dropped]:
        """Stream one shard, exactly the rows that were surveyed, under the verdict."""
        raise NotImplementedError

    def destinations(self, shard: int, verdict: Path) -> np.ndarray:
        """int64, one a row of the shard: its place in the new order of all rows, each place once."""
        raise NotImplementedError

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """All three at once, over rows that are one shard: for trying a step alone, and for small data."""
        import tempfile

        held = list(rows)
        with tempfile.TemporaryDirectory() as place:
            surveyed, verdict = Path(place) / "survey", Path(place) / "verdict"
            surveyed.mkdir()
            verdict.mkdir()
            self.survey(iter(held), surveyed)
            self.decide([Survey(surveyed, 0, len(held))], verdict, lambda function, tasks: [function(task) for task in tasks])
            if self.moves:
                places = self.destinations(0, verdict)
                yield from (held[index] for index in sorted(range(len(held)), key=lambda index: int(places[index])))
            else:
                yield from self.apply(iter(held), 0, verdict)
