"""Clients that go away, as the engine sees it: milliseconds from the close of a socket until its blocks of the KV cache are free and its tokens stand still.

A client asks over a socket of its own through the door of task=serve and closes it: while its prompt is read, mid-stream, or while it waits for a whole
answer. From then on the engine is asked past the door, every two milliseconds, until it has nothing of that request: what the questions take is counted
too. 200 ms later it is asked once more, and not one token may have come. What it is asked:

- hf: `serve=engine` and `serve=door` as two commands, since nobody is told the key that one command has between them. /stats of the engine says what its
  batch holds now: requests, free blocks, and every token decoded, those for clients that have just left included.
- vllm: /metrics of vLLM behind the door, as one command starts both. Its gauges (num_requests_running and _waiting, kv_cache_usage_perc) are its
  scheduler's, and come with each step; one more step, empty or not, follows the one that a request was taken out in, so that they come down at once.
  Its counter of tokens is its API process's, which counts nothing more for a request that it has given up: of the two the gauges are later, and what is
  waited for. While a first prompt is read no step has ended, and the gauges say nothing yet: that the scheduler had it is told, afterwards and in
  the message that says it is gone, by the tokens looked for in the prefix cache. Where they do not come the client left too early, and asks again.

With 16 others that stream, tokens and blocks are the others' too: the number of requests in hf's batch has to come down, which a request leaves in the turn
that frees its blocks; and it must be the same 200 ms later.
"""

from __future__ import annotations

import http.client
import json
import random
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from largeforge.engine.vllm import MODULE, made_environment
from largeforge.process import free_port
from scripts.benches.serve_load import Measured, Reply, load, quantile
from scripts.benches.serve_servers import UP_TO_THE_END, Server, door, here, largeforge, ours, running
from scripts.benches.table import Row, Table

READING, STREAMING, WAITING = MOMENTS = ("before the first token", "mid-stream", "not streaming")
MOST_MS = 100.0
POLL_S, STILL_S, PATIENCE_S, REST_S = 0.002, 0.2, 3.0, 60.0
OTHERS = 16
CONTEXT = 2048  # of nano
LONG_PROMPT, SHORT_PROMPT, OTHERS_PROMPT = 1500, 100, 30  # tokens: the first takes long to read, the others do not
PIECES = (4, 40)  # of a stream that are read before it is left
WHILE_S = (0.1, 0.3)  # that a whole answer is waited for
READING_S = (0.01, 0.04)  # that a prompt has been on its way to an engine that says nothing while it reads
TRIES = 6  # for each client that has to leave at a moment
VLLM = "/metrics?name[]=" + "&name[]=".join(
    ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total", "vllm:kv_cache_usage_perc", "vllm:prefix_cache_queries_total")
)


@dataclass(frozen=True)
class Seen:
    """What an engine says of itself.

    Args:
        active: requests that it holds blocks for.
        waiting: requests that it has not begun.
        decoded: tokens of answers so far.
        held: blocks, or the share of the KV cache, that are not free.
        begun: tokens of prompts that its scheduler has begun so far; 0 where it does not say.
    """

    active: int
    waiting: int
    decoded: float
    held: float
    begun: float = 0.0


@dataclass(frozen=True)
class Left:
    """A client that went away.

    Args:
        ms: from its close until the engine had nothing of it; infinite where it still had after PATIENCE_S.
        still: whether nothing came of it afterwards.
        tokens_after: decoded after its close, for whomever.
    """

    ms: float
    still: bool
    tokens_after: float


