"""A problem of a config as the check finds it, with what would mend it; and how findings become one ConfigError.

Knows nothing about where findings come from.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge.errors import ConfigError, Problem

COMMAND_LINE = "command line"
_WIDEST = 60


@dataclass(frozen=True)
class Finding:
    """One problem.

    Args:
        key: the full path of the key, a group, or a file.
        value: what stands there.
        allowed: what would be right, in words.
        origin: file:line, "command line" or the name of an environment variable.
        mend: setting that mends it ("adapter.r=8"), "" where none is known.
        drop: the command line's setting of this key cannot stay, as the user typed it; "" where it can.
    """

    key: str
    value: Any
    allowed: str
    origin: str
    mend: str = ""
    drop: str = ""


def config_error(findings: Sequence[Finding], *, words: Sequence[str]) -> ConfigError:
    """Gather findings, the same one once, and the command that mends what can be mended.

    Args:
        findings: in the order they shall be told.
        words: the command line as typed, flags included.
    """
    unique = list(dict.fromkeys((f.key, show(f.value), f.allowed, f.origin) for f in findings))
    problems = [Problem(key, value, allowed, origin) for key, value, allowed, origin in unique]
    dropped = {finding.drop for finding in findings if finding.drop}
    mends = list(dict.fromkeys(finding.mend for finding in findings if finding.mend))
    if not mends and not dropped:
        return ConfigError(problems)
    kept: list[str] = []
    for word in words:
        if word in dropped:
            mend = next((m for m in mends if any(f.drop == word and f.mend == m for f in findings)), "")
            if mend and mend not in kept:
                kept.append(mend)
        else:
            kept.append(word)
    set_already = {word.partition("=")[0] for word in kept if "=" in word}
    for mend in mends:
        if mend not in kept:
            kept = [word for word in kept if word.partition("=")[0] != mend.partition("=")[0]] if mend.partition("=")[0] in set_already else kept
            kept.append(mend)
    kept.sort(key=lambda word: not word.startswith("task="))
    return ConfigError(problems, next_step=" ".join(["python -m largeforge", *(quote(word) for word in kept)]))


def show(value: Any) -> str:
    """Write a value as YAML would, on one line, cut where it is long."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list):
        text = f"[{', '.join(show(item) for item in value)}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    else:
        text = str(value).replace("\n", "\\n")
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def quote(word: str) -> str:
    """Quote a word for a shell where it needs it; `<...>` placeholders are left to be read."""
    key, equals, value = word.partition("=")
    if equals and re.fullmatch(r"<[\w ./-]+>", value):
        return word
    if equals and re.fullmatch(r"[\w.@/+~-]+", key):
        return f"{key}={shlex.quote(value)}" if value else word
    return shlex.quote(word)
