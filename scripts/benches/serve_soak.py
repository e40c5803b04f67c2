"""Mixed load on nano for half an hour with a fault every 30 seconds: what is answered, how long it is away, and whether anything grows.

Streams and whole answers, conversations and completions, long and short, over HTTP and WebSocket. In turn the engine is killed (-9: its worker, then its
whole server), 200 clients connect and leave at once, and bodies come that are no requests. A probe asks for one token four times a second: the
seconds in which it is not answered within two seconds are the time the service was down.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from scripts.benches.serve_servers import MIB, Server, ours
from scripts.benches.table import Row, Table

FAULT_S = 30.0
PROBE_S, PATIENCE_S = 0.25, 2.0
ANSWER_S = 60.0  # longer is no answer
PAUSE_S = 0.05  # of a client between two requests: the load is mixed, not the most that goes
HTTP_CLIENTS, SOCKETS, STORM = 8, 2, 200
MOST_RECOVERY_S, GROWTH, DAY_S = 30.0, 1.15, 86_400.0
WORDS = ("bird", "tree", "river", "stone", "light", "music", "paper", "garden", "winter", "morning")
MALFORMED = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b'{"model": "nano"}',
    b'{"model": "nano", "messages": "hello"}',
    b'{"model": "nano", "messages": [{"role": "user"}]}',
    b'{"model": "nano", "messages": [{"role": "user", "content": "a"}], "max_tokens": "many"}',
    b'{"model": "nano", "messages": [{"role": "user", "content": "a"}], "temperature": -1}',
    b'{"model": "nano", "messages": [{"role": "user", "content": "a"}], "n": 1000000}',
    b'{"model": "another", "messages": [{"role": "user", "content": "a"}]}',
    b'{"model": "nano", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b'{"model": "nano", "messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b"\x00" * 4096,
    b'{"model": "nano", "messages": [{"role": "user", "content": "' + b"word " * 20_000 + b'"}]}',
)


@dataclass
class Tally:
    """What became of requests.

    Args:
        answered: to their end, by kind.
        errors: told as such, by type.
        silent: that ended without a word, by how.
        refused: malformed ones, by status and whether in OpenAI's shape.
        wrongly: malformed ones that were not refused as they should be.
        probes: second, and whether it was answered in time.
        recoveries: seconds from each kill to the first answer.
        never: kills after which no answer came.
        sizes: what the processes took, from time to time.
        engines: memory of the engine's processes, at the same age of each engine.
        before: the same just before each kill.
    """

    answered: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    silent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrongly: Counter[str] = field(default_factory=Counter)
    probes: list[tuple[float, bool]] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    never: int = 0
    kills: int = 0
    sizes: list[dict[str, float]] = field(default_factory=list)
    engines: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    storms: int = 0

    @property
    def asked(self) -> int:
        """Requests that deserved an answer and whose client stayed."""
        return self.answered.total() + self.errors.total() + self.silent.total()

    @property
    def down_s(self) -> float:
        return PROBE_S * sum(not up for _, up in self.probes)


def measure(folder: Path, *, minutes: float) -> int:
    """Run the soak; 1 where one request ended in silence, recovery took too long, something was not refused, or memory grew."""
    tally = Tally()
    with ours(folder / "server", "model=nano", "model.dtype=fp32", model="nano") as server:
        soak = Soak(server, tally, minutes * 60)
        asyncio.run(soak.run())
    return told(tally, minutes)


class Soak:
    """The clients, the faults and the probes of one soak.

    Args:
        server: under load.
        tally: what is counted.
        seconds: how long.
    """

    def __init__(self, server: Server, tally: Tally, seconds: float) -> None:
        self.server, self.tally, self.seconds = server, tally, seconds
        self.begin_s = time.monotonic()
        self.over = False
        self.engine_since_s = self.begin_s
        self.background: set[asyncio.Task[Any]] = set()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.begin_s

    async def run(self) -> None:
        """Everything at once until the time is over; what runs then is waited for."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            self.session = session
            kinds = (self.chat_stream, self.chat_whole, self.completion_stream, self.completion_whole)
            clients = [self.client(kinds[number % 4], number) for number in range(HTTP_CLIENTS)] + [self.socket(number) for number in range(SOCKETS)]
            running = [asyncio.ensure_future(one) for one in clients]
            watching = [asyncio.ensure_future(one) for one in (self.probes(), self.sizes(), self.faults())]
            await asyncio.sleep(self.seconds)
            self.over = True
            for one in watching:
                one.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            for fault in await asyncio.gather(*running, return_exceptions=True):
                if isinstance(fault, Exception):
                    raise fault
            if self.background:
                await asyncio.wait(self.background, timeout=ANSWER_S)

    def aside(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    # ---- clients ----

    async def client(self, ask: Callable[[random.Random], Coroutine[Any, Any, None]], number: int) -> None:
        """Ask again and again."""
        chance = random.Random(number)
        while not self.over:
            try:
                await ask(chance)
            except asyncio.TimeoutError:
                self.tally.silent[f"{ask.__name__}: no end within {ANSWER_S:.0f} s"] += 1
            except (aiohttp.ClientError, OSError) as fault:
                self.tally.silent[f"{ask.__name__}: {type(fault).__name__}"] += 1
            await asyncio.sleep(PAUSE_S)

    def words(self, chance: random.Random) -> str:
        return " ".join(chance.choices(WORDS, k=chance.choice((3, 10, 40, 150))))

    def body(self, chance: random.Random, *, stream: bool) -> dict[str, Any]:
        return {"model": "nano", "max_tokens": chance.choice((4, 16, 64)), "ignore_eos": True, "stream": stream, "temperature": chance.choice((0.0, 1.0))}

    def conversation(self, chance: random.Random) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self.words(chance)}]}

    async def chat_stream(self, chance: random.Random) -> None:
        await self.stream("/v1/chat/completions", self.body(chance, stream=True) | self.conversation(chance))

    async def completion_stream(self, chance: random.Random) -> None:
        await self.stream("/v1/completions", self.body(chance, stream=True) | {"prompt": self.words(chance)})

    async def chat_whole(self, chance: random.Random) -> None:
        await self.whole("/v1/chat/completions", self.body(chance, stream=False) | self.conversation(chance))

    async def completion_whole(self, chance: random.Random) -> None:
        await self.whole("/v1/completions", self.body(chance, stream=False) | {"prompt": self.words(chance)})

    async def whole(self, path: str, body: dict[str, Any]) -> None:
        async with self.session.post(self.server.url + path, json=body) as response:
            found = json.loads(await response.read())
            if response.status == 200 and found["choices"][0]["finish_reason"]:
                self.tally.answered["whole"] += 1
            else:
                self.tally.errors[kind_of(found, response.status)] += 1

    async def stream(self, path: str, body: dict[str, Any]) -> None:
        async with self.session.post(self.server.url + path, json=body) as response:
            if response.status != 200:
                self.tally.errors[kind_of(json.loads(await response.read()), response.status)] += 1
                return
            error, done = "", False
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: ") and b'"error"' in line and "error" in (found := json.loads(line[6:])):
                    error = kind_of(found, "stream")
            if error:
                self.tally.errors[error] += 1
            elif done:
                self.tally.answered["stream"] += 1
            else:
                self.tally.silent["stream: closed without an end"] += 1

    async def socket(self, number: int) -> None:
        """Requests over one WebSocket, one at a time; opened again where it closes, and now and then a frame that is no request."""
        chance, name = random.Random(1000 + number), 0
        while not self.over:
            try:
                async with self.session.ws_connect(self.server.url.replace("http", "ws") + "/v1/ws", max_msg_size=2**24) as socket:
                    while not self.over:
                        name += 1
                        stream = bool(name % 2)
                        request = self.body(chance, stream=stream) | self.conversation(chance)
                        await socket.send_json({"id": str(name), "type": "chat.completions", "request": request})
                        how = await asyncio.wait_for(until_done(socket, str(name)), ANSWER_S)
                        if how == "":
                            self.tally.answered["WebSocket"] += 1
                        elif how == "closed":
                            self.tally.silent["WebSocket: closed"] += 1
                            break
                        else:
                            self.tally.errors[how] += 1
                        await asyncio.sleep(PAUSE_S)
            except asyncio.TimeoutError:
                self.tally.silent[f"WebSocket: no end within {ANSWER_S:.0f} s"] += 1
            except (aiohttp.ClientError, OSError) as fault:
                self.tally.silent[f"WebSocket: {type(fault).__name__}"] += 1
                await asyncio.sleep(PAUSE_S)

    # ---- probes ----

    async def probe(self) -> bool:
        """Whether one token comes in time."""
        body = {"model": "nano", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        try:
            async with self.session.post(self.server.url + "/v1/chat/completions", json=body, timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as response:
                await response.read()
                return response.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return False

    async def probes(self) -> None:
        async def one(at_s: float) -> None:
            self.tally.probes.append((at_s, await self.probe()))

        next_s = self.now_s
        while True:
            self.aside(one(next_s))
            next_s += PROBE_S
            await asyncio.sleep(max(0.0, next_s - self.now_s))

    async def sizes(self) -> None:
        """Memory, threads and open files of the door and of the engine, every two seconds."""
        counted = 0.0  # start of the engine that was looked at last
        while True:
            await asyncio.sleep(2)
            family = self.server.family()
            door, engine = family[0], family[1:]
            told = {"at_s": self.now_s, "door_mib": door.memory_info().rss / MIB, "door_threads": door.num_threads(), "door_files": door.num_fds()}
            told["engine_mib"] = size = sum(self.engine_mib(engine))
            for name, count in (("engine_threads", psutil.Process.num_threads), ("engine_files", psutil.Process.num_fds)):
                told[name] = 0
                for one in engine:
                    with suppress(psutil.Error):
                        told[name] += count(one)
            self.tally.sizes.append(told)
            if self.engine_since_s != counted and time.monotonic() - self.engine_since_s > FAULT_S / 2:
                counted = self.engine_since_s
                self.tally.engines.append(size)

    def engine_mib(self, engine: Sequence[psutil.Process]) -> list[float]:
        """Memory of each process that is still there."""
        found = []
        for one in engine:
            with suppress(psutil.NoSuchProcess):
                found.append(one.memory_info().rss / MIB)
        return found

    # ---- faults ----

    async def faults(self) -> None:
        faults = (self.kill, self.storm, self.malformed)
        number, at_s = 0, FAULT_S
        while True:
            await asyncio.sleep(max(0.0, at_s - self.now_s))
            print(f"{self.now_s:.0f} s: {faults[number % 3].__name__}, {self.tally.asked} asked so far", file=sys.stderr)
            self.aside(faults[number % 3](number))
            number, at_s = number + 1, at_s + FAULT_S

    async def kill(self, number: int) -> None:
        """kill -9 of the process that holds the model, or every other time of the engine server; then count until the next answer."""
        family = self.server.family()
        victim = max(family[1:], key=lambda one: one.memory_info().rss) if number % 2 == 0 else family[0].children()[0]
        start_s = time.monotonic()
        self.tally.kills += 1
        self.tally.before.append(sum(self.engine_mib(family[1:])))
        self.engine_since_s = math.inf
        victim.kill()
        await asyncio.sleep(0.1)
        while not await self.probe():
            if self.over or time.monotonic() - start_s > 4 * MOST_RECOVERY_S:
                self.tally.never += 1
                return
            await asyncio.sleep(0.05)
        self.tally.recoveries.append(time.monotonic() - start_s)
        self.engine_since_s = time.monotonic()

    async def storm(self, number: int) -> None:
        """Clients that connect all at once and leave: before a word, halfway through a request, and in the middle of a stream."""
        body = json.dumps({"model": "nano", "messages": [{"role": "user", "content": "a"}], "max_tokens": 256, "stream": True, "ignore_eos": True}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        place = self.server.url.rpartition("/")[2].split(":")

        async def one(how: int) -> None:
            with suppress(OSError, asyncio.TimeoutError):
                reader, writer = await asyncio.wait_for(asyncio.open_connection(place[0], int(place[1])), 10)
                if how:
                    writer.write(head + (body if how == 2 else body[: len(body) // 2]))
                if how == 2:
                    await asyncio.wait_for(reader.read(1), 10)
                writer.transport.abort()

        await asyncio.gather(*(one(place % 3) for place in range(STORM)))
        self.tally.storms += 1

    async def malformed(self, number: int) -> None:
        """Bodies that are no requests: each must be refused with a 4xx in OpenAI's shape, on both routes."""
        for data in MALFORMED:
            for path in ("/v1/chat/completions", "/v1/completions"):
                try:
                    async with self.session.post(self.server.url + path, data=data, headers={"Content-Type": "application/json"}) as response:
                        text = await response.read()
                        with suppress(ValueError):
                            if 400 <= response.status < 500 and "message" in json.loads(text)["error"]:
                                self.tally.refused[str(response.status)] += 1
                                continue
                        self.tally.wrongly[f"{response.status} for {data[:40]!r}"] += 1
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as fault:
                    self.tally.wrongly[f"{type(fault).__name__} for {data[:40]!r}"] += 1


async def until_done(socket: aiohttp.ClientWebSocketResponse[bool], name: str) -> str:
    """How a request over WebSocket ended: "" well, "closed" in silence, else the kind of its error."""
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            break
        found = json.loads(message.data)
        if found.get("id") != name:
            continue
        if found["type"] in ("done", "result"):
            return ""
        if found["type"] == "error":
            return kind_of(found, found.get("status", "WebSocket"))
    return "closed"


def kind_of(found: dict[str, Any], where: object) -> str:
    """The error's status (or where it came) and its code or type."""
    error = found.get("error") or {}
    return f"{where} {error.get('code') or error.get('type') or 'without a type'}"


def told(tally: Tally, minutes: float) -> int:
    """Publish what was counted; the exit code."""
    seconds = minutes * 60
    kills = max(1, tally.kills)
    longest = max(tally.recoveries, default=0.0) if not tally.never else float("inf")
    typical = statistics.median(tally.recoveries) if tally.recoveries else 0.0
    available = 1 - tally.down_s / seconds
    daily = 1 - tally.down_s / kills / DAY_S
    silent, wrongly = tally.silent.total(), tally.wrongly.total()
    table = Table("serve_soak", f"{minutes:g} minutes of mixed load on nano, a fault every {FAULT_S:.0f} s", ours="LargeForge", peer="asked or allowed")
    table.rows += [
        Row("requests that ended in silence", silent, 0, "requests", at_most=1.0),
        Row("requests answered", tally.answered.total(), tally.asked, "requests"),
        Row("longest time to recovery", longest, MOST_RECOVERY_S, "s", at_most=1.0),
        Row("median time to recovery", typical, MOST_RECOVERY_S, "s"),
        Row("malformed bodies refused as they should be", tally.refused.total(), tally.refused.total() + wrongly, "bodies", at_least=1.0),
        Row(f"availability, an engine killed every {3 * FAULT_S:.0f} s", 100 * available, 100.0, "%"),
        Row("availability, an engine killed once a day", 100 * daily, 99.9, "%", at_least=1.0),
    ]
    start, end = between(tally, 0.1, 0.35), between(tally, 0.8, 1.0)
    for what, unit, most in (("door_mib", "MiB", GROWTH), ("door_threads", "threads", GROWTH), ("door_files", "files", 1.5)):
        table.rows.append(Row(f"{what.partition('_')[0]}, {unit} at the end beside the start", end[what], start[what], unit, at_most=most))
    if len(tally.engines) > 1:
        table.rows.append(Row("engine, MiB of the last beside the first, at one age", tally.engines[-1], tally.engines[0], "MiB", at_most=GROWTH))
    if tally.engines and tally.before:
        table.rows.append(Row("engine, MiB before a kill beside when it was young", statistics.median(tally.before), statistics.median(tally.engines), "MiB"))
    for what, unit in (("engine_threads", "threads"), ("engine_files", "files")):
        table.rows.append(Row(f"engine, {unit} at the end beside the start", end[what], start[what], unit))
    table.notes += [
        f"{tally.asked} requests: {tally.answered.total() / max(1, tally.asked):.2%} answered ({counts(tally.answered)}); errors that were told: "
        f"{counts(tally.errors)}; in silence: {counts(tally.silent)}.",
        f"{tally.kills} kills; recovery {', '.join(f'{one:.1f}' for one in tally.recoveries)} s"
        f"{f', never: {tally.never}' if tally.never else ''}; {tally.storms} storms of {STORM} clients; malformed: {counts(tally.refused)}.",
        f"Down {tally.down_s:.1f} s of {seconds:.0f} s: quarters of a second whose probe had no answer within {PATIENCE_S:.0f} s (others wait longer, and are "
        f"answered). At {DAY_S / 3 / FAULT_S:.0f} kills a day that is {available:.3%} of a month; at one a day {daily:.4%}, "
        f"{30 * tally.down_s / kills / 60:.1f} minutes of a month.",
    ]
    if wrongly:
        table.notes.append(f"Not refused as they should be: {counts(tally.wrongly)}.")
    table.details = {
        "sizes": tally.sizes,
        "engines_mib": tally.engines,
        "before_kill_mib": tally.before,
        "recoveries_s": tally.recoveries,
        "errors": dict(tally.errors),
    }
    table.publish()
    return int(any(row.met is False for row in table.rows))


def between(tally: Tally, start: float, end: float) -> dict[str, float]:
    """Medians of the sizes in a share of the time."""
    last_s = tally.sizes[-1]["at_s"] if tally.sizes else 0.0
    chosen = [one for one in tally.sizes if start * last_s <= one["at_s"] <= end * last_s] or tally.sizes
    return {name: statistics.median(one[name] for one in chosen) for name in (chosen[0] if chosen else {})}


def counts(found: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.most_common()) or "none"
