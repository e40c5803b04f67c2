"""Fixtures of the tests of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.tiny import make_tokenizer, write_jsonl


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """ChatML as SmolLM2 has it."""
    return make_tokenizer()


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[Sequence[Any]], Path]:
    """Writes rows to a fresh rows.jsonl."""
    return lambda rows: write_jsonl(tmp_path / "rows.jsonl", rows)
