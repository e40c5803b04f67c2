"""Send an artifact to a bucket, a folder or the Hugging Face Hub, and say how it is used from there."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from largeforge.artifact import Artifact, read_artifact, write_atomically
from largeforge.build import build, find
from largeforge.contract import Bar, Progress, Storage
from largeforge.errors import InputError
from largeforge.run import Run
from largeforge.task.data_config import PushConfig
from largeforge.task.inspect import local

HUB = "hub://"


class Push:
    """Leaves pushed.json: what was sent, and where it stands."""

    def __init__(self, config: PushConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Verify the artifact in full, send it, its manifest last."""
        config = self.config
        progress = Stopping(run)

        # ---- what ----
        storage: Storage = build(config.storage, progress=progress)
        path = config.data.model_dump().get("path")
        if not isinstance(path, str):
            raise InputError(f"data = {config.data.target.rpartition('.')[2].lower()} is no artifact.", next_step="data=outputs/<task>/<date>/<time>/artifact")
        folder = local(path, storage)
        artifact = read_artifact(folder)

        # ---- where ----
        start = time.monotonic()
        if config.to.startswith(HUB):
            hub: Any = find("largeforge.storage.hub.Hub")(private=config.private, progress=progress)
            place: str = hub.put(folder, config.to)
        else:
            place = storage.put(folder, config.to)

        # ---- told ----
        facts = artifact.files | artifact.about
        size_bytes = sum(int(fact["size_bytes"]) for fact in facts.values())
        run.measure(files=float(len(facts)), size_bytes=float(size_bytes), push_seconds=round(time.monotonic() - start, 3))
        run.result_artifact = artifact
        write_atomically(run.folder / "pushed.json", json.dumps({"id": artifact.id, "kind": artifact.kind, "at": place}, indent=2) + "\n")
        run.progress.say(f"\n{artifact.kind} {artifact.id[:12]} stands at {place} ({len(facts)} files, {size_bytes / 1e6:,.1f} MB)")
        run.progress.say(f"use: {usage(artifact, config.to, place)}")

    def plan(self, *, progress: Progress) -> Any:
        """There is nothing to plan."""
        raise InputError("task=push has no cost that could be planned.", next_step="leave plan=... out")


def usage(artifact: Artifact, to: str, place: str) -> str:
    """The command that a user of the artifact types."""
    name = to.removeprefix(HUB).strip("/") if to.startswith(HUB) else place
    if artifact.kind == "data":
        where = f"data=artifact data.path={shlex.quote(name)}" if "://" in name else f"data={shlex.quote(name)}"
        return f"python -m largeforge task=sft {where}"
    if artifact.kind == "adapter" and to.startswith(HUB):
        return f'peft.AutoPeftModelForCausalLM.from_pretrained("{name}")'
    if to.startswith(HUB) or "://" not in place:
        return f"python -m largeforge task=chat model={shlex.quote(name)}"
    return f"python -m largeforge task=push data={shlex.quote(name)} to=FOLDER, then task=chat model=FOLDER"


class Stopping:
    """Progress that ends the work where a stop was asked for: between two files, or two looks at their bytes."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def bar(self, title: str, *, total: int | None, unit: str = "") -> Bar:
        return StoppingBar(self.run, self.run.progress.bar(title, total=total, unit=unit))

    def say(self, text: str) -> None:
        self.run.progress.say(text)


class StoppingBar:
    """A bar that looks for a stop whenever it is advanced."""

    def __init__(self, run: Run, bar: Bar) -> None:
        self.run = run
        self.shown = bar

    def advance(self, count: int = 1, **fields: Any) -> None:
        self.shown.advance(count, **fields)
        if self.run.stop_asked:
            raise self.run.interrupt("Stopped while sending.", next_step=self.run.command())

    def close(self) -> None:
        self.shown.close()
