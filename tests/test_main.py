"""The command line as a person meets it: exit codes, no traceback for the user's mistakes, Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import largeforge.run
from largeforge import __version__
from largeforge.__main__ import main
from largeforge.config.composed import Composed
from largeforge.errors import DoesNotFit

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "largeforge", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
        check=False,
    )


def test_the_story_gets_the_checked_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SR-F-006, SYS-I-020: training starts from the command line; the story's exit code is the process's."""
    got: list[Composed] = []

    def execute(composed: Composed) -> int:
        got.append(composed)
        return 4

    monkeypatch.setattr(largeforge.run, "execute", execute)
    assert main(["task=sft", "model=nano", "trainer.max_steps=2"]) == 4
    assert got[0].task == "sft"
    assert got[0].values["trainer"]["max_steps"] == 2
    assert got[0].overrides == ("task=sft", "model=nano", "trainer.max_steps=2")


def test_files_are_looked_for_before_a_run_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(largeforge.run, "execute", lambda composed: pytest.fail("it must not start"))
    assert main(["task=sft", "data=chat", "data.path=nowhere.jsonl"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> int:
        def execute(composed: Composed) -> int:
            raise error

        monkeypatch.setattr(largeforge.run, "execute", execute)
        return main(["task=sft"])

    assert raising(DoesNotFit("too big", next_step="buy more")) == 3
    assert "Try: buy more" in capsys.readouterr().err
    assert raising(KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert raising(RuntimeError("ours")) == 1
    assert "fault of LargeForge" in capsys.readouterr().err
    assert main(["task=sft", "adapter.rnk=8"]) == 2
    assert main(["--no-such-flag"]) == 2
    assert main(["task=sft", "--cfg", "jb"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_as_a_process() -> None:
    """Proves SYS-U-001: a mistake ends in exit code 2 and the next command to type, never a traceback."""
    assert command("--version").stdout == f"largeforge {__version__}\n"
    mistaken = command("task=sft", "model=nanoo", "adapter.rnk=8")
    assert mistaken.returncode == 2
    assert mistaken.stdout == ""
    assert "Try: python -m largeforge task=sft model=nano adapter.r=8" in mistaken.stderr
    assert "Traceback" not in mistaken.stderr
    shown = command("task=sft", "model=nano", "--cfg", "job")
    assert shown.returncode == 0
    assert "_target_: largeforge.model.nano.Nano" in shown.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    piped = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m largeforge --schema | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert (piped.returncode, piped.stderr) == (0, "")


def test_cfg_shows_ours_and_hydras(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=sft", "--cfg", "all", "hydra/launcher=joblib"]) == 0
    shown = capsys.readouterr().out
    assert "JoblibLauncher" in shown
    assert "largeforge.task.train.Train" in shown
    assert main(["--origins", "task=sft", "seed=3"]) == 0
    lines = [line.split("   ") for line in capsys.readouterr().out.splitlines()]
    assert ["seed = 3", "command line"] in [[line[0].strip(), line[-1].strip()] for line in lines]
