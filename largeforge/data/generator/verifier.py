"""Programs that score an answer from 0 to 1: a closed list, nothing of which runs what a teacher or a recipe wrote. Knows no teacher."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from largeforge.errors import InputError

if TYPE_CHECKING:
    from largeforge.data.generator.config import PreferenceConfig

Verifier = Callable[[str, str], float]
"""verifier(answer, expected answer or "") -> 0 .. 1."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", flags=re.DOTALL)
_SCORES = (
    re.compile(r"(?:score|rating|grade|mark)\D{0,12}?\b(10|[1-9])\b(?!\s*[-–])", flags=re.IGNORECASE),
    re.compile(r"\b(10|[1-9])\s*(?:/|out of)\s*10\b", flags=re.IGNORECASE),
    re.compile(r"^\W*(10|[1-9])\b(?!\s*[-–.]\s*\d)"),
)


def verifier(config: PreferenceConfig) -> Verifier:
    """Return the verifier that `score_by` names. Raises InputError where it lacks what it needs."""
    if config.score_by == "regex":
        if not config.pattern:
            raise InputError("generator.score_by=regex needs generator.pattern.", next_step="generator.pattern='^[A-Z].*[.]$'")
        try:
            pattern = re.compile(config.pattern)
        except re.error as fault:
            raise InputError(f"generator.pattern={config.pattern} is no regular expression: {fault}.", next_step="generator.pattern='^[A-Z].*[.]$'") from fault
        return lambda answer, expected: float(pattern.search(answer) is not None)
    if config.score_by == "json":
        return lambda answer, expected: json_score(answer, config.json_keys)
    if config.score_by == "length":
        return lambda answer, expected: length_score(answer, config.words)
    assert config.score_by == "exact_answer", config.score_by
    return exact_score


def exact_score(answer: str, expected: str) -> float:
    """1 where the answer comes to what is expected, else 0.

    Where a number is expected, the last number of the answer counts ("so 7 + 5 = 12."); else the answer itself, or its last line, word for word without
    case and punctuation.
    """
    wanted = _NUMBER.fullmatch(expected.strip().rstrip("."))
    if wanted is not None:
        numbers = _NUMBER.findall(answer)
        return float(bool(numbers) and _value(numbers[-1]) == _value(wanted[0]))
    lines = [line for line in answer.splitlines() if line.strip()] or [""]
    return float(_plain(expected) in (_plain(answer), _plain(lines[-1])))


def json_score(answer: str, keys: list[str]) -> float:
    """0 for what is no JSON; else the share of the keys that its object has, 1 where none are asked for. A fenced block counts as the answer."""
    fenced = _FENCE.search(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return 0.0
    if not keys:
        return 1.0
    return sum(key in value for key in keys) / len(keys) if isinstance(value, dict) else 0.0


def length_score(answer: str, words: int) -> float:
    """1 at so many words, falling evenly to 0 at none and at twice as many."""
    return max(0.0, 1 - abs(len(answer.split()) - words) / words)


def judged_score(said: str) -> float | None:
    """What a judge said, 1 to 10, as 0 to 1; None where no score can be read: "Score: 7", "7/10", "7"."""
    for pattern in _SCORES:
        found = pattern.search(said)
        if found:
            return (int(found[1]) - 1) / 9
    return None


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
