"""Nonsense over HTTP, SSE, WebSocket and gRPC: refused as OpenAI refuses, and the server is as it was before."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.serve import fuzzing
from tests.serve.footprint import Footprint, settled
from tests.serve.fuzzing import GrpcGarbage, Maker, Slow
from tests.serve.servers import Server, serving

MAKERS: dict[Maker, int] = {
    fuzzing.field: 30,
    fuzzing.wrong_type: 15,
    fuzzing.no_json: 15,
    fuzzing.deep: 8,
    fuzzing.flipped: 10,
    fuzzing.long_strings: 3,
    fuzzing.head_garbage: 10,
    fuzzing.known_headers: 10,
    fuzzing.lengths: 10,
    fuzzing.lines: 15,
    fuzzing.no_http: 6,
    fuzzing.leaving: 8,
    fuzzing.socket_garbage: 12,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("fuzz"), "engine=echo", "guards.body_limit.read_timeout_s=2") as found:
        yield found


def abuse(server: Server, *, count: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Ask cases; what was wrong, and how many of each kind were asked."""
    wrong, asked = [], Counter[str]()
    with closing(GrpcGarbage(server)) as garbage:
        makers: dict[Maker, int] = {**MAKERS, garbage: 15}
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            maker = rng.choices(list(makers), weights=list(makers.values()))[0]
            name = getattr(maker, "__name__", "grpc")
            asked[name] += 1
            try:
                found = maker(server, rng)
            except OSError as fault:
                found = repr(fault)
            if found:
                wrong.append(f"case {seed}/{number} {name}: {found}")
    return wrong, asked


def as_it_was(server: Server, before: Footprint, *, memory_mib: float, said: str = "echo: one two") -> None:
    """The server answers, holds nothing, and has logged neither a fault of its own nor a traceback."""
    body = fuzzing.body_of("/v1/chat/completions")
    status, found = server.ask("/v1/chat/completions", body)
    assert status == 200 and found["choices"][0]["message"]["content"] == (said or found["choices"][0]["message"]["content"])
    assert not settled(server, before)
    grown = Footprint.of(server).memory(before)
    assert max(grown) < memory_mib, grown
    log = (server.folder / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    faults = [line for line in lines if line.get("level") in ("error", "critical") or 500 <= line.get("status", 0) != 504]
    assert not faults, faults[:5]
    for text in (server.said, (server.folder / "engine.txt").read_text(encoding="utf-8"), log):
        assert "Traceback" not in text, text[text.index("Traceback") :][:3000]
    assert len(server.said) < 2000  # who sends nonsense does not fill the terminal


def test_a_thousand_cases(server: Server) -> None:
    """Proves SYS-SEC-005: whatever is sent is refused as a client's fault; the server stays, with the same memory, threads and files."""
    slow = Slow(server)
    for maker in MAKERS:
        maker(server, random.Random(0))
    assert not fuzzing.huge(server, random.Random(1))
    before = Footprint.of(server)
    wrong, asked = abuse(server, count=1000, seed=fuzzing.seed_of_today())
    assert not wrong, "\n".join(wrong[:20])
    assert len(asked) == len(MAKERS) + 1, asked
    assert not fuzzing.huge(server, random.Random(2))
    assert slow.statuses() == {"body": (408, "body_too_slow"), "head": (408, "head_too_slow"), "nothing": (408, "head_too_slow")}
    as_it_was(server, before, memory_mib=60)


@pytest.mark.slow
def test_ten_thousand_cases(server: Server) -> None:
    """Proves SYS-SEC-005: the same, and nothing grows with their number."""
    abuse(server, count=500, seed=-1)
    before = Footprint.of(server)
    wrong, asked = abuse(server, count=10_000, seed=fuzzing.seed_of_today() + 1)
    for number in range(5):
        assert not fuzzing.huge(server, random.Random(number))
    print(dict(asked), "MiB grown:", [round(one, 1) for one in Footprint.of(server).memory(before)])
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])
    as_it_was(server, before, memory_mib=60)


@pytest.mark.slow
def test_the_hf_engine(tmp_path: Path, shared_models: Path) -> None:
    """Proves SYS-SEC-005: a thousand cases of everything, with a model behind the door."""
    words = ("model=nano", "serve.name=echo", "serve.prove=false", "guards.body_limit.read_timeout_s=2")
    with serving(tmp_path, *words, environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        abuse(server, count=300, seed=-2)
        before = Footprint.of(server)
        wrong, _ = abuse(server, count=1000, seed=fuzzing.seed_of_today() + 2)
        assert not wrong, "\n".join(wrong[:20])
        as_it_was(server, before, memory_mib=100, said="")
