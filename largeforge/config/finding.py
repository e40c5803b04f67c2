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


def config_error(findings: Sequence[Finding], *, words: Sequence[str], mended: Sequence[str]) -> ConfigError:
    """Gather findings, the same one once, and the command to try.

    Args:
        findings: in the order they shall be told.
        words: the command line as typed, flags included.
        mended: the command line as it might be; the same where nothing can be mended by a command.
    """
    unique = list(dict.fromkeys((f.key, show(f.value), f.allowed, f.origin) for f in findings))
    problems = [Problem(key, value, allowed, origin) for key, value, allowed, origin in unique]
    if list(mended) == list(words):
        return ConfigError(problems)
    return ConfigError(problems, next_step=" ".join(["python -m largeforge", *(quote(word) for word in mended)]))


def mend(words: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """Return a command line in which every finding that a setting can mend is mended, in place where it was typed."""
    best: dict[str, str] = {}
    for finding in findings:
        key = finding.mend.partition("=")[0]
        if key and (key not in best or "=<" in best[key]):
            best[key] = finding.mend
    dropped = {finding.drop: finding.mend.partition("=")[0] for finding in reversed(findings) if finding.drop}
    kept: list[str] = []
    for word in words:
        key = dropped[word] if word in dropped else word.partition("=")[0] if "=" in word else ""
        fix = best.get(key, "") if word in dropped or key in best else word
        if fix and fix not in kept:
            kept.append(fix)
    kept += [fix for fix in best.values() if fix not in kept]
    return sorted(kept, key=lambda word: not word.startswith("task="))


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
