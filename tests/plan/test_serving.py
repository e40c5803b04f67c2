"""Plans of task=serve: weights and the KV cache that requests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.errors import EXIT_DOES_NOT_FIT, EXIT_DONE, EXIT_USER


def planned(*words: str) -> int:
    return main(["task=serve", *words])


def test_what_is_held(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two bytes a number; 4 layers of 2 heads of 64 for keys and values each: 2,048 bytes a token."""
    assert planned("model=nano", "model.dtype=bf16", "engine.kv_cache_bytes=20480000", "plan=true") == EXIT_DONE
    said = " ".join(capfd.readouterr().out.split())
    assert "10,000 tokens, 2,048 bytes each" in said and "7 of 1024 + 256 tokens" in said


def test_a_model_that_does_not_fit(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert planned("model=llama3_3_70b", "engine=vllm", "plan=rtx4090") == EXIT_DOES_NOT_FIT


def test_an_engine_without_a_model(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert planned("engine=echo", "plan=true") == EXIT_USER
    assert "nothing to plan" in capfd.readouterr().err
