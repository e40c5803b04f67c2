"""Train a model with one method: rows -> steps -> artifact, measured before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from largeforge.artifact import Artifact, write_atomically
from largeforge.build import build, find
from largeforge.chat import Example
from largeforge.config.composed import Composed
from largeforge.config.lock import write_lock
from largeforge.contract import (
    Adapter,
    Benchmark,
    DataModule,
    Engine,
    LoadedModel,
    Method,
    ModelSource,
    Progress,
    Quant,
    Reference,
    Score,
    Storage,
    Tracker,
    Trainer,
)
from largeforge.errors import DoesNotFit
from largeforge.model.config import ModelConfig
from largeforge.report import Section, write_report
from largeforge.run import Run
from largeforge.task.config import DistillFromTeacherConfig, PreferToReferenceConfig, TrainingConfig
from largeforge.task.relief import relief

SUGGESTING_S = 20.0
"""After so many seconds no other change is planned."""

SecondModel = Callable[[Any], LoadedModel]
"""Loads the model of a config, frozen."""


@dataclass(frozen=True)
class Assembled:
    """What trains, built; and what it was built from."""

    trainer: Trainer
    model: LoadedModel
    data: DataModule
    method: Method
    sources: list[Reference]


class Train:
    """Every method that learns from rows; those that ask a second model say which."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def run(self, run: Run) -> Artifact | None:
        """Train, and leave a checkpoint or adapter artifact; None in processes that only help to train."""
        config = self.config

        # ---- build ----
        parts = self.assemble(run)
        trainer, model, data, method = parts.trainer, parts.model, parts.data, parts.method
        engine: Engine = build(config.engine, model=model, progress=run.progress, device=trainer.device)
        benchmark: Benchmark = build(config.benchmark)
        facts = {"device": trainer.device, "precision": trainer.precision, **data.facts}
        if run.leads:
            write_lock(run.folder / "recipe.lock.yaml", run.composed, sources=parts.sources, template=model.template, facts=facts)
            tell(run, model, facts)
            keep_bad_rows(run, data)

        # ---- before ----
        examples = data.heldout() if benchmark.measures and run.leads else []
        before = measured_before(run, benchmark, engine, examples)

        # ---- train ----
        run.measure(**{name: float(value) for name, value in data.facts.items() if name.startswith("rows_")})
        run.measure(**trainer.fit(method, data))
        if not run.leads:
            return None  # what is left is one process's work

        # ---- after ----
        after = benchmark.run(engine, examples, title="after", run=run)
        table = compare(run, benchmark, examples, before, after)

        # ---- leave ----
        artifact = run.artifact(method.export, parents=parts.sources)
        write_report(run.folder, title=f"{run.composed.task}: {model.source.name}", sections=[*table, numbers(run), *facts_section(facts)])
        farewell(run, artifact)
        return artifact

    def assemble(self, run: Run) -> Assembled:
        """Build what trains: trainer, model, rows and method, with what must be known about every row computed."""
        config = self.config
        tracker: Tracker = build(config.tracker, folder=run.folder, values=run.composed.values, name=config.name)
        storage: Storage = build(config.storage, progress=run.progress)
        trainer: Trainer = build(config.trainer, tracker=tracker, run=run, storage=storage)
        quant: Quant = build(config.quant)
        adapter: Adapter = build(config.adapter, seed=config.seed)
        source: ModelSource = build(config.model, progress=run.progress)
        with trainer.leader_first():
            model = source.load(trainable=True, precision=trainer.precision, quant=quant, adapter=adapter)
        rows = {"template": model.template, "train_on": config.method.train_on, "learns": config.method.learns, "progress": run.progress, "storage": storage}
        data: DataModule = build(config.data, tokenizer=model.tokenizer, **rows)
        with trainer.leader_first():
            data.prepare()

        def second(of: ModelConfig) -> LoadedModel:
            loaded: LoadedModel = build(of, progress=run.progress).load(trainable=False, precision=trainer.precision)
            return loaded

        with trainer.leader_first():
            others = self.second_models(model, adapter, second)
        method: Method = build(config.method, model=model, **others)
        with trainer.leader_first():
            data.annotate(method, trainer=trainer)
        data.shapes(trainer.window(data.num_rows, seed=config.seed))  # settles packing=auto, which the lock records
        sources = [model.source, data.source, *(other.source for other in others.values() if other is not None)]
        return Assembled(trainer, model, data, method, sources)

    def verify(self, run: Run) -> None:
        """Prove what `verify` says of this recipe, in a few steps, instead of training."""
        find(f"largeforge.proof.{self.config.verify}.prove")(run)

    def plan(self, *, progress: Progress) -> Any:
        """What `run` would cost; no weights are read."""
        config = self.config
        trainer: Trainer = build(config.trainer)
        quant: Quant = build(config.quant)
        adapter: Adapter = build(config.adapter, seed=config.seed)
        model: LoadedModel = build(config.model, progress=progress).outline(trainable=True, precision=trainer.precision, quant=quant, adapter=adapter)
        data: DataModule | None = None
        if model.tokenizer is not None:
            storage: Storage = build(config.storage, progress=progress)
            rows = {"template": model.template, "train_on": config.method.train_on, "learns": config.method.learns, "progress": progress, "storage": storage}
            data = build(config.data, tokenizer=model.tokenizer, **rows)
            data.prepare()

        def second(of: ModelConfig) -> LoadedModel:
            outlined: LoadedModel = build(of, progress=progress).outline(trainable=False, precision=trainer.precision)
            return outlined

        method: Method = build(config.method, model=model, **self.second_models(model, adapter, second))
        plan = find("largeforge.plan.training.TrainingPlan")(config)
        return plan(model=model, method=method, data=data, trainer=trainer, progress=progress)

    def suggest(self, composed: Composed) -> list[tuple[str, int, bool]]:
        """Changes to a run that does not fit, the peak of each in bytes and whether it fits."""
        found = find("largeforge.plan.suggestions.suggestions")(
            composed.overrides, self.config, budget_s=SUGGESTING_S, device=str(self.config.plan).lower(), as_it_is=False
        )
        return [(one.told, one.peak_bytes, one.fits) for one in found]

    def relief(self, run: Run, *, progress: Progress) -> DoesNotFit | None:
        """What to change where memory ran out; None where that could not be planned."""
        return relief(run, progress=progress)

    def second_models(self, model: LoadedModel, adapter: Adapter, load: SecondModel) -> dict[str, LoadedModel | None]:
        """Load what the method asks besides the model that learns, by the name of its argument; none here."""
        return {}


