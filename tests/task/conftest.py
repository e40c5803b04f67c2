"""Runs of the real entry point, in this process, on nano and a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from largeforge.config.compose import compose
from largeforge.run import execute

Runner = Callable[..., tuple[int, dict[str, Any]]]
TOPICS = ("rivers", "engines", "letters", "gardens", "numbers", "clouds", "bridges", "songs")


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Short conversations of unequal length."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me {number} things about {TOPICS[number % 8]}."},
                {"role": "assistant", "content": " ".join([f"{TOPICS[number % 8]} {number} are fine."] * (1 + number % 3))},
            ]
        }
        for number in range(count)
    ]


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(24)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano is made once for all of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(rows_path: Path, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run task=sft on nano; returns the exit code and result.json. The first argument names the run's folder."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(model_cache))
    monkeypatch.chdir(tmp_path)

    def go(folder: str, *words: str) -> tuple[int, dict[str, Any]]:
        common = ["task=sft", "model=nano", "data=chat", f"data.path={rows_path}", "data.max_length=128", "trainer.batch_size=4", "trainer.micro_batch_size=2"]
        code = execute(compose([*common, "trainer=cpu", "trainer.precision=fp32", f"folder={folder}", *words]))
        result = tmp_path / folder / "result.json"
        return code, json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}

    return go
