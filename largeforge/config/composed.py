"""What composing and checking leave: plain values, their typed form, and how they were chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largeforge.task.config import RootConfig


@dataclass(frozen=True)
class Composed:
    """One checked config.

    Args:
        task: the choice of the group task, "sft".
        config: typed, by the task's own config class.
        values: the same as plain values, resolved, secrets masked; what config.yaml and the lock hold.
        choices: group -> choice, for every group in use.
        overrides: the user's words on the command line.
        recipe: the recipe's name, or None.
        argv: the command line as it was typed, flags and secrets included: for processes that are to run the same; never written down.
    """

    task: str
    config: RootConfig
    values: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    recipe: str | None = None
    argv: tuple[str, ...] = field(default=(), repr=False)
