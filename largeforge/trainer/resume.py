"""Which checkpoint a run goes on from, and whether it may: sound, whole, of the same recipe. Writes nothing.

Looks into the run's folder, into the one that `resume` names, and into `trainer.checkpoint.folder` where copies lie elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from largeforge.artifact import MANIFEST, Artifact, is_artifact, read_artifact
from largeforge.contract import Storage
from largeforge.errors import ArtifactError, InputError, StorageError
from largeforge.run import Run
from largeforge.trainer.config import TrainerConfig
from largeforge.trainer.copies import steps_in
from largeforge.trainer.recipe import Change, changes, judge

STATE = "state.ckpt"
FACTS = "facts.json"


@dataclass(frozen=True)
class Facts:
    """What can be known of a checkpoint without loading it.

    Args:
        step: optimizer steps behind it.
        num_steps: of the run.
        warmup_steps: of the run.
        world_size: ranks, each of which has random states in it.
        device: "cpu" or "cuda".
        precision: as computed.
        sources: "model" and "data" -> sha256 of their content.
    """

    step: int
    num_steps: int
    warmup_steps: int
    world_size: int
    device: str
    precision: str
    sources: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """A sound one.

    Args:
        path: its folder on this machine.
        facts: what it says of itself.
        recipe: the config that wrote it.
    """

    path: Path
    facts: Facts
    recipe: dict[str, Any]


def find_checkpoint(run: Run, *, storage: Storage | None = None) -> Checkpoint | None:
    """The checkpoint this run resumes from: what `resume` names, else the newest sound one in the run's folder or among its copies.

    Raises:
        InputError: `resume` names something that is no checkpoint, or one of weights alone; the run is finished.
        ArtifactError: the one that is named, or every one there is, is damaged.
        StorageError: a folder elsewhere cannot be read.
    """
    resume = run.config.resume
    if resume == "never":
        return None
    if resume != "auto":
        return _named(run, resume, storage)
    if is_artifact(run.folder / "artifact"):
        checkpoints = run.folder / "checkpoints"
        raise InputError(
            f"the run in {run.folder} is finished: its artifact stands.",
            next_step=f"another folder=..., with resume={checkpoints} to train its model further from the last checkpoint",
        )
    return _newest(run, _places(run.folder / "checkpoints", run.config.trainer.checkpoint.folder, storage))


def check_recipe(run: Run, checkpoint: Checkpoint, now: Facts, *, config: TrainerConfig) -> list[Change]:
    """Refuse to go on with another recipe unless each change is allowed; return the changes that are taken, and say them.

    Raises:
        InputError: told as a diff.
    """
    facts = checkpoint.facts
    found = changes(_compared(checkpoint.recipe, facts), _compared(run.composed.values, now))
    command = run.command(**{"folder": str(run.folder), "resume": run.config.resume, "trainer.checkpoint.allow_changes": ""})
    command = command.replace(" trainer.checkpoint.allow_changes=", "").replace(" 'trainer.checkpoint.allow_changes='", "")
    known = {
        **run.composed.values,
        "data": {**run.composed.values.get("data", {}), "sha256": ""},
        "model": {**run.composed.values.get("model", {}), "sha256": ""},
    }
    allowed = config.checkpoint.allow_changes
    taken = judge(found, allowed=allowed, harmless=_harmless(facts, now, config), known=known, command=command, place=str(checkpoint.path))
    if now.num_steps < facts.step:
        raise InputError(
            f"{checkpoint.path} has {facts.step} steps behind it, and this run has {now.num_steps} in all.", next_step=f"trainer.max_steps={facts.num_steps}"
        )
    for change in taken:
        run.progress.say(f"Going on with another {change.key}: was {change.was}, is {change.now}.")
    if facts.world_size != now.world_size:
        run.progress.say(
            f"The checkpoint is of {facts.world_size} ranks, this run has {now.world_size}: weights and optimizer are taken whole and shared out anew; "
            "batches stay the same, dropout draws anew, so losses are near those of an unbroken run, not equal to the bit."
        )
    if facts.device != now.device:
        run.progress.say(f"The checkpoint is of {facts.device}, this run is on {now.device}: dropout draws anew, and sums round in another way.")
    return taken


# ---- looking ----


def _named(run: Run, resume: str, storage: Storage | None) -> Checkpoint:
    wanted = "resume=auto, a folder such as outputs/sft/<date>/<time>/checkpoints/step=000100, or the same in a bucket"
    if storage is not None and storage.is_remote(resume):
        names = storage.names(resume)
        if MANIFEST in names:
            return _opened(_brought(storage, resume))
        places = [(name, _fetcher(storage, f"{resume.rstrip('/')}/{name}")) for name in sorted(steps_in(storage, resume), reverse=True)]
        if not places:
            raise InputError(f"resume={resume}: no checkpoint stands there.", next_step=wanted)
        found = _newest(run, iter(places))
        assert found is not None
        return found
    path = Path(resume).expanduser()
    if is_artifact(path):
        return _opened(path)
    for folder in (path, path / "checkpoints"):
        if list(folder.glob("step=*")):
            found = _newest(run, _places(folder, None, None))
            assert found is not None
            return found
    raise InputError(f"resume={resume} is no checkpoint.", next_step=wanted)


def _places(folder: Path, copies: str | None, storage: Storage | None) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Every checkpoint by name, newest first; of each the one on this machine before its copy."""
    local = {path.name for path in folder.glob("step=*")}
    remote = steps_in(storage, copies) if storage is not None and copies else set()
    for name in sorted(local | remote, reverse=True):
        if name in local:
            yield name, lambda name=name: folder / name  # type: ignore[misc]
        if name in remote:
            assert storage is not None and copies
            yield name, _fetcher(storage, f"{copies.rstrip('/')}/{name}")


