"""A lock, read back: its plain values become a checked, typed config again, without any file of choices.

A lock from elsewhere is untrusted like a recipe (law 4): targets go through the same check, and what it says of `trust` and `folder` is not taken.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from largeforge.config.command_line import read_flags
from largeforge.config.composed import Composed
from largeforge.config.composition import Composition, Setter, leaves
from largeforge.config.finding import config_error
from largeforge.config.masking import MASK
from largeforge.config.places import Library
from largeforge.errors import InputError

LOCK = "recipe.lock.yaml"
LOCK_VERSIONS = (1,)


@dataclass
class _Locked(Composition):
    """A composition that stands in a lock: every key was set there, none by a user of this command."""

    lock: str = ""

    def origin(self, path: str) -> str:
        return self.lock

    def users_keys(self) -> list[tuple[str, Any, str, str]]:
        return []

    def setter(self, path: str) -> Setter | None:
        return Setter(None, self.lock)


def read_lock(path: str) -> tuple[Path, dict[str, Any]]:
    """Return the lock's file and what it holds. Raises InputError.

    Args:
        path: the file, or the folder of the run that left it.
    """
    place = Path(path).expanduser()
    place = place / LOCK if place.is_dir() else place
    if not place.is_file():
        raise InputError(f"lock={path}: there is no {place}.", next_step=f"lock=outputs/<task>/<date>/<time>/{LOCK}")
    try:
        lock = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InputError(f"{place} is no YAML: {str(fault).splitlines()[0]}.", next_step="the file as the run left it") from fault
    sound = isinstance(lock, dict) and isinstance(lock.get("config"), dict) and isinstance(lock.get("choices"), dict) and isinstance(lock.get("task"), str)
    shapes = {"sources": list, "packages": dict, "facts": dict, "processor": dict}
    if not sound or any(name in lock and not isinstance(lock[name], kind) for name, kind in shapes.items()):
        raise InputError(f"{place} is no lock of a run.", next_step=f"the {LOCK} that a run left in its folder")
    if not all(isinstance(one, dict) for one in lock.get("sources", [])):
        raise InputError(f"{place} is no lock of a run: its sources are not kind, name and hash.", next_step=f"the {LOCK} that a run left in its folder")
    if lock.get("lock_version") not in LOCK_VERSIONS:
        raise InputError(f"{place} is a lock of version {lock.get('lock_version')}; this LargeForge reads {LOCK_VERSIONS[0]}.", next_step="a LargeForge as new")
    return place, lock


def composed_of(place: Path, lock: dict[str, Any], *, folder: Path, trust: Sequence[str]) -> Composed:
    """Return the config of a lock, checked like any other.

    Args:
        folder: where it shall run.
        trust: packages that the user of this command trusts; the lock's own word is not taken.

    Raises:
        ConfigError: it no longer validates.
        InputError: a secret that it needs is masked and stands in no environment variable.
    """
    from largeforge.config.check import check

    values = {**lock["config"], "folder": str(folder), "resume": "never", "plan": False, "trust": list(trust)}
    choices = {str(group): str(choice) for group, choice in lock["choices"].items()} | {"task": lock["task"]}
    if "/" in lock["task"] or lock["task"] not in Library().choices("task"):
        raise InputError(f"{place} is of task={lock['task']}, which there is not here.", next_step="the LargeForge that wrote it")
    _fill_secrets(values)
    it = _Locked(flags=read_flags([]), library=Library(), values=values, resolved=values, choices=choices, recipe=lock.get("recipe"), lock=str(place))
    config, plain, findings = check(it, files=True)
    if findings or config is None:
        raise config_error(findings, words=[], mended=[])
    return Composed(task=lock["task"], config=config, values=plain, choices=choices, recipe=it.recipe)


def _fill_secrets(values: dict[str, Any]) -> None:
    """Put secrets back from the environment: a lock holds none."""
    for path, value in list(leaves(values)):
        if not isinstance(value, str) or MASK not in value:
            continue
        variable = f"LARGEFORGE_{'__'.join(path).upper()}"
        if value != MASK or not os.environ.get(variable):
            raise InputError(f"{'.'.join(path)} is a secret, and a lock holds none.", next_step=f"set {variable} in the environment")
        node: Any = values
        for part in path[:-1]:
            node = node[part] if isinstance(node, dict) else node[int(part)]
        node[path[-1]] = os.environ[variable]
