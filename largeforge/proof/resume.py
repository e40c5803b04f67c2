"""verify=resume: a run that is killed with -9 and taken up again is, bit for bit, one that was never killed.

Runs the recipe in processes of its own, as a user would; knows nothing about what a step does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from largeforge.artifact import read_artifact
from largeforge.errors import CheckFailed
from largeforge.proof.certificate import Certificate, alone, fault_of, finished, words_of
from largeforge.run import Run

STEPS = 8
EVERY = 2
ATTEMPTS = 4
COLUMNS = ("step", "loss, never stopped", "loss, killed and resumed", "batch", "same bits")


def prove(run: Run) -> None:
    """Train a few steps, once without a stop and once killed at a random step and resumed; compare batches, losses and weights.

    Raises:
        CheckFailed: they differ, or a run ended by itself.
    """
    alone(run)
    changed = {
        "verify": "none",
        "plan": False,
        "trainer.max_steps": STEPS,
        "trainer.log_every_steps": 1,
        "trainer.checkpoint.every_steps": EVERY,
        "trainer.checkpoint.keep_last": 2,
        "trainer.checkpoint.content": "full",
        "trainer.checkpoint.folder": None,
        "benchmark": "none",
        "tracker": "none",
    }
    whole, killed = run.folder / "never_stopped", run.folder / "killed"
    _run(run, changed, whole)
    at = _kill(run, changed, killed)
    _run(run, {**changed, "resume": "auto"}, killed)
    left, right = steps(whole), steps(killed)
    certificate = Certificate(
        "a run that is killed and resumed takes the same batches and ends with the same losses and weights, bit for bit, as one that never was",
        COLUMNS,
        changed={key: value for key, value in changed.items() if key not in ("verify", "plan")},
        facts={"killed_at_step": at, "checkpoint_every_steps": EVERY, **_where(whole), "processes": run.config.trainer.devices},
        notes=[f"Killed with signal 9 when step {at} was written; a checkpoint stood every {EVERY} steps."],
    )
    for step in range(1, STEPS + 1):
        one, two = left.get(step, {}), right.get(step, {})
        batch = "same" if one.get("batch_checksum") == two.get("batch_checksum") else "OTHER"
        same = one.get("loss") is not None and one.get("loss") == two.get("loss") and batch == "same"
        certificate.row(step, one.get("loss", "none"), two.get("loss", "none"), batch, holds=same)
    ids = [read_artifact(folder / "artifact").id for folder in (whole, killed)]
    certificate.row("weights", ids[0][:16], ids[1][:16], "", holds=ids[0] == ids[1])
    certificate.conclude(run, title="Resume: never stopped beside killed and resumed")
    shutil.rmtree(whole)
    shutil.rmtree(killed)


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """Every logged step of a run; one that was taken twice must have said the same, or it is none."""
    found: dict[int, dict[str, Any]] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if "loss" in record:
            found[record["step"]] = record
    return found


def _run(run: Run, changed: dict[str, Any], folder: Path) -> None:
    finished(run, _words(run, changed, folder))


def _kill(run: Run, changed: dict[str, Any], folder: Path) -> int:
    """Kill the run when a step drawn at random is written; return the last step that was. One that ends before is started again."""
    draw = random.Random(f"{run.config.seed} {os.getpid()}")
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        wanted = draw.randint(EVERY + 1, STEPS - 2)
        with (run.folder / "killed.log").open("w", encoding="utf-8") as said:
            process = subprocess.Popen([sys.executable, "-m", "largeforge", *_words(run, changed, folder)], stdout=said, stderr=said, start_new_session=True)
            try:
                while process.poll() is None and not run.stop_asked:
                    taken = max(steps(folder), default=0)
                    if taken >= wanted:
                        os.killpg(process.pid, signal.SIGKILL)
                        break
                    time.sleep(0.002)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode == -signal.SIGKILL:
            return max(steps(folder), default=0)
        if process.returncode:
            raise fault_of(run, process.returncode, (run.folder / "killed.log").read_text(encoding="utf-8")[-2000:].strip())
        if run.stop_asked:
            raise fault_of(run, 0, "")
    raise CheckFailed(f"the run ended before it could be killed, {ATTEMPTS} times: its steps are too quick to be met.")


def _where(folder: Path) -> dict[str, Any]:
    """Device and precision that a run had."""
    facts = yaml.safe_load((folder / "recipe.lock.yaml").read_text(encoding="utf-8"))["facts"]
    return {name: facts[name] for name in ("device", "precision")}


def _words(run: Run, changed: dict[str, Any], folder: Path) -> list[str]:
    return words_of(run, {**changed, "folder": folder}, without=("name", "resume"))