def _newest(run: Run, places: Iterator[tuple[str, Callable[[], Path]]]) -> Checkpoint | None:
    """The first sound one; each that is not is named."""
    looked = 0
    for name, bring in places:
        looked += 1
        try:
            return _opened(bring())
        except (ArtifactError, StorageError) as error:
            run.progress.say(f"{error.message} Taking the checkpoint before it, if there is one ({name} is left out).")
    if looked:
        raise ArtifactError(f"no checkpoint of {run.folder} is sound.", next_step="start again with another folder=...")
    return None


def _opened(path: Path) -> Checkpoint:
    """Verify a checkpoint and read what it says of itself."""
    artifact = read_artifact(path)
    if artifact.kind in ("adapter", "model"):
        raise InputError(
            f"{path} holds weights alone (trainer.checkpoint.content=weights): no optimizer, no random states, so no run can go on from it exactly.",
            next_step=f"a new run from these weights: model={path}, resume=never and another folder=...",
        )
    if artifact.kind != "checkpoint":
        raise InputError(f"{path} is an artifact of kind {artifact.kind}, no checkpoint.", next_step="a folder such as <run>/checkpoints/step=000100")
    return Checkpoint(path, _facts(artifact), artifact.config)


def _facts(artifact: Artifact) -> Facts:
    try:
        return Facts(**json.loads((artifact.folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as fault:
        raise ArtifactError(f"{artifact.folder / FACTS} cannot be read ({fault}): the checkpoint is of another version of LargeForge.") from fault


def _fetcher(storage: Storage, url: str) -> Callable[[], Path]:
    return lambda: _brought(storage, url)


def _brought(storage: Storage, url: str) -> Path:
    """Fetch one checkpoint; the folder that holds it on this machine."""
    return next(path.parent for path in storage.fetch(url) if path.name == MANIFEST)


# ---- comparing ----


def _compared(recipe: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """The config with what it led to: hashes of what its paths hold, the precision that `auto` stood for."""
    values = {name: dict(part) if isinstance(part, dict) else part for name, part in recipe.items()}
    for name, digest in facts.sources.items():
        values[name] = {**(values.get(name) or {}), "sha256": digest}
    values["trainer"] = {**values["trainer"], "precision": facts.precision}
    return values


def _harmless(was: Facts, now: Facts, config: TrainerConfig) -> list[str]:
    """Keys whose change leaves every step taken so far, and its learning rate, as they were."""
    warm = was.step >= max(was.warmup_steps, now.warmup_steps) or was.warmup_steps == now.warmup_steps
    return ["trainer.max_steps", "trainer.epochs"] if config.schedule == "constant" and warm else []
