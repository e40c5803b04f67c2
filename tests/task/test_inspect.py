"""task=inspect and task=diff: what they show, what they verify, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.artifact import AUDIT
from largeforge.data.shards import open_data
from tests.data.making import chat, contents, write_rows


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(folder: str, rows: list[dict[str, object]], *words: str) -> Path:
    path = write_rows(Path(f"{folder}.jsonl"), rows)
    assert main(["task=prepare", f"data.path={path}", f"folder={folder}", "executor.num_workers=1", "check=none", *words]) == 0
    return Path(folder, "artifact")


def test_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared("a", [*contents(80), *contents(5)])
    capsys.readouterr()
    assert main(["task=inspect", f"data={folder}", "show=2"]) == 0
    said = capsys.readouterr().out
    data = open_data(folder)
    assert data.artifact.id in said
    for split, count in data.splits.items():
        assert split in said
        assert str(count) in said
    assert "a.jsonl" in said
    assert "duplicate_exact" in said
    assert "label" in said
    assert "verified" in said
    assert next(data.rows("train")).id in said


def test_a_changed_row_or_log_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared("a", contents(30))
    rows = folder / "rows" / "train-00000.jsonl"
    before = rows.read_bytes()
    rows.write_bytes(before.replace(b"river", b"rivet"))
    assert main(["task=inspect", f"data={folder}"]) == 2
    assert "is not what was written" in capsys.readouterr().err
    rows.write_bytes(before)
    with (folder / AUDIT).open("a", encoding="utf-8") as stream:
        stream.write('{"number": 9}\n')
    assert main(["task=inspect", f"data={folder}"]) == 4
    assert "audit log is broken" in capsys.readouterr().err


def test_what_is_no_artifact(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert main(["task=inspect", "data.path=empty"]) == 2
    assert "is no artifact" in capsys.readouterr().err


def test_a_row_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared("a", contents(10))
    assert main(["task=inspect", f"data={folder}", "row=zzz"]) == 2
    assert "no row whose id begins with zzz" in capsys.readouterr().err


def test_diff_tells_what_came_went_and_changed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = contents(50)
    after = [*rows[3:], *contents(4, seed=9)]
    after[10] = chat(str(rows[13]["messages"][0]["content"]), "Another answer.")  # type: ignore[index]
    a, b = prepared("a", rows), prepared("b", after)
    capsys.readouterr()
    assert main(["task=diff", f"a={a}", f"b={b}", "folder=d"]) == 0
    said = capsys.readouterr().out
    lines = [json.loads(line) for line in Path("d/diff.jsonl").read_text(encoding="utf-8").splitlines()]
    by = {what: [line for line in lines if line["what"] == what] for what in ("came", "went", "changed", "moved")}
    assert len(by["changed"]) == 1 + 4 - len(by["came"]) or len(by["came"]) == 4
    changed = next(line for line in by["changed"] if line["row"]["messages"][1]["content"] == "Another answer.")
    assert changed["before"]["row"] == rows[13]
    assert "changed" in said
    metrics = json.loads(Path("d/result.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["rows_went"] + metrics["rows_changed"] == 4


def test_diff_of_equals(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = prepared("a", contents(20)), prepared("b", contents(20))
    capsys.readouterr()
    assert main(["task=diff", f"a={a}", f"b={b}"]) == 0
    assert "No row differs." in capsys.readouterr().out


def test_diff_of_a_row_that_moved() -> None:
    a, b = prepared("a", contents(40), "steps=[]"), prepared("b", contents(40), "step.split.test=0.5")
    assert main(["task=diff", f"a={a}", f"b={b}", "folder=d"]) == 0
    lines = [json.loads(line) for line in Path("d/diff.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["what"] for line in lines} == {"moved"}
    assert {line["from"] for line in lines} == {"train"}
