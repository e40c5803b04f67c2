"""A composed config as text: YAML for `--cfg`, and where every value was set for `--origins`. Secrets are masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largeforge.config.command_line import read_flags, read_setting
from largeforge.config.compose import checked
from largeforge.config.composition import Composition, leaves
from largeforge.config.finding import show
from largeforge.config.hydra_seam import is_hydras


def config_text(argv: Sequence[str], which: str) -> str:
    """Return the config that a command line composes, as YAML.

    Args:
        argv: the command line.
        which: "job" (ours), "hydra" (sweeper, launcher), or "all".

    Raises:
        ConfigError: it does not pass the check.
    """
    shown: dict[str, Any] = {}
    if which != "job":
        from largeforge.config.sweep import composed_hydra

        shown["hydra"] = composed_hydra(read_flags(argv).words)
    if which != "hydra":
        shown = {**_checked(argv)[1], **shown}
    return as_yaml(shown)


def origins_text(argv: Sequence[str]) -> str:
    """Return one line per value: key, value, and who set it."""
    composition, values = _checked(argv)
    rows = [(".".join(path), show(value), composition.origin(".".join(path))) for path, value in leaves(values)]
    left = max(len(f"{key} = {value}") for key, value, _ in rows)
    return "".join(f"{f'{key} = {value}':<{left}}   {origin}\n" for key, value, origin in rows)


def as_yaml(values: dict[str, Any]) -> str:
    """Write plain values as YAML, keys in their own order."""
    import yaml

    return str(yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True, width=120))


def _checked(argv: Sequence[str]) -> tuple[Composition, dict[str, Any]]:
    """Check what is shown: without Hydra's own settings under --cfg all, and without what a sweep would vary."""
    flags = read_flags(argv)
    left_out = {word for word in flags.words if is_hydras(word)} if flags.cfg == "all" or flags.multirun else set()
    if flags.multirun:
        left_out |= {word for word in flags.words if read_setting(word, multirun=True).sweep is not None}
    composition, _, values = checked([word for word in argv if word not in left_out])
    return composition, values
