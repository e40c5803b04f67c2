"""Asks a server for many answers at once and times each: a process of its own, so that what it costs is not the server's event loop.

Reads a job as JSON from its standard input and writes what was found as JSON. Light on purpose, since on a small machine it shares the cores with what
it measures: uvloop, a parser in C, and what a stream says is read only after the last answer has come.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import resource
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

FIRST = re.compile(rb'"(?:content|text)":\s*"[^"]')  # something was said: not the piece that tells the role alone


class Answer(asyncio.Protocol):
    """One connection, kept alive; one answer at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.complete: asyncio.Future[None] | None = None
        self.begin()

    def begin(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.first_s = 0.0
        self.status = 0
        self.whole = False
        self.stays = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's, which is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.lost = True
            self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.wake()

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        if not self.first_s and FIRST.search(data if len(self.parts) == 1 else b"".join(self.parts)):
            self.first_s = time.perf_counter()

    def on_message_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.whole = True
        self.stays = self.parser.should_keep_alive()
        self.wake()

    def wake(self) -> None:
        if self.complete is not None and not self.complete.done():
            self.complete.set_result(None)


class Load:
    """So many clients, each of which asks again as soon as it has been answered."""

    def __init__(self, job: dict[str, Any]) -> None:
        place = urlsplit(job["url"])
        self.host, self.port = place.hostname, place.port
        path = place.path.encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in job.get("headers", {}).items()).encode()
        head = b"POST %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\n%sContent-Length: " % (path, str(self.host).encode(), self.port, lines)
        self.asked = [head + b"%d\r\n\r\n" % len(body) + body for body in (text.encode() for text in job["bodies"])]
        self.clients, self.requests, self.seconds = job["clients"], job.get("requests") or 0, job.get("seconds") or 0.0
        self.timeout_s = job["timeout_s"]
        self.next = 0
        self.until_s = 0.0
        self.found: list[tuple[int, float, float, float, int, bool, list[bytes]]] = []

    async def connect(self) -> Answer:
        loop = asyncio.get_running_loop()
        _, protocol = await asyncio.wait_for(loop.create_connection(Answer, self.host, self.port), self.timeout_s)
        return protocol

    def more(self) -> bool:
        return self.next < self.requests if self.requests else time.perf_counter() < self.until_s

    async def client(self, answer: Answer, gate: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        await gate.wait()
        while self.more():
            number, self.next = self.next, self.next + 1
            if answer.lost or not answer.stays:
                if answer.transport is not None:
                    answer.transport.close()
                try:
                    answer = await self.connect()
                except (OSError, asyncio.TimeoutError):
                    now = time.perf_counter()
                    self.found.append((number, now, 0.0, now, 0, False, []))
                    continue
            answer.begin()
            answer.complete = loop.create_future()
            assert answer.transport is not None
            start_s = time.perf_counter()
            answer.transport.write(self.asked[number % len(self.asked)])
            timer = loop.call_later(self.timeout_s, answer.wake)
            await answer.complete
            timer.cancel()
            end_s = time.perf_counter()
            if not answer.whole:
                answer.transport.abort()
                answer.lost = True
            self.found.append((number, start_s, answer.first_s, end_s, answer.status, answer.whole, answer.parts))
        if answer.transport is not None:
            answer.transport.close()

    async def run(self) -> float:
        """Ask; return the second at which it began."""
        gate = asyncio.Event()
        answers: list[Answer] = []
        for start in range(0, self.clients, 100):  # a listening socket's queue is short
            answers += await asyncio.gather(*(self.connect() for _ in range(min(100, self.clients - start))))
        tasks = [asyncio.ensure_future(self.client(answer, gate)) for answer in answers]
        begin_s = time.perf_counter()
        self.until_s = begin_s + self.seconds
        gate.set()
        await asyncio.gather(*tasks)
        return begin_s


def read(parts: list[bytes]) -> dict[str, Any]:
    """What an answer said, of a stream or a whole one: text, counted tokens, why it ended, error."""
    data = b"".join(parts)
    told: dict[str, Any] = {"text": "", "prompt_tokens": 0, "answer_tokens": 0, "finished": False, "error": ""}
    stream = data.startswith((b"data:", b":", b"event:"))
    for line in [one[5:].strip() for one in data.split(b"\n") if one.startswith(b"data:")] if stream else [data]:
        if line == b"[DONE]":
            told["finished"] = True
            continue
        try:
            found = json.loads(line)
        except ValueError:
            told["error"] = told["error"] or "not JSON"
            continue
        if not isinstance(found, dict):
            continue
        if error := found.get("error") or ("detail" in found and {"code": "detail"}):
            told["error"] = (str(error.get("code") or error.get("type") or "error") if isinstance(error, dict) else "error")[:80]
        for choice in found.get("choices") or ():
            said = (choice.get("delta") or choice.get("message") or {}).get("content") or choice.get("text")
            told["text"] += said or ""
            told["finished"] = told["finished"] or bool(choice.get("finish_reason"))
        if usage := found.get("usage"):
            told |= {"prompt_tokens": usage.get("prompt_tokens", 0), "answer_tokens": usage.get("completion_tokens", 0)}
    return told


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    job = json.load(sys.stdin)
    load = Load(job)
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin_s = uvloop.run(load.run())
    after = resource.getrusage(resource.RUSAGE_SELF)
    answers = []
    for number, start_s, first_s, end_s, status, whole, parts in sorted(load.found, key=lambda one: one[0]):
        told = read(parts) if parts else {"text": "", "prompt_tokens": 0, "answer_tokens": 0, "finished": False, "error": ""}
        # halves of a character: some servers say U+FFFD, as `generate` does, others nothing
        told["text_hash"] = hashlib.sha256(str(told["text"]).replace("\ufffd", "").encode()).hexdigest()[:16]
        if not job.get("texts"):
            del told["text"]
        times = {"start_s": start_s - begin_s, "first_s": (first_s or end_s) - begin_s, "end_s": end_s - begin_s}
        answers.append({"number": number, "status": status, "whole": whole, **times, **told})
    json.dump({"answers": answers, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}, sys.stdout)


if __name__ == "__main__":
    main()
