"""task=generate through the real entry point: rows, lineage, journal, budget, a teacher that fails, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from largeforge.artifact import Artifact, read_artifact
from largeforge.config.compose import compose
from largeforge.data import audit
from largeforge.data.shards import open_data
from largeforge.run import execute
from tests.data.generator.scripted import domain_file
from tests.engine.openai_server import OpenAIServer, Trouble, openai_server  # noqa: F401  (a fixture)

Runner = Callable[..., tuple[int, dict[str, Any]]]
ROOT = Path(__file__).resolve().parents[2]


def say(payload: dict[str, Any]) -> str:
    """A question for every request for one, an answer to every question; the same for the same request."""
    last = payload["messages"][-1]["content"]
    if last.startswith("Ask about"):
        return f"What is made of {last.split()[-1]} in the year {payload.get('seed', 0) % 1000}?"
    return f"Many things are made of {last.split()[4]}, as everybody knows."


@pytest.fixture
def generate(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run task=generate; returns the exit code and result.json. The first argument names the run's folder."""
    monkeypatch.chdir(tmp_path)

    def go(folder: str, *words: str) -> tuple[int, dict[str, Any]]:
        code = execute(compose(["task=generate", f"folder={folder}", *words]))
        result = tmp_path / folder / "result.json"
        return code, json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}

    return go


@pytest.fixture
def asking(tmp_path: Path, openai_server: OpenAIServer) -> list[str]:  # noqa: F811
    """The words that ask the server's model for pairs."""
    openai_server.say = say
    words = ["generator=instruct", f"generator.domain={domain_file(tmp_path)}", "generator.similarity=1.0", "generator.round=8"]
    return [*words, "engine=remote", f"engine.url={openai_server.url}", "engine.in_flight=4", "engine.retries=0", "seed=3"]


def artifact(folder: Path) -> Artifact:
    return read_artifact(folder / "artifact", kind="data", full=True)


def test_templates_become_an_artifact(generate: Runner, tmp_path: Path) -> None:
    """Proves SR-F-012, SYS-F-007: rows of a template set, each traced to its template, the set's hash among the sources, the log whole; again the same id."""
    code, result = generate("a", "generator.templates=arithmetic", "generator.num_rows=40")
    assert (code, result["status"], result["metrics"]["rows_kept"]) == (0, "done", 40.0)
    data = open_data(tmp_path / "a" / "artifact")
    assert data.splits == {"train": 40} and data.kind == "messages"
    row = next(data.rows("train"))
    assert row.lineage["generator"] == "template" and row.lineage["template"].startswith("arithmetic/") and row.lineage["parameters"] == {"seed": 0, "draw": 0}
    assert datetime.fromisoformat(row.lineage["time"]).tzinfo is not None
    assert [(source.kind, source.name) for source in data.sources] == [("templates", "arithmetic")] and len(data.sources[0].sha256) == 64
    assert [entry["event"] for entry in audit.read(data.folder)] == ["generated"]
    time.sleep(1.1)  # times in the lineage differ, and are outside the id
    generate("b", "generator.templates=arithmetic", "generator.num_rows=40")
    assert artifact(tmp_path / "b").id == artifact(tmp_path / "a").id
    assert (tmp_path / "a" / "recipe.lock.yaml").is_file() and "rows_kept" in (tmp_path / "a" / "report.md").read_text()
    generate("c", "generator.templates=arithmetic", "generator.num_rows=40", "seed=1")
    assert artifact(tmp_path / "c").id != artifact(tmp_path / "a").id


