"""argv -> one checked config: `compose(argv)`. Thread-safe: no state but caches of files that have not changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from largeforge.config.command_line import read_flags
from largeforge.config.composed import Composed
from largeforge.config.composition import Composition
from largeforge.config.finding import Finding, config_error, mend
from largeforge.config.gather import gather

if TYPE_CHECKING:
    from largeforge.task.config import RootConfig


def compose(argv: Sequence[str], *, files: bool = False) -> Composed:
    """Compose and check a command line. Raises ConfigError with all problems at once; imports nothing heavy.

    Args:
        argv: settings such as "task=sft", and flags such as --config-dir.
        files: also look whether the files that the config names are there; what is about to run does.
    """
    from largeforge.config.masking import hide, plain

    composition, config, values = checked(argv, files=files)
    secrets: set[str] = set()
    plain(config, secrets=secrets)
    choices = {group: choice for group, choice in composition.choices.items() if group != "recipe"}
    return Composed(
        task=choices["task"],
        config=config,
        values=values,
        choices=choices,
        overrides=hide(composition.flags.words, secrets),
        recipe=composition.recipe,
        argv=tuple(argv),
    )


def checked(argv: Sequence[str], *, files: bool = False) -> tuple[Composition, RootConfig, dict[str, Any]]:
    """Compose and check; return what was composed, its typed root and its plain values. Raises ConfigError."""
    from largeforge.config.check import check, secrets_of
    from largeforge.config.masking import hide

    composition = gather(read_flags(argv))
    config, values, findings = check(composition, files=files)
    if findings or config is None:
        mended = hide(_mended(argv, findings, files=files), secrets_of(composition))
        raise config_error(findings, words=argv, mended=mended)
    return composition, config, values


def _mended(argv: Sequence[str], findings: Sequence[Finding], *, files: bool) -> list[str]:
    """Return the command to try: mended, checked itself, and mended again where the mend was not enough."""
    from largeforge.config.check import check

    words = mend(argv, findings)
    for _ in range(3):
        _, _, left = check(gather(read_flags(words)), files=files)
        better = mend(words, left)
        if better == words:
            break
        words = better
    return words
