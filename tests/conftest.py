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


@pytest.fixture(scope="session")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which nano is made once for all tests; read it, leave it as it is."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def nano_cache(shared_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LargeForge's cache, with nano made once for all tests."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(shared_models))
    return shared_models
