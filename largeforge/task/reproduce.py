"""Run a run again from its lock; or say what drifted, before a weight is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largeforge.artifact import write_atomically
from largeforge.build import build, find
from largeforge.config.composed import Composed
from largeforge.config.locked import composed_of, read_lock
from largeforge.contract import Progress, Reference, Storage, Trainer
from largeforge.errors import CheckFailed, InputError
from largeforge.model.config import ModelConfig
from largeforge.run import RESULT, Run, execute
from largeforge.task.config import ReproduceConfig, TrainingConfig

DRIFT = "largeforge.proof.drift"
DIFF = "largeforge.proof.run_diff"


class Reproduce:
    """What drifted goes to drift.jsonl; the run that is run again stands in `run/` of the folder."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Check, run, compare. Raises CheckFailed where something drifted, or the result is another."""
        config = self.config
        place, lock = read_lock(config.lock)
        again = composed_of(place, lock, folder=run.folder / "run", trust=config.trust)

        # ---- what drifted ----
        drifted = list(self.drifts(lock, again, run))
        run.measure(drifted=float(len(drifted)), drifted_decisive=float(sum(one.matters for one in drifted)))
        write_atomically(run.folder / "drift.jsonl", "".join(json.dumps(vars(one), ensure_ascii=False) + "\n" for one in drifted))
        if drifted:
            run.progress.table("Drifted", find(f"{DRIFT}.COLUMNS"), [one.cells() for one in drifted])
        refused = [one for one in drifted if one.matters and not {one.kind, "all"} & {*config.allow}]
        if refused:
            kinds = ",".join(dict.fromkeys([*config.allow, *(one.kind for one in refused)]))
            what = ", ".join(one.what for one in refused)
            raise CheckFailed(
                f"{what}: not as in {place}, and the result can be another.",
                next_step=f"bring it back; or, to run all the same: {run.command(allow=f'[{kinds}]')}",
            )
        if not drifted:
            run.progress.say("Nothing drifted.")
        if not config.run:
            return

        # ---- run it again ----
        trainer = getattr(again.config, "trainer", None)
        if getattr(trainer, "launcher", ""):
            raise InputError(f"{place} is of a run over several processes, which task=reproduce cannot start yet.", next_step="run=false only checks")
        code = execute(again)
        if code:
            raise CheckFailed(f"The run ended with exit code {code}.", next_step=f"see {run.folder / 'run' / 'log.jsonl'}")
        self.compare(run, place.parent)

    def drifts(self, lock: dict[str, Any], again: Composed, run: Run) -> Iterator[Any]:
        """Yield what is not as it was; model and data of tasks that do not train are compared when they have run."""
        config = again.config
        if not isinstance(config, TrainingConfig):
            yield from find(f"{DRIFT}.of_surroundings")(lock)
            return
        trainer: Trainer = build(config.trainer)  # sets the number of threads, where the config does
        yield from find(f"{DRIFT}.of_surroundings")(lock)
        yield from find(f"{DRIFT}.of_device")(lock, device=trainer.device, precision=trainer.precision)
        source, tokenizer, template = build(config.model, progress=run.progress).identity_of_files()
        yield from find(f"{DRIFT}.of_template")(lock, hashlib.sha256(template.encode()).hexdigest())
        storage: Storage = build(config.storage, progress=run.progress)
        rows = {"template": template, "train_on": config.method.train_on, "learns": config.method.learns, "progress": run.progress, "storage": storage}
        sources: list[Reference] = [source, build(config.data, tokenizer=tokenizer, **rows).source]
        for name in ("reference", "teacher", "assistant"):
            of = getattr(config, name, None)
            if isinstance(of, ModelConfig):
                sources.append(build(of, progress=run.progress).identity_of_files()[0])
        yield from find(f"{DRIFT}.of_sources")(lock, sources)

    def compare(self, run: Run, original: Path) -> None:
        """Say whether the result is the original's, where that stands beside the lock. Raises CheckFailed."""
        if not (original / RESULT).is_file():
            run.progress.say(f"There is no {RESULT} beside the lock: nothing to compare with.")
            return
        read, part = find(f"{DIFF}.read_run"), find(f"{DIFF}.first_parting")
        was, now = read(original), read(run.folder / "run")
        parting = part(was, now)
        same = parting is None and was.artifact == now.artifact
        run.measure(same_bits=float(same))
        if same:
            run.progress.say(f"Same bits: artifact {now.artifact[:12]}, and every step measured the same.")
            return
        where = f"{parting[1]} first differs at step {parting[0]}: {parting[2]} was, {parting[3]} is" if parting else "every step measured the same"
        raise CheckFailed(
            f"The result is another: artifact {was.artifact[:12] or '-'} was, {now.artifact[:12] or '-'} is; {where}.",
            next_step=f"python -m largeforge task=diff a={original} b={run.folder / 'run'}",
        )

    def plan(self, *, progress: Progress) -> Any:
        """A plan is of the run itself."""
        raise InputError("task=reproduce plans nothing: what it runs costs what it cost before.", next_step="run=false only checks; leave plan=... out")
