"""Rows made from templates or with a teacher: a generator asks, what passes becomes an artifact, every row with where it came from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largeforge.artifact import Artifact
from largeforge.build import build, find
from largeforge.config.lock import write_lock
from largeforge.contract import Progress, Reference
from largeforge.report import Section, number, write_report
from largeforge.run import Run
from largeforge.task.asking import Asking
from largeforge.task.config import GenerateConfig


class Generate:
    """Killed and started again with resume=auto, it asks for nothing that was answered, and ends with the same rows."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config

    def run(self, run: Run) -> Artifact:
        """Make rows; leave a data artifact."""
        config = self.config

        # ---- build ----
        asking = Asking(config, run)
        generator: Any = build(config.generator, seed=config.seed, ask=asking, teacher=asking.teacher, drawing=config.engine)
        asking.refuse_model()
        generator.check()  # template sets and prompts are read before a teacher is loaded
        sources: list[Reference] = generator.sources()
        run.progress.say(f"run folder: {run.folder}")
        run.progress.say(f"made of: {', '.join(f'{source.kind} {source.name}' for source in sources)}")
        make_room(run)

        # ---- make ----
        making: Any = find("largeforge.data.generator.making.Making")(generator, run)
        try:
            artifact = run.artifact(making.fill, parents=sources)
        finally:
            asking.close()
            tell(run, making, asking)

        # ---- leave ----
        write_lock(run.folder / "recipe.lock.yaml", run.composed, sources=sources, template=asking.template, facts=dict(run.metrics))
        write_report(run.folder, title=f"generate: {config.name or generator.name}", sections=tables(run, making))
        farewell(run, artifact, generator.ended)
        return artifact

    def plan(self, *, progress: Progress) -> Any:
        """How much would be asked, and what it would cost; nothing is asked and no model is loaded."""
        config = self.config
        generator: Any = build(config.generator, seed=config.seed, drawing=config.engine)
        generator.check()
        return find("largeforge.plan.generating.GeneratingPlan")(config)(estimate=generator.estimate(), progress=progress)


def make_room(run: Run) -> None:
    """Put the artifact of a run that ended early aside, which this one goes on with."""
    old = run.folder / "artifact"
    if old.exists():
        places: Iterator[Path] = (run.folder / f"artifact_before_{number}" for number in range(1, 10_000))
        place = next(place for place in places if not place.exists())
        old.rename(place)
        run.progress.say(f"the artifact that stood here is now {place}")


COLUMNS = ("what became of it", "tries", "share")


def outcome(making: Any) -> list[tuple[str, int, str]]:
    """One line for what was kept, one for each reason that something was not."""
    total = max(1, making.kept + making.rejected.total())
    return [(name, count, f"{count / total:.1%}") for name, count in [("kept", making.kept), *making.rejected.most_common()]]


def tell(run: Run, making: Any, asking: Asking) -> None:
    """Show and record what was kept and what was not."""
    run.measure(**making.numbers(), **asking.numbers())
    if asking.start:
        run.measure(tokens_per_s=making.generator.tally["completion_tokens"] / max(1e-9, time.monotonic() - asking.start))
    run.progress.table("Rows", COLUMNS, outcome(making))


def tables(run: Run, making: Any) -> list[Section]:
    """What report.md holds."""
    numbers = [(name, number(value)) for name, value in sorted(run.metrics.items())]
    return [Section("Rows", COLUMNS, outcome(making)), Section("Numbers", ("name", "value"), numbers)]


def farewell(run: Run, artifact: Artifact, ended: str) -> None:
    """Say where things are, why they are fewer than wanted, and what to do next."""
    if ended:
        run.outcome = "incomplete"
        run.progress.say(f"\nEnded early: {ended}.")
        run.progress.say(f"go on:    {run.command(folder=str(run.folder), resume='auto')}   with a larger budget or more attempts; nothing is asked for twice")
    run.progress.say(f"\nartifact: {artifact.folder} ({artifact.kind} {artifact.id[:12]})")
    run.progress.say(f"report:   {run.folder / 'report.md'}")
    run.progress.say(f"look:     python -m largeforge task=inspect data={artifact.folder}")
    run.progress.say(f"clean:    python -m largeforge task=prepare data.path={artifact.folder}")
