"""task=prepare executor=ray on a real cluster of this machine: the same bytes as local, by four workers, one of them killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from largeforge.__main__ import main
from tests.data.making import contents, write_rows
from tests.task.test_prepare import everything

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("steps=[normalise,exact_duplicates,near_duplicates,split]", "shard_rows=40", "data.path=rows.jsonl", "check=none")


def test_the_same_bytes_as_local(tmp_path: Path, monkeypatch: object, cache: Path) -> None:
    """Proves SYS-S-006: the same steps run on a cluster, near duplicates across shards included; a worker that dies changes nothing."""
    os.chdir(tmp_path)
    rows = contents(1200)
    for number in range(0, 400, 10):  # near duplicates, shards apart
        said = " ".join(f"word{number}x{place}" for place in range(60))
        rows[number]["messages"][1]["content"] = said
        rows[-1 - number]["messages"] = [rows[number]["messages"][0], {"role": "assistant", "content": f"{said} more"}]
    write_rows(tmp_path / "rows.jsonl", [*rows, *rows[:30]])
    assert main(["task=prepare", "executor.num_workers=1", "folder=local", *WORDS]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "largeforge", "task=prepare", "executor=ray", "executor.num_workers=4", "folder=ray", *WORDS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    killed = kill_a_worker(process)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    assert killed, "no worker was there to be killed"
    assert everything(Path("ray/artifact")) == everything(Path("local/artifact"))
    metrics = json.loads(Path("ray/result.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["workers"] >= 4
    assert metrics["duplicates_near"] >= 35
    assert metrics["duplicates_exact"] == 30


def kill_a_worker(process: subprocess.Popen[str]) -> bool:
    """kill -9 one of the cluster's workers as soon as the first shards are done."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if len(list(Path("ray/work").glob("0-*/[0-9]*/counts.json"))) >= 2:
            for one in psutil.Process(process.pid).children(recursive=True):
                try:
                    if any(word.startswith("ray::") and "IDLE" not in word and "MapBatches" in word for word in one.cmdline()):
                        one.kill()
                        return True
                except psutil.Error:
                    continue
        time.sleep(0.01)
    return False
