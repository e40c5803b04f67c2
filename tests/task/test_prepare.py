"""task=prepare as users meet it: the command, what it leaves, what it refuses, and what a kill costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from largeforge.__main__ import main
from largeforge.artifact import read_artifact
from largeforge.data.shards import open_data
from tests.data.making import chat, contents, write_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.chdir(tmp_path)


def result(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))
    return found


def prepare(*words: str) -> int:
    return main(["task=prepare", "executor.num_workers=1", *words])


def everything(folder: Path) -> dict[str, bytes]:
    """The bytes of an artifact, those about its making too, the log with its times left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "audit.jsonl", "proof.json")
    }


def test_rows_with_known_faults(tmp_path: Path) -> None:
    """Proves SYS-F-007: every row that is kept or left out says where it came from.

    20 exact duplicates, 5 unreadable rows and 12 rows with invisible characters are counted, told and traced; nothing else is touched.
    """
    rows = contents(300)
    planted = [*rows, *rows[:20]]
    for number in range(12):
        planted[40 + number]["messages"][0]["content"] += " \u200b"
    path = write_rows(tmp_path / "rows.jsonl", planted)
    with path.open("a", encoding="utf-8") as stream:
        stream.write("{broken\n" * 5)
    assert prepare("data.path=rows.jsonl", "data.on_bad_row=skip", "folder=out", "shard_rows=64", "check=none") == 0
    said = result("out")
    metrics = said["metrics"]
    assert (metrics["rows_in"], metrics["rows_bad"], metrics["duplicates_exact"], metrics["rows_kept"]) == (325, 5, 20, 300)
    data = open_data(Path("out/artifact"), full=True)
    assert sum(data.splits.values()) == 300
    assert data.kind == "messages"
    changed = [known["origin"] for split in data.splits for known in data.lineage(split) if known.get("changed")]
    assert sorted(changed) == sorted(f"rows.jsonl:{number}" for number in range(41, 53))
    reasons = Counter((line["step"], line["reason"]) for line in data.dropped())
    assert reasons == {("read", "bad_row"): 5, ("exact_duplicates", "duplicate_exact"): 20}
    duplicate = next(line for line in data.dropped() if line["origin"] == "rows.jsonl:301")
    assert duplicate["detail"] == "the same as rows.jsonl:1"
    assert data.sources[0].name == "rows.jsonl"
    assert not Path("out/work").exists()
    assert "exact_duplicates" in Path("out/report.md").read_text(encoding="utf-8")


def test_equal_inputs_give_equal_ids_wherever_they_lie(tmp_path: Path) -> None:
    """The id is of what rows say: file names, folders, processes and times are no part of it."""
    write_rows(tmp_path / "rows.jsonl", contents(200))
    (tmp_path / "elsewhere").mkdir()
    write_rows(tmp_path / "elsewhere" / "other.jsonl", contents(200))
    assert prepare("data.path=rows.jsonl", "folder=one", "shard_rows=50") == 0
    assert main(["task=prepare", "data.path=elsewhere/other.jsonl", "folder=two", "shard_rows=50", "executor.num_workers=2"]) == 0
    one, two = (read_artifact(Path(name, "artifact"), full=True) for name in ("one", "two"))
    assert one.id == two.id
    assert prepare("data.path=rows.jsonl", "folder=three", "step.split.salt=x") == 0
    assert read_artifact(Path("three/artifact")).id != one.id


def test_bad_rows_are_told_all_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "rows.jsonl", contents(40))
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{broken\n{"messages": []}\n')
    assert prepare("data.path=rows.jsonl", "folder=out", "shard_rows=10") == 2
    said = capsys.readouterr().err
    assert "2 of 42 rows cannot be used" in said
    assert "rows.jsonl:41" in said
    assert "rows.jsonl:42" in said
    assert "data.on_bad_row=skip" in said
    assert not Path("out/artifact").exists()


def test_rows_of_two_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "chats.jsonl", contents(5))
    write_rows(tmp_path / "texts.jsonl", [{"text": "some text"}])
    assert prepare("data.path=[chats.jsonl,texts.jsonl]", "folder=out") == 2
    assert "5 of messages, 1 of text" in capsys.readouterr().err


def test_nothing_left_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", contents(5))
    assert prepare("data.path=rows.jsonl", "folder=out", "steps=[length]", "step.length.min_chars=100000") == 2
    assert "No row is left" in capsys.readouterr().err


def test_an_artifact_is_prepared_again_and_traced_to_the_raw_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = contents(60)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert prepare("data.path=rows.jsonl", "folder=one") == 0
    assert prepare("data.path=one/artifact", "folder=two", "steps=[normalise]") == 0
    first, second = open_data(Path("one/artifact")), open_data(Path("two/artifact"))
    assert second.splits == first.splits  # without the step split, rows stay where they were
    known = next(second.lineage("train"))
    capsys.readouterr()
    assert main(["task=inspect", "data=two/artifact", f"row={known['id'][:10]}"]) == 0
    said = capsys.readouterr().out
    assert "two/artifact" in said
    assert "one/artifact" in said
    origin = next(one["origin"] for one in first.lineage("train") if one["id"] == known["id"])
    assert origin.startswith("rows.jsonl:")
    assert origin in said


