"""Rows cleaned step by step, split and checked: raw files -> shards -> artifact, every row with where it came from."""

from __future__ import annotations

import json
import shutil
from typing import Any

from largeforge.artifact import PROOF, Artifact, is_artifact, read_artifact, write_atomically
from largeforge.build import build, find
from largeforge.config.lock import write_lock
from largeforge.contract import Executor, Progress, Storage
from largeforge.report import Section, number, write_report
from largeforge.run import Run
from largeforge.task.asking import Asking
from largeforge.task.data_config import PrepareConfig


class Prepare:
    """Killed and started again with resume=auto, it goes on where it was, and ends with the same bytes."""

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config

    def run(self, run: Run) -> Artifact:
        """Clean, split and check rows; leave a data artifact."""
        config = self.config
        work = run.folder / "work"
        if not work.exists() and (done := left_before(run)):
            run.progress.say(f"This run is done already: {done.folder} ({done.kind} {done.id[:12]})")
            return done

        # ---- build ----
        storage: Storage = build(config.storage, progress=run.progress)
        source: Any = build(config.data, storage=storage, progress=run.progress)
        executor: Executor = build(config.executor)
        here: Executor = find("largeforge.executor.local.Here")()
        steps = [getattr(config.step, name) for name in config.steps]
        asking = Asking(config, run)
        pipeline = find("largeforge.data.pipeline.Pipeline")(
            steps,
            seed=config.seed,
            folder=work,
            executor=executor,
            here=here,
            run=run,
            live={"engine": lambda: asking.engine, "ask": lambda: asking, "model": lambda: asking.model},
        )
        run.progress.say(f"run folder: {run.folder}")
        run.progress.say(f"steps: {', '.join(config.steps) or 'none: rows are read and written'}")

        # ---- work ----
        try:
            outcome = pipeline.process(
                lambda: list(source.slices(config.shard_rows, work / "raw")),
                fingerprint=fingerprint(config, source),
                skip_bad=config.data.on_bad_row == "skip",
                checks=config.check,
            )
        finally:
            executor.close()
            asking.close()
        run.measure(workers=float(max(1, len(executor.workers))))
        sources = source.sources()

        # ---- leave ----
        fill = find("largeforge.data.assemble.assemble")
        artifact = left_before(run) or run.artifact(
            lambda draft: fill(draft, outcome, sources=sources, layout=config.layout, file_type=config.file_type), parents=sources
        )
        counts = tell(run, outcome, artifact)
        write_lock(run.folder / "recipe.lock.yaml", run.composed, sources=sources, template="", facts=counts)

        # ---- check ----
        checks: Any = build(config.check, seed=config.seed, folder=work / "check", progress=run.progress)
        for looked in outcome.looks():
            checks.merge(looked)
        findings = checks.findings()
        run.measure(**checks.metrics())
        sections = [*tables(outcome, run), *found(findings), *checks.sections(run.folder)]
        checks.close()
        write_report(run.folder, title=f"prepare: {config.name or ', '.join(one.name for one in sources)}", sections=sections)
        proof = {"findings": [one.as_dict() for one in findings], "metrics": run.metrics}
        write_atomically(artifact.folder / PROOF, json.dumps(proof, indent=2, sort_keys=True) + "\n")
        shutil.rmtree(work)
        farewell(run, artifact, findings)
        failure = checks.verdict(findings, report=run.folder / "report.md")
        if failure is not None:
            raise failure
        return artifact

    def plan(self, *, progress: Progress) -> Any:
        """What preparing would read and do; no row is changed and nothing is written."""
        config = self.config
        storage: Storage = build(config.storage, progress=progress)
        source: Any = build(config.data, storage=storage, progress=progress)
        return find("largeforge.plan.preparing.PreparingPlan")(config)(source=source, progress=progress)


