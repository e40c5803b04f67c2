"""The journal: a kill -9 loses no answer and pays for none twice; torn lines, other files, two at once."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from largeforge.chat import Answer, ChatRequest, Message, TokenLogprob, Usage
from largeforge.engine.journal import Journal, Ticket
from largeforge.errors import InputError
from tests.engine.conftest import ask
from tests.engine.openai_server import OpenAIServer, openai_server, questions

__all__ = ["openai_server"]
ROOT = Path(__file__).parents[2]
SAID = Answer("naïve\n日本 😀\u2028", "stop", Usage(3, 4))


def child(server: OpenAIServer, path: Path, count: int, in_flight: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.engine.asking", server.url, str(path), str(count), str(in_flight)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def finished(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.splitlines()


def test_killed_and_started_again(openai_server: OpenAIServer, tmp_path: Path) -> None:
    """Killed with -9 three times at random points: every answer is had once, what was in flight at a kill at most twice, all equal an unkilled run's.

    The server counts: finished answers <= distinct requests + kills * in_flight, and nothing that the journal holds is asked again.
    """
    count, in_flight, chance = 60, 4, random.Random(7)
    openai_server.delay_s = 0.01
    unkilled = finished(child(openai_server, tmp_path / "whole.jsonl", count, in_flight))
    assert len(unkilled) == count and openai_server.num_answered == count
    openai_server.answered.clear()
    path = tmp_path / "answers.jsonl"
    paid: Counter[str] = Counter()
    for _ in range(3):
        before = openai_server.num_answered
        process = child(openai_server, path, count, in_flight)
        until = before + chance.randint(5, 14)
        while openai_server.num_answered < until and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        time.sleep(0.05)  # what the server was still sending
        kept = Counter(json.loads(line)["key"] for line in path.read_bytes().split(b"\n")[1:-1])
        assert paid <= kept and kept.total() >= openai_server.num_answered - in_flight * 3
        paid = kept
    asked_before = len(openai_server.asked)
    assert finished(child(openai_server, path, count, in_flight)) == unkilled
    assert len(openai_server.asked) - asked_before == count - paid.total()  # only what the journal did not hold
    assert count <= openai_server.num_answered <= count + 3 * in_flight
    nothing_asked = len(openai_server.asked)
    assert finished(child(openai_server, path, count, in_flight)) == unkilled and len(openai_server.asked) == nothing_asked


def test_the_same_twice_is_two_answers(tmp_path: Path) -> None:
    """Tickets differ by occurrence, and by everything that was asked, the engine too."""
    with Journal(tmp_path / "a") as journal:
        first, second = journal.ticket("e", ask("x")), journal.ticket("e", ask("x"))
        assert (first.key, first.occurrence, second.occurrence) == (second.key, 0, 1)
        others = [ask("y"), ask("x", seed=1), ask("x", temperature=0.1), ask("x", max_tokens=7), ask("x", top_p=0.5), ask("x", top_k=1)]
        system = ChatRequest((Message("system", "x"),))
        keys = [journal.ticket("e", other).key for other in [*others, system]] + [journal.ticket("f", ask("x")).key, first.key]
        assert len(set(keys)) == len(keys)
    with Journal(tmp_path / "a") as again:
        assert again.ticket("e", ask("x")) == first
    assert len({json.dumps(str(request)) for request in questions(10)}) == 8  # the requests of the kill test repeat themselves


def test_written_and_read_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "a") as journal:
        ticket = journal.ticket("e", ask("x"))
        assert journal.find(ticket) is None
        journal.write(ticket, SAID)
        assert journal.find(ticket) == SAID
    with Journal(tmp_path / "deep" / "a") as again:
        assert again.find(ticket) == SAID and again.find(Ticket(ticket.key, 1)) is None and len(again) == 1


def test_wherever_a_kill_cuts_it(tmp_path: Path) -> None:
    """Cut after any byte: whole lines are kept, the torn one is dropped and written over; the file is then as if nothing had been."""
    path = tmp_path / "a"
    tickets = [Ticket(f"{n:032x}", 0) for n in range(3)]
    with Journal(path) as journal:
        for ticket in tickets:
            journal.write(ticket, SAID)
    whole = path.read_bytes()
    ends = [0, *itertools.accumulate(len(line) for line in whole.splitlines(keepends=True))]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(path) as journal:
            assert len(journal) == max(0, sum(end <= size for end in ends) - 2)
            for ticket in tickets:
                if journal.find(ticket) is None:
                    journal.write(ticket, SAID)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])
    with Journal(path) as journal:
        journal.write(tickets[2], Answer("", "stop", Usage(0, 0)))  # shorter than what was torn
    assert path.read_bytes().endswith(b'"completion_tokens": 0}\n')  # and nothing of that is left for other readers
    with Journal(path) as journal:
        assert journal.find(tickets[2]) == Answer("", "stop", Usage(0, 0)) and len(journal) == 3


def test_what_is_no_journal(tmp_path: Path) -> None:
    """Another file, another version, a line that is damaged before the last: told with file and line, and left as it is."""
    path = tmp_path / "a"
    for text, where in [
        ('{"messages": []}\n', ":1"),
        ('{"kind": "answers", "schema_version": 1}\n{"key": 3}\n', ":2"),
        ('{"kind": "answers", "schema_version": 9}\n', ":1"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=f"{path}{where} is no line of a journal"):
            Journal(path)
        assert path.read_text() == text


def test_two_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "a"), pytest.raises(InputError, match="is being written by another process"):
        Journal(tmp_path / "a")
    with Journal(tmp_path / "a"):
        pass


def test_log_probabilities_are_kept(tmp_path: Path) -> None:
    """They were asked for and paid for; an answer without any stands there as it always did."""
    said = Answer("a b", "stop", Usage(3, 2), (TokenLogprob("a", -0.5, (("a", -0.5), ("c", -1.5))), TokenLogprob(" b", 0.0)))
    with Journal(tmp_path / "answers.jsonl") as journal:
        tickets = [journal.ticket("tiny", request) for request in questions(2)]
        journal.write(tickets[0], said)
        journal.write(tickets[1], SAID)
    with Journal(tmp_path / "answers.jsonl") as journal:
        assert [journal.find(ticket) for ticket in tickets] == [said, SAID]
    assert (tmp_path / "answers.jsonl").read_text().count("logprobs") == 1
