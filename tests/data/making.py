"""Rows with known faults, for tests of pipelines: made here, by a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from largeforge.data.rows import Row


def chat(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **fields}


def row(question: str, answer: str = "Yes.", *, origin: str = "made:1", **fields: Any) -> Row:
    return Row(chat(question, answer, **fields), origin)


def contents(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that are all different, with a label."""
    rng = random.Random(seed)
    words = "river stone cloud lamp garden winter engine letter window silver carpet forest signal bottle market".split()
    made = []
    for number in range(count):
        question = f"What about the {' '.join(rng.sample(words, 4))} number {number}?"
        made.append(chat(question, f"It is {rng.choice(words)} {rng.randrange(1000)}, and then some {rng.choice(words)}.", label=rng.choice("abc")))
    return made


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path
