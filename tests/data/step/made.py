"""Typed configs of steps as their YAML gives them, rows, and what a step did with them: for the tests of steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import largeforge
from largeforge.build import find
from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import StepConfig

CONF = Path(largeforge.__file__).parent.parent / "conf"


def settings(name: str, **changes: Any) -> StepConfig:
    """`step.NAME` as conf/data/step/NAME.yaml has it, with changes."""
    values: dict[str, Any] = {**OmegaConf.to_container(OmegaConf.load(CONF / "data" / "step" / f"{name}.yaml")), **changes}  # type: ignore[dict-item]
    package, _, cls = values["_target_"].rpartition(".")
    typed: type[StepConfig] = find(f"largeforge.data.step.config.{cls}Config")
    return typed(**values)


def make(name: str, *, seed: int = 0, folder: Path | None = None, live: dict[str, Any] | None = None, **changes: Any) -> Step:
    """The step, ready."""
    config = settings(name, **changes)
    step: Step = find(config.target)(config, seed=seed, folder=folder, **(live or {}))
    step.ready()
    return step


def chat(question: str, answer: str, origin: str = "rows.jsonl:1", **fields: Any) -> Row:
    """One question and its answer."""
    return Row({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **fields}, origin)


def text(said: str, origin: str = "rows.jsonl:1", **fields: Any) -> Row:
    """One row of text."""
    return Row({"text": said, **fields}, origin)


def preference(question: str, chosen: str, rejected: str, origin: str = "rows.jsonl:1") -> Row:
    """One question, a better answer and a worse one."""
    return Row(
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        },
        origin,
    )


def kept(items: Iterable[Row | Dropped]) -> list[Row]:
    """What was given on."""
    return [item for item in items if isinstance(item, Row)]


def dropped(items: Iterable[Row | Dropped]) -> list[Dropped]:
    """What was left out."""
    return [item for item in items if isinstance(item, Dropped)]


def recall_and_precision(wanted: Sequence[bool], found: Sequence[bool]) -> tuple[float, float]:
    """Share of what is wanted that was found, and share of what was found that is wanted."""
    hits = sum(w and f for w, f in zip(wanted, found, strict=True))
    return hits / max(1, sum(wanted)), hits / max(1, sum(found))
