"""Sweeps: points checked before the first runs, run by Hydra's launchers, compared at the end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.config.sweep import compare
from largeforge.errors import ConfigError, LargeForgeError

from .conftest import Put

CONFIG = """
from pydantic import Field
from largeforge.config.typed import NonNegativeInt
from largeforge.task.config import RootConfig

class TinyConfig(RootConfig):
    value: NonNegativeInt = Field(description="A number.")
    text: str = Field(description="A text.")
"""
STORY = """
from largeforge.errors import CheckFailed

class Tiny:
    def __init__(self, config):
        self.config = config
    def run(self, run):
        if self.config.value == 3:
            raise CheckFailed("three is refused")
        run.measure(loss=1.0 / (1 + self.config.value), letters=len(self.config.text))
"""


@pytest.fixture
def tiny(put: Put, desk: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A task of the user's own that takes no time; the words that choose it."""
    name = f"tiny_{abs(hash(str(desk))) % 10**8}"
    put(f"{name}/__init__.py", "")
    put(f"{name}/task/__init__.py", "")
    put(f"{name}/task/config.py", CONFIG)
    put(f"{name}/task/tiny.py", STORY)
    put("mine/task/tiny.yaml", f"# A tiny task\ntask:\n  _target_: {name}.task.tiny.Tiny\nvalue: 1\ntext: a\n")
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("PYTHONPATH", str(desk))
    return ["task=tiny", "--config-dir", "mine", f"trust=[{name}]"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_points_run_fail_and_are_compared(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """A failed point is told and the others go on; one table and one CSV at the end."""
    code = main([*tiny, "-m", "value=2,3,5", "text=x,What is 2+2?", "name=free text", "folder=out"])
    printed = capfd.readouterr().out
    assert code == 4
    rows = rows_of(Path("out"))
    assert [(row["value"], row["status"], row["exit_code"]) for row in rows] == [
        ("2", "done", "0"),
        ("2", "done", "0"),
        ("3", "failed", "4"),
        ("3", "failed", "4"),
        ("5", "done", "0"),
        ("5", "done", "0"),
    ]
    assert rows[1]["text"] == "What is 2+2?"
    assert [row["letters"] for row in rows] == ["1", "12", "", "", "1", "12"]
    assert float(rows[0]["loss"]) == pytest.approx(1 / 3)
    assert "point 2 failed with exit code 4: see out/2" in printed
    assert json.loads(Path("out/5/result.json").read_text())["status"] == "done"
    assert not Path("out/multirun.yaml").exists()
    with pytest.raises(LargeForgeError, match="holds a sweep already"):
        from largeforge.config.sweep import sweep

        sweep([*tiny, "-m", "value=1,2", "folder=out"])


def test_points_in_parallel(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """joblib's workers compose and check their own point."""
    pytest.importorskip("joblib")
    code = main([*tiny, "--multirun", "value=range(1,3)", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "folder=out"])
    assert code == 0, capfd.readouterr()
    assert [(row["value"], row["status"]) for row in rows_of(Path("out"))] == [("1", "done"), ("2", "done")]


def test_choices_are_swept_too_and_the_folder_is_below_outputs(tiny: list[str], put: Put) -> None:
    put("mine/task/small.yaml", Path("mine/task/tiny.yaml").read_text().replace("value: 1", "value: 7"))
    assert main([*tiny[1:], "-m", "task=glob([sm*,ti*])"]) == 0
    (table,) = Path("outputs").rglob("sweep.csv")
    assert {row["task"] for row in rows_of(table.parent)} == {"small", "tiny"}


def test_every_point_is_checked_before_the_first_runs(tiny: list[str]) -> None:
    from largeforge.config.sweep import sweep

    with pytest.raises(ConfigError) as caught:
        sweep([*tiny, "-m", "value=2,-3,5,x", "text=a,b", "nme=x", "folder=out"])
    told = {(problem.key, problem.value) for problem in caught.value.problems}
    assert told == {("value", "-3"), ("value", "x"), ("nme", "x")}
    assert not Path("out").exists()
    assert "value=2,0,5,1" in caught.value.next_step
    with pytest.raises(ConfigError) as caught:
        sweep(["-m", "task=sft", "model=nano,smollm2", "data.max_length=256,4096"])
    assert [problem.key for problem in caught.value.problems] == ["data.max_length"]


def test_nothing_to_sweep_and_what_is_not_installed_are_told() -> None:
    from largeforge.config.sweep import sweep

    with pytest.raises(LargeForgeError, match="Nothing to sweep"):
        sweep(["-m", "task=sft"])
    with pytest.raises(LargeForgeError, match="interval") as caught:
        sweep(["-m", "task=sft", "adapter.r=interval(1,4)"])
    assert "largeforge[optuna]" in caught.value.next_step
    with pytest.raises(LargeForgeError, match="nolauncher"):
        sweep(["-m", "task=sft", "adapter.r=1,2", "hydra/launcher=nolauncher"])


def test_comparison_shows_what_differs() -> None:
    point = {"status": "done", "exit_code": 0, "seconds": 1.0, "artifact": None, "folder": "f"}
    rows = [
        {"number": 0, "settings": {"a": "1", "b": "same"}, "metrics": {"loss": 0.123456}, **point},
        {"number": 1, "settings": {"a": "2", "b": "same"}, "metrics": {}, **point},
    ]
    text, table = compare(rows, ["a"])
    assert text.splitlines()[0].split() == ["point", "a", "status", "seconds", "loss"]
    assert text.splitlines()[1].split() == ["0", "1", "done", "1", "0.1235"]
    assert table.splitlines()[1] == "0,1,done,1.0,0.123456,0,f"


def test_a_point_whose_files_are_not_there_is_told_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "task=sft", "model=nano", "data=chat", "data.path=gone.jsonl,lost.jsonl", "folder=out"]) == 2
    assert [(row["data.path"], row["exit_code"]) for row in rows_of(Path("out"))] == [("gone.jsonl", "2"), ("lost.jsonl", "2")]
    assert "no such file" in capfd.readouterr().err