@dataclass
class Engine:
    """An engine that is asked past its door.

    Args:
        name: as the table has it.
        door: whom clients ask.
        url: the engine's own.
        path: of the question.
        read: what its answer says.
        key: that it asks for.
        says_at_once: whether a request is seen while its prompt is read.
    """

    name: str
    door: Server
    url: str
    path: str
    read: Callable[[bytes], Seen]
    key: str = ""
    says_at_once: bool = True
    _kept: http.client.HTTPConnection | None = field(default=None, repr=False)

    def look(self) -> Seen:
        """Ask it, over a connection that is kept. Raises RuntimeError for another answer than 200."""
        for place in range(2):
            connection = self._kept = self._kept or http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
            try:
                connection.request("GET", self.path, headers={"Authorization": f"Bearer {self.key}"})
                response = connection.getresponse()
                body = response.read()
            except (http.client.HTTPException, OSError):  # it closes what was idle for some seconds
                self.close()
                if place:
                    raise
                continue
            if response.status == 200:
                return self.read(body)
            raise RuntimeError(f"{self.name}: {self.path} was answered with {response.status}: {body[:200]!r}")
        raise AssertionError

    def until(self, holds: Callable[[Seen], bool], seconds: float) -> Seen | None:
        """Look every two milliseconds until something holds; None where it does not in time."""
        end_s = time.perf_counter() + seconds
        while not holds(seen := self.look()):
            if time.perf_counter() > end_s:
                return None
            time.sleep(POLL_S)
        return seen

    def close(self) -> None:
        """Close that connection."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def question_ms(self) -> float:
        """How long it takes to be told, in the median."""
        times = []
        for _ in range(50):
            start_s = time.perf_counter()
            self.look()
            times.append(1000 * (time.perf_counter() - start_s))
        return statistics.median(times)


def measure(folder: Path, *, num: int) -> int:
    """Have `num` clients leave at each moment; 1 where a target is missed."""
    found: dict[str, list[Left]] = {}
    notes = []
    with hf(folder / "hf") as engine:
        notes.append(f"One question to hf at rest takes {engine.question_ms():.1f} ms.")
        for moment in MOMENTS:
            found[f"hf, {moment}"] = leave_often(engine, moment, num)
        with Others(engine) as others:
            for moment in MOMENTS:
                found[f"hf, {OTHERS} others stream, {moment}"] = leave_often(engine, moment, num, others)
    if made_environment() is None:
        notes.append("vllm is left out: there is no environment of it here (scripts/environments vllm).")
    else:
        with vllm(folder / "vllm") as engine:
            notes.append(f"One question to vllm at rest takes {engine.question_ms():.1f} ms.")
            for moment in MOMENTS:
                found[f"vllm, {moment}"] = leave_often(engine, moment, num)
    return told(found, num, [reply for wave in others.waves for reply in wave.replies], notes)


def told(found: dict[str, list[Left]], num: int, answers: Sequence[Reply], notes: list[str]) -> int:
    """Publish what was measured; the exit code."""
    title = f"{num} clients that go away at each moment, nano in fp32: from the close until the engine has nothing of it, 95th percentiles"
    table = Table("serve_leaving", title, ours="LargeForge", peer="allowed")
    for name, left in found.items():
        times = [one.ms for one in left]
        table.rows.append(Row(name, quantile(times, 0.95), MOST_MS, "ms", at_most=1.0))
        spread = f"{name}: median {statistics.median(times):.1f}, longest {max(times):.1f} ms"
        after = "" if "others" in name else f"; at most {max(one.tokens_after for one in left):.0f} tokens after the close"
        table.notes.append(f"{spread}{after}.")
    every = [one for left in found.values() for one in left]
    table.rows.append(Row(f"nothing more of them {1000 * STILL_S:.0f} ms later", sum(one.still for one in every), len(every), "clients", at_least=1.0))
    table.rows.append(Row("answers of the others that were whole", sum(reply.good for reply in answers), len(answers), "answers", at_least=1.0))
    table.notes += notes
    table.details = {name: [asdict(one) for one in left] for name, left in found.items()}
    table.publish()
    return int(any(row.met is False for row in table.rows))


# ---- clients that go away ----


def leave_often(engine: Engine, moment: str, num: int, others: Others | None = None) -> list[Left]:
    """Have clients leave one after the other, two to warm up. Raises RuntimeError where too few of them did at that moment."""
    chance = random.Random(f"{engine.name} {moment} {others is not None}")
    found: list[Left] = []
    for trial in range(TRIES * (num + 2)):
        if others is not None:
            others.go_on()
        left = leave(engine, moment, chance, others=OTHERS if others is not None else 0)
        found += [left] if left is not None else []
        if len(found) == num + 2:
            times = [one.ms for one in found[2:]]
            spread = f"p50 {quantile(times, 0.5):.1f} ms, p95 {quantile(times, 0.95):.1f} ms; {trial + 1 - len(found)} asked again"
            print(f"{engine.name}, {moment}{f', {OTHERS} others' if others else ''}: {spread}", file=sys.stderr)
            return found[2:]
    raise RuntimeError(f"{engine.name}, {moment}: only {len(found)} of {TRIES * (num + 2)} clients left at that moment.")


def leave(engine: Engine, moment: str, chance: random.Random, *, others: int) -> Left | None:
    """Ask, go away, and look at the engine until it has nothing of it; None where it was another moment, or one of the others ended meanwhile."""
    prompt = [chance.randrange(300, 4000) for _ in range(LONG_PROMPT if moment == READING else SHORT_PROMPT)]  # no cache knows its first block
    max_tokens = CONTEXT - 8 - len(prompt)
    body = {"prompt": prompt, "max_tokens": max_tokens, "stream": moment == STREAMING}
    unseen = moment == READING and not engine.says_at_once
    before = engine.until(lambda seen: seen.active == others and not seen.waiting and bool(others or not seen.held), REST_S)
    if before is None:
        raise RuntimeError(f"{engine.name} does not come to rest: {engine.look()}")

    def is_gone(seen: Seen) -> bool:
        if others:
            return seen.active <= others
        return not (seen.active or seen.waiting or seen.held) and (not unseen or seen.begun > before.begun)

    # ---- it asks, and leaves ----
    with closing(sent(engine.door, body)) as client:
        if not unseen and engine.until(lambda seen: seen.active > others, PATIENCE_S) is None:
            raise RuntimeError(f"{engine.name} did not begin: {engine.look()}")
        if moment == STREAMING:
            read_pieces(client, chance.randint(*PIECES))
        else:
            time.sleep(chance.uniform(*(READING_S if unseen else WHILE_S if moment == WAITING else (0.0, READING_S[1]))))
        at_close = engine.look()
        if moment != STREAMING and select.select([client], [], [], 0)[0]:
            return None  # something has come
        start_s = time.perf_counter()
        client.close()

    # ---- what the engine has of it ----
    gone = engine.until(is_gone, PATIENCE_S)
    ms = 1000 * (time.perf_counter() - start_s)
    time.sleep(STILL_S)
    later = engine.look()
    tokens_after = later.decoded - at_close.decoded
    if gone is None:
        return None if unseen and later.begun == before.begun else Left(float("inf"), False, tokens_after)
    if others:
        return Left(ms, True, tokens_after) if gone.active == later.active == others else None
    ended_by_itself = later.decoded - before.decoded >= max_tokens
    return Left(ms, later.decoded == gone.decoded and is_gone(later) and not ended_by_itself, tokens_after)


def sent(server: Server, body: dict[str, Any]) -> socket.socket:
    """A request under way, on a socket of its own."""
    host, _, port = urlsplit(server.url).netloc.partition(":")
    client = socket.create_connection((host, int(port)), timeout=30)
    data = json.dumps({"model": server.model, "ignore_eos": True, "temperature": 1, **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    return client


def read_pieces(client: socket.socket, number: int) -> None:
    """Read so many events of a stream. Raises RuntimeError where it is none, or ends."""
    said = b""
    while said.count(b"data: {") < number:
        piece = client.recv(65536)
        said += piece
        if not piece or b"[DONE]" in said or not said.startswith(b"HTTP/1.1 200"[: len(said)]):
            raise RuntimeError(f"No stream that goes on: {said[:300]!r}")


class Others:
    """Clients that stream long answers meanwhile: all begin at once, and all begin anew when the first of them has ended.

    Args:
        engine: which answers them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waves: list[Measured] = []
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Others:
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread is not None:
            self.thread.join()

    def go_on(self) -> None:
        """Return when all of them are being answered. Raises RuntimeError where they are not."""
        if self.thread is not None and self.engine.look().active >= OTHERS:
            return
        if self.thread is not None:
            self.thread.join()
        self.thread = threading.Thread(target=self.ask, daemon=True)
        self.thread.start()
        if self.engine.until(lambda seen: seen.active == OTHERS, REST_S) is None:
            raise RuntimeError(f"{OTHERS} others asked, and there is {self.engine.look()}")

    def ask(self) -> None:
        server, chance = self.engine.door, random.Random(len(self.waves))
        words = {"model": server.model, "max_tokens": CONTEXT - 8 - OTHERS_PROMPT, "stream": True, "temperature": 1, **UP_TO_THE_END}
        bodies = [{**words, "prompt": [chance.randrange(300, 4000) for _ in range(OTHERS_PROMPT)]} for _ in range(OTHERS)]
        self.waves.append(load(server.url, bodies, clients=OTHERS, requests=OTHERS, path="/v1/completions"))


