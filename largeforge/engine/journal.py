"""A journal of answers, so that a kill loses none and none is paid for twice: append-only JSON lines.

A line is an answer under the hash of what was asked (messages, parameters, seed, engine) and the number of its occurrence,
for the same may be asked twice. What a kill left of a last line is dropped. Knows nothing about engines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from largeforge.chat import Answer, ChatRequest, TokenLogprob, Usage
from largeforge.errors import InputError

HEAD = {"kind": "answers", "schema_version": 1}
# What a request had when the first journals were written; fields that came later count where they are set, so that old journals are still found.
FIRST_FIELDS = ("messages", "max_tokens", "temperature", "top_p", "top_k", "seed")


@dataclass(frozen=True)
class Ticket:
    """What one request stands under: its hash, and how often it was asked before."""

    key: str
    occurrence: int


class Journal:
    """Keeps answers on disk, and where each stands in memory (about 200 bytes an answer); many threads may use it.

    Args:
        path: of the file; made where there is none.

    Raises:
        InputError: the file is no journal, is damaged before its last line, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[Ticket, tuple[int, int]] = {}
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._claim()
            self._end = self._read()
            os.ftruncate(self._file, self._end)  # a line that a kill cut short
            if self._end == 0:
                self._append(HEAD)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def ticket(self, engine: str, request: ChatRequest) -> Ticket:
        """Return what the next occurrence of this request stands under; asking in the same order gives the same tickets."""
        said = {name: value for name, value in asdict(request).items() if name in FIRST_FIELDS or value != getattr(ChatRequest, name)}
        asked = json.dumps([engine, said], sort_keys=True, ensure_ascii=True)
        key = hashlib.sha256(asked.encode()).hexdigest()[:32]
        with self._lock:
            occurrence = self._asked[key]
            self._asked[key] += 1
        return Ticket(key, occurrence)

    def find(self, ticket: Ticket) -> Answer | None:
        """Return the answer that stands under a ticket, None where there is none."""
        place = self._places.get(ticket)
        return None if place is None else _answer(json.loads(os.pread(self._file, place[1], place[0])))

    def write(self, ticket: Ticket, answer: Answer) -> None:
        """Append an answer; it is the kernel's when this returns, and outlives this process."""
        usage = answer.usage
        self._append(
            {
                "key": ticket.key,
                "occurrence": ticket.occurrence,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                **({"logprobs": [asdict(one) for one in answer.logprobs]} if answer.logprobs else {}),
            }
        )

    def close(self) -> None:
        """Let the file go; what was written stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back when the process ends, however it ends
        except BlockingIOError as fault:
            raise InputError(f"{self.path} is being written by another process.", next_step="wait until that run ends, or another folder=...") from fault

    def _read(self) -> int:
        """Learn where every answer stands; return where the last whole line ends."""
        end = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                self._learn(line, number, end)
                end += len(line)
        return end

    def _learn(self, line: bytes, number: int, start: int) -> None:
        try:
            found: dict[str, Any] = json.loads(line)
            if number == 1:
                if found != HEAD:
                    raise ValueError(f"the first line is not {json.dumps(HEAD)}")
                return
            self._note(found, start, len(line))
        except (ValueError, KeyError, TypeError) as fault:
            raise InputError(
                f"{self.path}:{number} is no line of a journal of answers ({fault}).", next_step="move that file away to ask everything again"
            ) from fault

    def _append(self, found: dict[str, Any]) -> None:
        line = (json.dumps(found, ensure_ascii=True) + "\n").encode()
        with self._lock:
            start, left = self._end, line
            try:
                while left:
                    left = left[os.pwrite(self._file, left, start + len(line) - len(left)) :]
            except OSError as fault:
                raise InputError(
                    f"{self.path} could not be written: {fault.strerror}.", next_step="make room there, then the same command with resume=auto"
                ) from fault
            self._end = start + len(line)
            if found is not HEAD:
                self._note(found, start, len(line))

    def _note(self, found: dict[str, Any], start: int, length: int) -> None:
        _answer(found)  # whole
        self._places[Ticket(found["key"], found["occurrence"])] = (start, length)


def _answer(found: dict[str, Any]) -> Answer:
    logprobs = tuple(TokenLogprob(one["token"], one["logprob"], tuple((token, logprob) for token, logprob in one["top"])) for one in found.get("logprobs", ()))
    return Answer(found["text"], found["finish_reason"], Usage(found["prompt_tokens"], found["completion_tokens"]), logprobs)