def test_one_may_bring_ones_own(generate: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set of the user's own by path; one that has too few rows ends with exit code 2 and the number there is, and leaves no artifact."""
    (tmp_path / "own.yaml").write_text("name: own\ndescription: x\nslots: {a: {type: int, min: 1, max: 9}}\ntemplates: [{id: x, text: 'say {{ a }}'}]\n")
    code, _ = generate("few", "generator.templates=own.yaml", "generator.num_rows=10")
    assert code == 2 and "9 distinct rows" in capsys.readouterr().err
    assert not (tmp_path / "few" / "artifact").exists()
    assert generate("own", "generator.templates=own.yaml", "generator.num_rows=9")[0] == 0
    assert open_data(tmp_path / "own" / "artifact").kind == "text"


def test_a_teacher_is_asked(generate: Runner, tmp_path: Path, asking: list[str], openai_server: OpenAIServer, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """Proves SYS-F-001, SYS-F-005, SYS-F-007: pairs of a remote teacher under the user's own prompts, with who answered and how."""
    code, result = generate("a", *asking, "generator.num_rows=12", "engine.model=tiny", "engine.temperature=0.5", "engine.max_tokens=40")
    assert (code, result["status"]) == (0, "done")
    rows = list(open_data(tmp_path / "a" / "artifact").rows("train"))
    assert len(rows) == 12
    assert rows[0].lineage["teacher"]["name"].startswith("tiny") and "time" in rows[0].lineage
    assert rows[0].lineage["parameters"]["answer_temperature"] == 0.5
    assert {payload["max_tokens"] for payload in openai_server.asked} == {40}
    assert {payload["temperature"] for payload in openai_server.asked} == {0.8, 0.5}
    metrics = result["metrics"]
    assert metrics["rows_in"] == metrics["rows_kept"] + metrics["rows_rejected"] and metrics["tokens_per_s"] > 0
    assert "kept" in capsys.readouterr().err


def test_what_goes_wrong_is_counted_and_told(
    generate: Runner, tmp_path: Path, asking: list[str], openai_server: OpenAIServer, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    """Proves SYS-F-003: answers that are malformed, empty or refused are counted by reason, told, listed, and never rows."""
    openai_server.trouble.extend([Trouble(body="{no JSON"), None, Trouble(status=400, body='{"error": {"message": "too rude"}}'), None])
    seen: list[int] = []

    def sometimes(payload: dict[str, Any]) -> str:
        seen.append(1)
        return "" if len(seen) == 1 else say(payload)

    openai_server.say = sometimes
    code, result = generate("a", *asking, "generator.num_rows=8", "engine.in_flight=1")
    metrics = result["metrics"]
    assert code == 0
    assert (metrics["rejected_malformed"], metrics["rejected_refused"], metrics["rejected_empty"], metrics["rows_kept"]) == (1, 1, 1, 8)
    listed = [json.loads(line) for line in (tmp_path / "a" / "artifact" / "about" / "dropped.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in listed) == {"malformed": 1, "refused": 1, "empty": 1}
    assert any("too rude" in line["detail"] for line in listed)
    table = capsys.readouterr().err
    assert all(word in table for word in ("malformed", "refused", "empty"))


def test_a_teacher_that_is_down(
    generate: Runner, tmp_path: Path, asking: list[str], openai_server: OpenAIServer, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    """Nothing is written as rows; once it is up, the same command with resume=auto goes on, and nothing is paid for twice."""
    openai_server.trouble.extend([None] * 10)
    openai_server.always = Trouble(cut=True)
    code, result = generate("a", *asking, "generator.num_rows=12")
    said = capsys.readouterr().err
    assert code == 2 and result["status"] == "failed" and "resume=auto" in said
    assert not (tmp_path / "a" / "artifact").exists()
    assert openai_server.num_answered == 10
    openai_server.always = None
    assert generate("a", *asking, "generator.num_rows=12", "resume=auto")[0] == 0
    total = openai_server.num_answered
    assert generate("b", *asking, "generator.num_rows=12")[0] == 0
    assert openai_server.num_answered == 2 * total, "the run that was interrupted asked for as many answers as the whole one"
    assert artifact(tmp_path / "a").id == artifact(tmp_path / "b").id


def test_a_kill_loses_nothing(generate: Runner, tmp_path: Path, asking: list[str], openai_server: OpenAIServer) -> None:  # noqa: F811
    """Proves SYS-F-007: killed with -9 after 21 answers and started again, no answer is asked for twice, and the artifact is that of an unkilled run."""
    words = [*asking, "generator.num_rows=30"]
    assert generate("whole", *words)[0] == 0
    total = openai_server.num_answered
    openai_server.trouble.extend([None] * 21)
    openai_server.always = Trouble(delay_s=600)  # what runs when the kill comes was never answered
    command = [sys.executable, "-m", "largeforge", "task=generate", "folder=killed", *words]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        journal = tmp_path / "killed" / "answers.jsonl"
        until(lambda: openai_server.num_answered == total + 21 and journal.is_file() and len(journal.read_bytes().splitlines()) == 22)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "artifact").exists()
    openai_server.always = None
    code, result = generate("killed", *words, "resume=auto")
    assert (code, result["status"], result["metrics"]["rows_kept"]) == (0, "done", 30.0)
    assert openai_server.num_answered == 2 * total
    assert artifact(tmp_path / "killed").id == artifact(tmp_path / "whole").id


def test_a_budget_ends_it_cleanly_and_a_larger_one_goes_on(
    generate: Runner, tmp_path: Path, asking: list[str], openai_server: OpenAIServer, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    """What there is becomes an artifact; status and message say why it is less; the same folder with more money ends where one run would have."""
    words = [*asking, "generator.num_rows=16", "engine.budget.prompt_price=1000000", "engine.budget.completion_price=1000000"]
    code, result = generate("a", *words, "engine.budget.cost=700")
    said = capsys.readouterr().err
    assert (code, result["status"]) == (0, "incomplete") and "budget of 700" in said and "resume=auto" in said
    assert 0 < result["metrics"]["rows_kept"] < 16 and result["metrics"]["cost"] >= 700
    first = artifact(tmp_path / "a")
    assert open_data(first.folder).splits["train"] == result["metrics"]["rows_kept"]
    answered = openai_server.num_answered
    code, result = generate("a", *words, "resume=auto")
    assert (code, result["status"], result["metrics"]["rows_kept"]) == (0, "done", 16.0)
    assert read_artifact(tmp_path / "a" / "artifact_before_1").id == first.id
    total = openai_server.num_answered
    generate("b", *words)
    assert openai_server.num_answered - total == total, f"{answered} answers were paid for once"
    assert artifact(tmp_path / "a").id == artifact(tmp_path / "b").id


def test_ctrl_c_keeps_what_is_there(
    generate: Runner, tmp_path: Path, asking: list[str], openai_server: OpenAIServer, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    """Exit code 130, the rows so far beside the journal, and the command that goes on."""

    def interrupt() -> None:
        until(lambda: openai_server.num_answered >= 30)
        os.kill(os.getpid(), signal.SIGINT)

    openai_server.delay_s = 0.02
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    code, result = generate("a", *asking, "generator.num_rows=400")
    watcher.join()
    said = capsys.readouterr().err
    assert (code, result["status"]) == (130, "interrupted")
    rows = (tmp_path / "a" / "rows_so_far.jsonl").read_text().splitlines()
    assert len(rows) == result["metrics"]["rows_kept"] > 0
    assert "resume=auto" in said and "folder=a" in said
    openai_server.delay_s = 0.0
    before = openai_server.num_answered
    code, result = generate("a", *asking, "generator.num_rows=24", "resume=auto")
    assert (code, result["metrics"]["rows_kept"]) == (0, 24.0) and openai_server.num_answered - before < 48 - 24


def test_the_bar_shows_kept_and_rejected(generate: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a", "generator.templates=manners", "generator.num_rows=100")[0] == 0
    assert "template: 100/100 rows" in (said := capsys.readouterr().err) and "kept 100 · rejected" in said


def test_the_plan_counts_requests_tokens_and_money(generate: Runner, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """2 requests for each of 50 rows, 8 at most for each; answers cost 2 a million tokens; nothing is asked, no folder is made."""
    words = ["generator=instruct", "engine=remote", "engine.url=http://127.0.0.1:9/v1", "generator.num_rows=50", "engine.max_tokens=100"]
    assert generate("a", *words, "engine.budget.completion_price=2", "engine.budget.tokens=9000", "plan=true")[0] == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("100, where everything is kept", "400, where as much", "10,000 at most", "0.0200 at most", "9,000 tokens"))
    assert not (tmp_path / "a").exists()
    assert generate("b", "plan=true")[0] == 0 and "no teacher is asked" in capsys.readouterr().out


def test_a_teacher_that_would_not_be_asked_is_refused(generate: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a", "generator=instruct", "engine=echo", "teacher=nano")[0] == 2
    assert "teacher=nano is for an engine in this process" in capsys.readouterr().err


def test_echo_makes_preferences_without_a_model(generate: Runner, tmp_path: Path) -> None:
    """A dry run of the whole way; an echo says the same every time, so that every prompt is a tie or has one answer only."""
    code, result = generate("a", "generator=preference", "engine=echo", "generator.prompts=arithmetic", "generator.score_by=length", "generator.num_rows=5")
    assert code == 2 and result["metrics"]["rejected_too_few_answers"] == 20.0


def until(true: Callable[[], bool]) -> None:
    """Wait for something, a minute at most."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