# ---- engines that can be asked ----


@contextmanager
def hf(folder: Path) -> Iterator[Engine]:
    """Its engine server, and a door before it."""
    port = free_port()
    words = ["task=serve", "serve=engine", "model=nano", "model.dtype=fp32", f"serve.port={port}", f"folder={folder / 'run'}"]
    with ExitStack() as stack:
        server = stack.enter_context(running("LargeForge's engine", largeforge(*words), folder, port=port, ready="/stats", model="nano", environment=here()))
        through = stack.enter_context(door(folder / "door", server))
        yield stack.enter_context(closing(Engine("hf", through, server.url, "/stats", stats)))


def stats(body: bytes) -> Seen:
    found = json.loads(body)
    return Seen(found["active"], found["waiting"], found["decoded_tokens"], found["total_blocks"] - found["free_blocks"])


@contextmanager
def vllm(folder: Path) -> Iterator[Engine]:
    """vLLM behind the door; its port stands in its command line, its key in its environment."""
    with ours(folder, "engine=vllm", "model=nano", "model.dtype=fp32", "serve.prove=false", model="nano", name="LargeForge's door, vLLM") as server:
        (api,) = [one for one in server.family() if MODULE in one.cmdline()]
        words = api.cmdline()
        url, key = f"http://127.0.0.1:{words[words.index('--port') + 1]}", api.environ()["VLLM_API_KEY"]
        with closing(Engine("vllm", server, url, VLLM, metrics, key=key, says_at_once=False)) as engine:
            yield engine


def metrics(body: bytes) -> Seen:
    found = dict.fromkeys(("num_requests_running", "num_requests_waiting", "generation_tokens_total", "kv_cache_usage_perc", "prefix_cache_queries_total"), 0.0)
    for line in body.decode().splitlines():
        name = line.partition("{")[0].removeprefix("vllm:")
        if name in found:
            found[name] += float(line.rpartition(" ")[2])
    running, waiting, decoded, held, begun = found.values()
    return Seen(int(running), int(waiting), decoded, held, begun)
