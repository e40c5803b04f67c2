"""Whether a run that goes on is the run that was stopped: what differs between two recipes, and what of it decides the result.

Sees plain values only; knows nothing about how a checkpoint is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge.errors import InputError

# what is shown, where it goes, who is asked afterwards; and places whose content is compared by its hash instead
IDLE = (
    *("name", "folder", "resume", "plan", "verify", "log_level", "log_format", "trust"),
    *("tracker", "storage", "engine", "benchmark", "executor", "lock", "task._target_"),
    *("trainer.checkpoint", "trainer.log_every_steps", "trainer._target_"),
    # how many share the work is told apart; the state is whole, whoever wrote it
    *("trainer.devices", "trainer.nodes", "trainer.strategy", "trainer.address", "trainer.max_restarts"),
    *("data.num_workers", "data.path", "data.cache", "model.path", "model.revision", "ray"),
)
# what gives the state its shape: a checkpoint of another one cannot be put into the model
SHAPES = (
    *("model.shape", "model.sha256", "model._target_", "adapter._target_", "adapter.r", "adapter.target_modules", "adapter.dora"),
    *("quant", "trainer.optimizer"),
)
SHOWN = 20


@dataclass(frozen=True)
class Change:
    """One key that is another than it was; values as JSON writes them, "-" where there is none."""

    key: str
    was: str
    now: str


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What decides the result and differs, by key.

    Args:
        was: the config of the checkpoint, and hashes of its sources as `data.sha256`, `model.sha256`.
        now: the same of the run that goes on.
    """
    before, after = dict(flat(was)), dict(flat(json.loads(json.dumps(now, default=str))))
    keys = sorted(key for key in before.keys() | after.keys() if not covers(IDLE, key) and before.get(key, "-") != after.get(key, "-"))
    return [Change(key, before.get(key, "-"), after.get(key, "-")) for key in keys]


def judge(found: Sequence[Change], *, allowed: Sequence[str], harmless: Sequence[str], known: Mapping[str, Any], command: str, place: str) -> list[Change]:
    """Refuse what is not allowed; return what may be taken.

    Args:
        found: what differs.
        allowed: keys of `trainer.checkpoint.allow_changes`; one stands for all keys below it.
        harmless: keys whose change leaves the steps that were taken as they would have been.
        known: the config, to see a misspelt key in `allowed`.
        command: what goes on, up to `trainer.checkpoint.allow_changes=`.
        place: the checkpoint.

    Raises:
        InputError: told as a diff, with the command that allows it.
    """
    names = {key for key, _ in flat(known)} | {change.key for change in found}
    strange = [key for key in allowed if not any(covers([key], name) for name in names)]
    if strange:
        raise InputError(f"trainer.checkpoint.allow_changes names {', '.join(strange)}, which no recipe has.", next_step="a key such as trainer.max_steps")
    fixed = [change for change in found if covers(SHAPES, change.key)]
    if fixed:
        raise InputError(
            f"{place} is of another model or optimizer, and its state cannot be put into this one:\n{diff(fixed)}",
            next_step="the recipe as it was, or a new run: leave resume=... out and give another folder=...",
        )
    refused = [change for change in found if not covers([*allowed, *harmless], change.key)]
    if refused:
        keys = ",".join(dict.fromkeys([*allowed, *(change.key for change in refused)]))
        raise InputError(
            f"The recipe is another than that of {place}:\n{diff(refused)}\nGoing on would leave a model that neither recipe makes{hint(refused)}.",
            next_step=f"the recipe as it was; or, to go on all the same: {command} 'trainer.checkpoint.allow_changes=[{keys}]'",
        )
    return list(found)


def diff(found: Sequence[Change]) -> str:
    """Was and is, one key a line."""
    shown = found[:SHOWN]
    width = max(len(change.key) for change in shown)
    was = max(len(change.was) for change in shown)
    lines = [f"  {change.key:<{width}}   was {change.was:<{was}}   is {change.now}" for change in shown]
    return "\n".join([*lines, *([f"  ... and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])])


def hint(found: Sequence[Change]) -> str:
    """What is particular about lengths: they decide the learning rate of every step."""
    length = [change.key for change in found if change.key in ("trainer.max_steps", "trainer.epochs")]
    return f" ({length[0]} decides the learning rate of every step, unless trainer.schedule=constant and the warm-up is over)" if length else ""


def covers(keys: Sequence[str], key: str) -> bool:
    """Whether one of the keys is this one, or stands above it."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf by its dotted key, as JSON."""
    for name, value in values.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from flat(value, key)
        else:
            yield key, json.dumps(value, ensure_ascii=False, default=str)
