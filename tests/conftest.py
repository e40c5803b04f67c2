"""Fixtures that every folder of tests shares: an empty cache and home, so that no test reads what another left."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LargeForge cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LARGEFORGE_CACHE", str(folder))
    return folder
