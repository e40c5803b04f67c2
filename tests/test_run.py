"""A run: its folder, its exit codes, what it leaves when it fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import largeforge.run
from largeforge.config.composed import Composed
from largeforge.errors import CheckFailed, DoesNotFit, InputError
from largeforge.run import Run, execute


@pytest.fixture
def compose_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Composed]:
    """A composed config whose story does what it is given."""
    monkeypatch.chdir(tmp_path)

    def make(does: Callable[[Run], Any], **root: Any) -> Composed:
        class Story:
            def __init__(self, config: Any) -> None:
                self.config = config

            def run(self, run: Run) -> None:
                does(run)

            def plan(self, *, progress: Any) -> Any:
                return SimpleNamespace(fits=False, render=lambda: None)

        monkeypatch.setattr(largeforge.run, "find", lambda target: Story)
        values = {"name": None, "folder": None, "resume": "never", "plan": False, "log_level": "info", "log_format": "console", **root}
        config: Any = SimpleNamespace(task=SimpleNamespace(target="story"), **values)
        return Composed(task="sft", config=config, values=values, overrides=("task=sft", "name=a b"))

    return make


def raising(error: BaseException) -> Callable[[Run], None]:
    def does(run: Run) -> None:
        raise error

    return does


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (InputError("no such file"), 2, "failed"),
        (DoesNotFit("9 GB"), 3, "failed"),
        (CheckFailed("gate"), 4, "failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(compose_with: Callable[..., Composed], error: BaseException, code: int, status: str, tmp_path: Path) -> None:
    assert execute(compose_with(raising(error), folder="run")) == code
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == status


def test_a_fault_of_ours_shows_its_traceback(compose_with: Callable[..., Composed], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(compose_with(raising(ZeroDivisionError("oops")), folder="run")) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "oops" in told


def test_a_users_error_shows_none_and_says_what_to_type(compose_with: Callable[..., Composed], capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-U-001: what was wrong, and the next command."""
    execute(compose_with(raising(InputError("rows.jsonl is empty", next_step="data.path=other.jsonl")), folder="run"))
    told = capsys.readouterr().err
    assert "Traceback" not in told and "Try: data.path=other.jsonl" in told


def test_log_is_json_lines_at_the_level_asked_for(compose_with: Callable[..., Composed], tmp_path: Path) -> None:
    """Proves SYS-F-065, SYS-F-067."""

    def does(run: Run) -> None:
        logging.getLogger("largeforge.part").debug("small")
        logging.getLogger("largeforge.part").warning("great", extra={"rows": 3})

    for level, expected in (("debug", {"small", "great"}), ("warning", {"great"})):
        execute(compose_with(does, folder=level, log_level=level))
        records = [json.loads(line) for line in (tmp_path / level / "log.jsonl").read_text().splitlines()]
        assert {record["message"] for record in records if record["logger"] == "largeforge.part"} == expected
        assert next(record for record in records if record["message"] == "great")["rows"] == 3


@pytest.mark.parametrize(("form", "begins"), [("json", "{"), ("console", "WARNING")])
def test_log_format_on_the_terminal(compose_with: Callable[..., Composed], capsys: pytest.CaptureFixture[str], form: str, begins: str) -> None:
    execute(compose_with(lambda run: logging.getLogger("largeforge").warning("great"), folder="run", log_format=form))
    line = next(line for line in capsys.readouterr().err.splitlines() if "great" in line)
    assert line.startswith(begins)


def test_a_folder_that_holds_a_run_is_refused(compose_with: Callable[..., Composed], tmp_path: Path) -> None:
    assert execute(compose_with(lambda run: None, folder="run")) == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert execute(compose_with(lambda run: None, folder="run")) == 2
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert execute(compose_with(lambda run: None, folder="run", resume="auto")) == 0


def test_resume_auto_takes_the_newest_unfinished_of_that_name(compose_with: Callable[..., Composed]) -> None:
    seen: list[Path] = []
    execute(compose_with(raising(InputError("broken")), name="mine"))
    execute(compose_with(raising(InputError("broken")), name="other"))
    execute(compose_with(lambda run: seen.append(run.folder), name="mine"))
    execute(compose_with(lambda run: seen.append(run.folder), name="mine", resume="auto"))
    assert seen[0] != seen[1]
    unfinished = json.loads((seen[1] / "result.json").read_text())
    assert unfinished["status"] == "done"
    execute(compose_with(lambda run: seen.append(run.folder), name="mine", resume="auto"))
    assert seen[2] not in seen[:2]  # nothing unfinished is left: a fresh folder


def test_a_plan_that_does_not_fit_is_exit_3_and_makes_no_folder(compose_with: Callable[..., Composed], tmp_path: Path) -> None:
    assert execute(compose_with(lambda run: pytest.fail("it must not run"), plan=True)) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_command_of_a_run_can_be_typed(compose_with: Callable[..., Composed]) -> None:
    commands: list[str] = []
    execute(compose_with(lambda run: commands.append(run.command(folder="x", resume="auto")), folder="run"))
    assert commands == ["python -m largeforge task=sft 'name=a b' folder=x resume=auto"]
