"""Short runs of the real entry point, as tests of the story have them; nothing of wandb's or mlflow's leaves the folder of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.task.conftest import model_cache, rows_path, train

__all__ = ["model_cache", "rows_path", "train"]


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "home").mkdir()
