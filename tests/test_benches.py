"""What benches share: a table that tells what is missed, and the cost of a process as the kernel counts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts.benches.learning import add, short_rows
from scripts.benches.processes import cost, in_turn, median_cpu_s
from scripts.benches.table import Row, Table


@pytest.mark.parametrize(
    ("row", "met", "target"),
    [
        (Row("speed", 20.0, 10.0, "tokens/s", at_least=1.6), True, ">= 1.6x"),
        (Row("speed", 15.0, 10.0, "tokens/s", at_least=1.6), False, ">= 1.6x"),
        (Row("memory", 7.0, 10.0, "MiB", at_most=0.75), True, "<= 0.75x"),
        (Row("memory", 8.0, 10.0, "MiB", at_most=0.75), False, "<= 0.75x"),
        (Row("prediction", 8.0, 10.0, "MiB", at_least=0.85, at_most=1.15), False, ">= 0.85x <= 1.15x"),
        (Row("loss", 8.0, 10.0, ""), None, ""),
        (Row("margin", -0.2, -0.5, "nats", higher=True), True, "higher"),
        (Row("margin", 0.0, 0.0, "nats", higher=True), False, "higher"),
        (Row("loss", 2.1, 2.0, "nats", higher=False), False, "lower"),
    ],
)
def test_a_target_is_met_or_missed(row: Row, met: bool | None, target: str) -> None:
    assert (row.met, row.target) == (met, target)


def test_a_missed_target_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("trial", "ours beside theirs", ours="ours", peer="theirs", notes=["Both sides read the same rows."])
    table.rows += [Row("speed", 15.0, 10.0, "tokens/s", at_least=1.6), Row("memory", 7.0, 10.0, "MiB", at_most=0.75)]
    table.publish(tmp_path)
    text = (tmp_path / "trial.txt").read_text()
    assert text in capsys.readouterr().out
    speed = next(line for line in text.splitlines() if line.startswith("speed"))
    assert speed.split() == ["speed", "15", "10", "tokens/s", "1.500x", ">=", "1.6x", "NO"]
    assert "Missed: speed." in text and text.endswith("Both sides read the same rows.\n")
    facts = json.loads((tmp_path / "trial.json").read_text())
    assert [(row["name"], row["ratio"], row["met"]) for row in facts["rows"]] == [("speed", 1.5, False), ("memory", 0.7, True)]
    assert facts["machine"]["versions"]["torch"] and facts["machine"]["cores"] >= 1


def test_the_cost_of_a_process_is_its_own() -> None:
    costs = in_turn({"idle": [sys.executable, "-c", ""], "busy": [sys.executable, "-c", "sum(range(20_000_000))"]}, repeats=2)
    assert [len(runs) for runs in costs.values()] == [2, 2]
    assert median_cpu_s(costs["busy"]) > median_cpu_s(costs["idle"]) + 0.1
    assert all(run.wall_s > 0 for runs in costs.values() for run in runs)


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="ended with 3:\nno such luck"):
        cost([sys.executable, "-c", "import sys; sys.stderr.write('no such luck'); sys.exit(3)"])


def test_what_was_learnt_is_judged_by_the_mean_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("trial", "what methods teach", ours="after", peer="before")
    add(table, "accuracy", "share", [(0.5, 0.0), (0.75, 0.0)], rises=True)
    add(table, "likelihood", "nats", [(2.5, 2.0), (2.0, 2.0)], rises=False)
    table.publish(tmp_path)
    assert [(row.ours, row.peer, row.met) for row in table.rows] == [(0.625, 0.0, True), (2.25, 2.0, False)]
    text = capsys.readouterr().out
    assert "+0.625" in text and "+0.25" in text and "Missed: likelihood." in text
    facts = json.loads((tmp_path / "trial.json").read_text())
    assert facts["details"]["likelihood"] == [{"after": 2.5, "before": 2.0}, {"after": 2.0, "before": 2.0}]


def test_rows_that_are_learnt_from_are_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": "?" * size, "answer": "!"}) + "\n" for size in (10, 419, 20)))
    assert [len(row["prompt"]) for row in short_rows(str(path))] == [10, 20]