class Pretrain(Train):
    """Continued pre-training on text."""


class Prefer(Train):
    """Learning from answers of which some are preferred."""


class PreferToReference(Train):
    """Learning from preferences, held to a reference model."""

    config: PreferToReferenceConfig

    def second_models(self, model: LoadedModel, adapter: Adapter, load: SecondModel) -> dict[str, LoadedModel | None]:
        """Load the reference: the model named, or a copy where the model's own weights learn or an adapter it came with; None is the adapter switched off."""
        config = self.config
        if config.reference is not None:
            return {"reference": load(config.reference)}
        asked_once = getattr(config.method, "reference_logprobs", "online") == "cached"
        changes = adapter.trains_base or model.source.kind == "adapter"
        return {"reference": load(config.model) if changes and not asked_once else None}


class DistillFromTeacher(Train):
    """Learning from a teacher's predictions."""

    config: DistillFromTeacherConfig

    def second_models(self, model: LoadedModel, adapter: Adapter, load: SecondModel) -> dict[str, LoadedModel | None]:
        """Load the teacher, and the assistant that teaches before."""
        config = self.config
        return {name: None if of is None else load(of) for name, of in (("teacher", config.teacher), ("assistant", config.assistant))}


def measured_before(run: Run, benchmark: Benchmark, engine: Engine, examples: list[Example]) -> Score | None:
    """Score the untrained model; a resumed run keeps the score it took at its start."""
    path = run.folder / "before.json"
    if path.is_file():
        return Score(**json.loads(path.read_text(encoding="utf-8")))
    score = benchmark.run(engine, examples, title="before", run=run)
    if score is not None:
        write_atomically(path, json.dumps(vars(score), indent=2) + "\n")
    return score


