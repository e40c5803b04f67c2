"""How a story asks a teacher: the engine is made when it is first needed, answers are journalled in the run's folder. Knows no generator and no step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from largeforge.build import build, find
from largeforge.chat import Answer, ChatRequest, Failure
from largeforge.contract import Engine, LoadedModel, Quant, Reference
from largeforge.errors import InputError
from largeforge.run import Run
from largeforge.task.data_config import GenerateConfig, PrepareConfig


class Asking:
    """A way to ask the teacher, made when it is first needed: journalled in the run's folder, within the engine's budget, ended by a stop."""

    def __init__(self, config: GenerateConfig | PrepareConfig, run: Run) -> None:
        self.config = config
        self._run = run
        self.template = ""
        self.start = 0.0

    def __call__(self, requests: Iterable[ChatRequest]) -> Iterator[Answer | Failure]:
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
