"""Rows made from templates or with a teacher: a generator asks, what passes becomes an artifact, every row with where it came from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from largeforge.artifact import Artifact
from largeforge.build import build, find
from largeforge.chat import Answer, ChatRequest, Failure
from largeforge.config.lock import write_lock
from largeforge.contract import Engine, LoadedModel, Progress, Quant, Reference
from largeforge.errors import InputError
from largeforge.report import Section, write_report
from largeforge.run import Run
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


class Asking:
    """A way to ask the teacher, made when it is first needed: journalled in the run's folder, within the engine's budget, ended by a stop."""

    def __init__(self, config: GenerateConfig, run: Run) -> None:
        self.config = config
        self._run = run
        self.template = ""
        self.start = 0.0

    def __call__(self, requests: Sequence[ChatRequest]) -> Iterator[Answer | Failure]:
        """Yield answers in the order asked."""
        self.start = self.start or time.monotonic()
        answers = find("largeforge.engine.answers.answers")
        engine: Any = self.engine
        found: Iterator[Answer | Failure] = answers(engine, requests, in_flight=engine.in_flight, journal=self.journal, stop=lambda: self._run.stop_asked)
        return found

    def teacher(self) -> Reference:
        """Who answers, for the lineage."""
        return self.model.source if self.model is not None else Reference("model", self.engine.name)

    def refuse_model(self) -> None:
        """Raise InputError where a teacher's model was chosen for an engine that loads none: it would be ignored."""
        if find(self.config.engine.target).needs_model:
            return
        for word in self._run.composed.overrides:
            if word.partition("=")[0].partition(".")[0] in ("teacher", "model@teacher", "quant"):
                mend = "engine.model=<its name there>, or engine=hf"
                raise InputError(f"{word} is for an engine in this process; the chosen one asks elsewhere.", next_step=mend)

    @cached_property
    def model(self) -> LoadedModel | None:
        """The teacher's network; None where the engine answers without one."""
        if not find(self.config.engine.target).needs_model:
            return None
        quant: Quant = build(self.config.quant)
        model: LoadedModel = build(self.config.teacher, progress=self._run.progress).load(trainable=False, quant=quant)
        self.template = model.template
        return model

    @cached_property
    def engine(self) -> Engine:
        engine: Engine = build(self.config.engine, model=self.model, progress=self._run.progress)
        return engine

    @cached_property
    def journal(self) -> Any:
        """What was answered already, by this run or by the one it goes on with."""
        journal = find("largeforge.engine.journal.Journal")(self._run.folder / "answers.jsonl")
        if len(journal):
            self._run.progress.say(f"{len(journal):,} answers are in the journal and are not asked for again")
        return journal

    def numbers(self) -> dict[str, float]:
        """What the answers cost, where the engine keeps count."""
        budget = getattr(self.__dict__.get("engine"), "budget", None)
        return {"cost": budget.cost} if budget is not None and budget.cost else {}

    def close(self) -> None:
        if "journal" in self.__dict__:
            self.journal.close()


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
    numbers = [(name, f"{value:g}") for name, value in sorted(run.metrics.items())]
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
