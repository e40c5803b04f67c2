"""executor=ray on a real cluster of this machine: the same results, by several workers, one of them killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from largeforge.errors import InputError
from largeforge.executor.config import RayConfig
from largeforge.executor.ray import Ray
from tests.executor import work

folder = Path(sys.argv[1])
executor = Ray(RayConfig(_target_="", address=None, num_workers=4))
said = {}
said["doubled"] = sorted(executor.map(work.slow_double, list(range(12))))
said["workers"] = len(executor.workers)
said["killed"] = sorted(executor.map(work.KilledOnce(3, folder / "died"), list(range(8))))
said["died"] = (folder / "died").exists()
said["torch"] = any(loaded for _, loaded in executor.map(work.loads_torch, list(range(4))))
try:
    list(executor.map(work.fails_at_three, list(range(6))))
    said["error"] = None
except InputError as error:
    said["error"] = [error.message, error.next_step]
executor.close()
print(json.dumps(said))
"""


@pytest.mark.slow
def test_tasks_on_a_real_cluster(tmp_path: Path) -> None:
    """Four logical workers on this machine's cores all do work; one killed in the middle changes nothing; an error comes back as it was raised."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["doubled"] == [[number, 2 * number] for number in range(12)]
    assert said["workers"] == 4
    assert said["killed"] == [[number, 2 * number] for number in range(8)]
    assert said["died"] is True
    assert said["torch"] is False
    assert said["error"] == ["three cannot be done", "leave three out"]
