"""Exact resume: eight rows of the pairwise cover, drawn by the commit; with --long every row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proof.exact_resume import AXES, cover, every_pair, makes_sense, pairs_of

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cache: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LARGEFORGE_CACHE": str(cache), "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-m", "tests.proof.exact_resume", *arguments], cwd=cache, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def commit() -> str:
    """The commit id, which draws the rows; a fixed word outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "no commit"


def test_the_cover_holds_every_pair() -> None:
    rows = cover()
    assert set().union(*map(pairs_of, rows)) == every_pair()
    assert all(makes_sense(row) for row in rows) and len(rows) < 60
    assert {row[axis] for row in rows for axis in AXES} >= {value for values in AXES.values() for value in values}
    assert cover() == rows


def test_eight_rows_resume_exactly(tmp_path: Path) -> None:
    """Proves SYS-F-018, SR-F-007 and SYS-R-006: killed with -9 and resumed, a run has the batches, losses and weights of one that never was."""
    assert "8 rows, 0 of them not exact" in run("--draw", "8", "--by", commit(), cache=tmp_path)


@pytest.mark.slow
def test_every_pair_resumes_exactly(tmp_path: Path) -> None:
    """Proves SYS-F-018: the whole cover; what it covered is printed."""
    pairs = len(every_pair())
    assert f"{pairs} of {pairs} pairs covered" in run(cache=tmp_path)
