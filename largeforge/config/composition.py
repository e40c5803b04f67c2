"""What composing leaves before the check: plain values, who set each of them, and what was found on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from largeforge.config.command_line import SHORT, Flags, Setting
from largeforge.config.finding import COMMAND_LINE, Finding
from largeforge.config.places import Library

if TYPE_CHECKING:
    from largeforge.config.fields import Key


@dataclass(frozen=True)
class Setter:
    """One place that set a key.

    Args:
        value: what it said, before interpolation.
        origin: file:line, "command line" or an environment variable.
        text: as written, where it was a scalar.
        word: the setting on the command line, else "".
        comment: what stands beside it in its file.
    """

    value: Any
    origin: str
    text: str | None = None
    word: str = ""
    comment: str = ""


@dataclass
class Composition:
    """A config as composed, before the check.

    Args:
        values: plain values, interpolations as written.
        setters: dotted path -> who set it, the last one won.
        unsound: paths whose values are not worth checking (an unknown choice, broken YAML, a failed interpolation).
        keys: every key that the typed config has; the check fills it in.
    """

    flags: Flags
    library: Library
    values: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    setters: dict[str, list[Setter]] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unsound: set[str] = field(default_factory=set)
    keys: dict[str, Key] = field(default_factory=dict)
    recipe: str | None = None

    def origin(self, path: str) -> str:
        """Return who set a key last; for one that nobody set, who set what it stands in."""
        setter = self.setter(path)
        return setter.origin if setter else COMMAND_LINE

    def users_keys(self) -> list[tuple[str, Any, str, str]]:
        """What somebody set besides the shipped YAML: on the command line, in the environment, in a recipe.

        Returns:
            (key, value, origin, word of the command line or "") of every such key, and of every choice of a group made on the command line.
        """
        if self.flags.trial:
            return []
        shipped_of: dict[str, bool] = {}

        def is_users(setter: Setter) -> bool:
            if setter.word or setter.origin.startswith("LARGEFORGE_"):
                return True
            name = setter.origin.rpartition(":")[0]
            if name not in shipped_of:
                shipped_of[name] = name.startswith("conf/") or "/conf/" in name
            return not shipped_of[name]

        keys = [(path, one[-1].value, one[-1].origin, one[-1].word) for path, one in self.setters.items() if one and is_users(one[-1])]
        groups = [one for one in self.settings if one.key in SHORT or self.library.is_group(one.key)]
        return keys + [(one.key, one.text, one.origin, one.word) for one in groups]

    def setter(self, path: str) -> Setter | None:
        while path:
            if self.setters.get(path):
                return self.setters[path][-1]
            below = [key for key in self.setters if key.startswith(f"{path}.")]
            if below:
                first = self.setters[below[0]][-1]
                return Setter(None, first.origin, None, first.word)
            path = path.rpartition(".")[0]
        return None


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every scalar with its path."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*path, str(key)))
    elif isinstance(value, list):
        for position, child in enumerate(value):
            yield from leaves(child, (*path, str(position)))
    else:
        yield path, value