def test_unused_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting of a step that does not run would be ignored in silence."""
    write_rows(tmp_path / "rows.jsonl", contents(5))
    assert prepare("data.path=rows.jsonl", "step.length.min_chars=3") == 2
    assert "steps='[normalise,exact_duplicates,split,length]'" in capsys.readouterr().err
    assert prepare("data.path=rows.jsonl", "engine.max_tokens=3") == 2
    assert prepare("data.path=rows.jsonl", "steps=[normalize]") == 2
    assert "normalise" in capsys.readouterr().err
    assert prepare("data.path=rows.jsonl", "step.split.validation=0.6", "step.split.test=0.6") == 2


def child(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "largeforge", "task=prepare", "executor.num_workers=1", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": str(ROOT)})


def wait_for(pattern: str, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while len(list(Path().glob(pattern))) < count:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize(("pattern", "count"), [("out/work/0-*/*/counts.json", 25), ("out/work/1-*/*/counts.json", 3)])
def test_killed_and_gone_on_with_it_ends_with_the_same_bytes(tmp_path: Path, pattern: str, count: int) -> None:
    """kill -9 in the first pass, and in the last: what was done is not done again, and every byte is as if nothing had happened."""
    rows = contents(1500)
    write_rows(tmp_path / "rows.jsonl", [*rows, *rows[::7], *[chat(f"Same {number % 9}?", "Yes.") for number in range(60)]])
    words = ("data.path=rows.jsonl", "shard_rows=25", "step.split.keep_together=prompt", "check=none")
    assert prepare(*words, "folder=whole") == 0
    process = child(*words, "folder=out")
    wait_for(pattern, count, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Path("out/artifact").exists()
    before = {path: path.stat().st_mtime_ns for path in Path("out/work").glob("*/*/counts.json")}
    assert len(before) >= count
    assert prepare(*words, "folder=out") == 2  # it holds a run: resume says whether to go on
    assert prepare(*words, "folder=out", "resume=auto") == 0
    assert everything(Path("out/artifact")) == everything(Path("whole/artifact"))
    assert read_artifact(Path("out/artifact"), full=True).id == read_artifact(Path("whole/artifact")).id


def test_work_of_other_settings_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", contents(2000))
    process = child("data.path=rows.jsonl", "shard_rows=20", "folder=out", "check=none")
    wait_for("out/work/0-*/*/counts.json", 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert prepare("data.path=rows.jsonl", "shard_rows=20", "folder=out", "check=none", "resume=auto", "seed=1") == 2
    assert "seed differ" in capsys.readouterr().err


def test_a_test_set_that_changed_is_seen_when_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a step reads decides the result as much as its settings do."""
    write_rows(tmp_path / "rows.jsonl", contents(2000))
    write_rows(tmp_path / "test.jsonl", contents(5, seed=5))
    words = ("data.path=rows.jsonl", "shard_rows=20", "folder=out", "check=none", "steps=[decontaminate]", "step.decontaminate.against=[test.jsonl]")
    process = child(*words)
    wait_for("out/work/0-*/*/counts.json", 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    write_rows(tmp_path / "test.jsonl", contents(6, seed=6))
    assert prepare(*words, "resume=auto") == 2
    assert "made_of differ" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", contents(3000))
    process = child("data.path=rows.jsonl", "shard_rows=20", "folder=out", "check=none")
    wait_for("out/work/0-*/*/counts.json", 5, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "resume=auto" in said
    assert result("out")["status"] == "interrupted"
    assert prepare("data.path=rows.jsonl", "shard_rows=20", "folder=out", "check=none", "resume=auto") == 0


def interrupted(*args: Any, **words: Any) -> None:
    raise KeyboardInterrupt


def test_a_kill_after_the_artifact_was_written_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", contents(30))
    with monkeypatch.context() as patched:
        patched.setattr("largeforge.task.prepare.write_report", interrupted)
        assert prepare("data.path=rows.jsonl", "folder=out") == 130
    before = read_artifact(Path("out/artifact")).id
    assert prepare("data.path=rows.jsonl", "folder=out", "resume=auto") == 0
    assert read_artifact(Path("out/artifact"), full=True).id == before
    assert not Path("out/work").exists()
    capsys.readouterr()
    assert prepare("data.path=rows.jsonl", "folder=out", "resume=auto") == 0
    assert "done already" in capsys.readouterr().err


def test_rows_that_share_a_long_system_message_are_not_alike(tmp_path: Path) -> None:
    rows = contents(40)
    for one in rows:
        one["messages"].insert(0, {"role": "system", "content": "You are the assistant of a shop for shoes in Bergen. " * 12})
    write_rows(tmp_path / "rows.jsonl", rows)
    assert prepare("data.path=rows.jsonl", "folder=out", "steps=[normalise,near_duplicates,split]") == 0
    metrics = result("out")["metrics"]
    assert metrics["duplicates_near"] == 0
    assert len(open_data(Path("out/artifact")).splits) > 1


def test_a_plan_reads_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", contents(30))
    assert prepare("data.path=rows.jsonl", "plan=true") == 0
    said = capsys.readouterr()
    assert "30" in said.err + said.out
    assert not Path("outputs").exists()
