"""The dvc.yaml of docs/prepare.md under real dvc: what it makes, and that it makes nothing twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from largeforge.artifact import read_artifact
from scripts.environments import programs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "prepare.md"


def sample(name: str) -> str:
    """A file that the page shows."""
    found = re.search(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.slow
def test_the_sample_runs_under_dvc(tmp_path: Path) -> None:
    """Rows -> artifact -> model under `dvc repro`; run again it does nothing; a changed row makes another artifact."""
    dvc = programs("dvc") / "dvc"
    (tmp_path / "dvc.yaml").write_text(sample("dvc.yaml"), encoding="utf-8")
    (tmp_path / "parcels.jsonl").write_text(sample("parcels.jsonl"), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run([str(dvc), *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("init", "--no-scm")
    run("repro")
    first = read_artifact(tmp_path / "prepared" / "artifact", full=True)
    assert read_artifact(tmp_path / "trained" / "artifact", full=True).kind in ("adapter", "model")
    assert "didn't change" in run("repro")
    with (tmp_path / "parcels.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "Is there a shop in Bergen?", "completion": "Yes, by the harbour."}\n')
    run("repro", "prepare")
    assert read_artifact(tmp_path / "prepared" / "artifact", full=True).id != first.id
    run("checkout", "--force")
