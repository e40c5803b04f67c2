"""What to change where a run does not fit: each change is planned like the run itself, and its predicted peak told. Trains nothing.

Knows which keys cost memory; how a plan comes to be is the story's own.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge.build import find
from largeforge.config.compose import compose
from largeforge.console import Console
from largeforge.errors import LargeForgeError
from largeforge.plan.devices import Device

SHORTEST = 128  # tokens of a row, below which cutting them in half is no advice
MACHINE = 8  # devices of a machine, where several are named


@dataclass(frozen=True)
class Suggestion:
    """A change and what it is predicted to need; no keys is the run as it was."""

    changes: dict[str, str]
    peak_bytes: int
    fits: bool
    device: Device

    @property
    def told(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items()) or "as it is"


def suggestions(overrides: Sequence[str], config: Any, *, budget_s: float, device: str = "true", as_it_is: bool = True) -> list[Suggestion]:
    """Plan the run with less, one change after another; those that this recipe cannot take are left out.

    Args:
        overrides: words of the run's command line.
        config: what they compose to.
        budget_s: no plan begins after so many seconds.
        device: as `plan=` names it.
        as_it_is: whether the run is planned without a change, too.
    """
    until = time.monotonic() + budget_s
    found: list[Suggestion] = []
    for changes in candidates(config, named=device != "true")[0 if as_it_is else 1 :]:
        if time.monotonic() > until:
            break
        try:
            plan = planned(overrides, changes, device=device)
        except LargeForgeError:
            continue  # a choice that this recipe cannot take
        found.append(Suggestion(changes, plan.peak_bytes, plan.fits, plan.device))
    return found


def candidates(config: Any, *, named: bool = False) -> list[dict[str, str]]:
    """Changes to try: those that leave the result as it is first; the first of all is none.

    Args:
        config: of the run.
        named: whether the device is one that was named: then there may be more of them.
    """
    trainer = config.trainer
    micro, checkpointing = trainer.micro_batch_size, trainer.gradient_checkpointing
    full = config.adapter.target.endswith(".Full")
    plain = config.quant.target.endswith(".Unquantized")
    tried: list[dict[str, str]] = [{}]
    tried += [{"trainer.micro_batch_size": str(size)} for size in sorted({max(1, micro // 2), 1} - {micro}, reverse=True)]
    tried += [] if checkpointing else [{"trainer.gradient_checkpointing": "true"}]
    least = ({} if micro == 1 else {"trainer.micro_batch_size": "1"}) | ({} if checkpointing else {"trainer.gradient_checkpointing": "true"})
    tried += [least] if len(least) > 1 else []
    asks = getattr(config, "reference", None) is not None or full
    if getattr(config.method, "reference_logprobs", None) == "online" and asks:
        tried.append({"method.reference_logprobs": "cached"})
    if getattr(config.method, "teacher_logits", None) == "online":
        tried.append({"method.teacher_logits": "cached"})
    if full:
        tried += [{"adapter": "lora"}, {"adapter": "lora", "quant": "nf4", **least}]
    elif plain:
        tried += [{"quant": "nf4"}] + ([{"quant": "nf4", **least}] if least else [])
    if named and plain and trainer.nodes == 1 and trainer.devices < MACHINE:
        tried.append(spread(trainer, least))
    if config.data.max_length >= SHORTEST:
        tried.append({"data.max_length": str(config.data.max_length // 2)})
    return tried


def spread(trainer: Any, least: dict[str, str]) -> dict[str, str]:
    """The same run on all devices of a machine, its model spread over them: with one micro-batch each, so that gradients are never whole."""
    words = {"trainer.devices": str(MACHINE), "trainer.strategy": "fsdp", "benchmark": "none", **least}
    if trainer.optimizer != "adamw":
        words["trainer.optimizer"] = "adamw"
    if trainer.batch_size < MACHINE:
        words["trainer.batch_size"] = str(MACHINE)
    return words


def planned(overrides: Sequence[str], changes: dict[str, str], *, device: str) -> Any:
    """The plan of a run with other values."""
    own = {*changes, "plan", "folder", "resume", "verify", "trainer.checkpoint.allow_changes"}
    words = [word for word in overrides if word.partition("=")[0] not in own]
    config: Any = compose([*words, *(f"{key}={value}" for key, value in changes.items()), f"plan={device}"]).config
    return find(config.task.target)(config).plan(progress=Console(stream=io.StringIO(), live=False))