def left_before(run: Run) -> Artifact | None:
    """The artifact of the run that this one goes on with, where it had come so far."""
    if not is_artifact(run.folder / "artifact"):
        return None
    run.result_artifact = read_artifact(run.folder / "artifact")
    return run.result_artifact


def fingerprint(config: PrepareConfig, source: Any) -> dict[str, Any]:
    """All that decides the artifact's bytes: half-done work of another one is not gone on with."""
    asked = {"teacher": config.teacher, "quant": config.quant, "engine": config.engine} if asks(config) else {}
    return {
        **{name: part.model_dump(mode="json") for name, part in asked.items()},
        "sources": [[one.name, one.sha256] for one in source.sources()],
        "data": config.data.model_dump(mode="json", exclude={"path"}),
        "steps": [[name, getattr(config.step, name).model_dump(mode="json")] for name in config.steps],
        "seed": config.seed,
        "shard_rows": config.shard_rows,
        "check": config.check.model_dump(mode="json"),
    }


def asks(config: PrepareConfig) -> bool:
    """Whether a step asks a teacher."""
    return "augment" in config.steps or ("order" in config.steps and config.step.order.by == "loss")


def tell(run: Run, outcome: Any, artifact: Artifact) -> dict[str, float]:
    """Show and record what each step did; return the numbers."""
    run.progress.table("Steps", COLUMNS, step_rows(outcome))
    dropped = {f"dropped_{tally.name}": float(tally.num_dropped) for tally in outcome.tallies}
    splits = {f"rows_{split}": float(count) for split, count in find("largeforge.data.shards.open_data")(artifact.folder).splits.items()}
    counts: dict[str, float] = {"rows_in": float(outcome.rows_in), "rows_bad": float(outcome.rows_bad), "rows_kept": sum(splits.values()), **splits, **dropped}
    for tally in outcome.tallies:
        if tally.name in ("exact_duplicates", "near_duplicates", "semantic_duplicates"):
            counts[f"duplicates_{tally.name.partition('_')[0]}"] = float(tally.num_dropped)
    run.measure(**counts)
    return counts


COLUMNS = ("step", "rows seen", "left out", "changed", "why")


def step_rows(outcome: Any) -> list[tuple[Any, ...]]:
    """One line a step; reading is the first."""
    read = ("read", outcome.rows_in, outcome.rows_bad, 0, f"bad_row {outcome.rows_bad:,}" if outcome.rows_bad else "")
    return [
        read,
        *((t.name, t.seen, t.num_dropped, t.changed, ", ".join(f"{why} {count:,}" for why, count in sorted(t.dropped.items()))) for t in outcome.tallies),
    ]


def tables(outcome: Any, run: Run) -> list[Section]:
    """What report.md begins with."""
    return [
        Section("Steps", COLUMNS, step_rows(outcome)),
        Section("Numbers", ("name", "value"), [(name, number(value)) for name, value in sorted(run.metrics.items())]),
    ]


def found(findings: Any) -> list[Section]:
    """What the checks found, with where, and what to do about it."""
    rows = [(one.severity, one.check, one.message, one.count, "; ".join(one.examples), one.mend) for one in findings]
    return [Section("Findings", ("severity", "check", "what", "rows", "for example", "what to do"), rows, "" if rows else "Nothing was found.")]


def farewell(run: Run, artifact: Artifact, findings: Any) -> None:
    """Say what was found, where things are and what to do next."""
    shown = [(one.severity, one.check, one.message, one.count, one.mend) for one in findings]
    if shown:
        run.progress.table("Findings", ("severity", "check", "what", "rows", "what to do"), shown)
    else:
        run.progress.say("checks: nothing found")
    run.progress.say(f"\nartifact: {artifact.folder} ({artifact.kind} {artifact.id[:12]})")
    run.progress.say(f"report:   {run.folder / 'report.md'}")
    run.progress.say(f"look:     python -m largeforge task=inspect data={artifact.folder}")
    run.progress.say(f"train:    python -m largeforge task=sft model=smollm2 data={artifact.folder}")