def compare(run: Run, benchmark: Benchmark, examples: list[Example], before: Score | None, after: Score | None) -> list[Section]:
    """Show and record both scores, and some held-out prompts answered before and after."""
    if before is None or after is None:
        return []
    names = [name for name in before.metrics if name != "num_rows"]
    for name in names:
        run.measure(**{f"{name}_before": before.metrics[name], f"{name}_after": after.metrics[name]})
    run.measure(heldout_rows=float(len(before.answers)))
    columns = ("prompt", "expected", "before", "after", "right", "note")
    rows = [
        (example.prompt[-1].content, example.answer, _short(old), _short(new), "yes" if right else "no", example.note)
        for example, old, new, right in zip(examples, before.answers, after.answers, after.correct, strict=False)
    ]
    shown = rows[: benchmark.config.show]
    run.progress.table("Held-out prompts", columns, shown)
    scores = [(name.replace("_", " "), f"{before.metrics[name]:.1%}", f"{after.metrics[name]:.1%}", len(before.answers)) for name in names]
    run.progress.table("Before and after", ("metric", "before", "after", "held-out rows"), scores)
    return [Section("Before and after", ("metric", "before", "after", "held-out rows"), scores), Section("Held-out prompts", columns, rows)]


def numbers(run: Run) -> Section:
    """Every number of result.json."""
    return Section("Numbers", ("name", "value"), sorted(run.metrics.items()))


def facts_section(facts: dict[str, Any]) -> list[Section]:
    """What was decided at run time."""
    return [Section("Decided at run time", ("fact", "value"), [(name, value) for name, value in facts.items() if not isinstance(value, (list, dict))])]


def keep_bad_rows(run: Run, data: DataModule) -> None:
    """List every row that was left out in bad_rows.jsonl; no file where there is none."""
    if data.facts["rows_bad"]:
        write_atomically(run.folder / "bad_rows.jsonl", "".join(f"{line}\n" for line in data.bad_rows()))
        run.progress.say(f"rows left out: {data.facts['rows_bad']:,}, listed in {run.folder / 'bad_rows.jsonl'}")


def tell(run: Run, model: LoadedModel, facts: dict[str, Any]) -> None:
    """Say what is about to be trained, on what, and what was decided."""
    network = model.network
    total = sum(parameter.numel() for parameter in network.parameters())
    learning = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    run.progress.say(f"run folder: {run.folder}")
    run.progress.say(f"model: {model.source.name}, {total / 1e6:.1f}M parameters, {learning / 1e6:.2f}M of them learn")
    for note in model.notes:
        run.progress.say(f"  {note}")
    packing = "packed" if facts.get("packing") else "sorted by length"
    run.progress.say(f"rows: {facts.get('rows_kept', 0):,}, {packing}; {facts['precision']} on {facts['device']}")


def farewell(run: Run, artifact: Artifact) -> None:
    """Say where things are and what to do next."""
    run.progress.say(f"\nartifact: {artifact.folder} ({artifact.kind} {artifact.id[:12]})")
    run.progress.say(f"report:   {run.folder / 'report.md'}")
    run.progress.say(f"talk:     python -m largeforge task=chat model={artifact.folder}")
    run.progress.say(f"serve:    python -m largeforge task=serve model={artifact.folder}")


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
