"""Faults around a server: heads without end, a full disk, a clock that jumps, a database that is away. Others: test_serving_echo, test_serving_nano."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve import raw
from tests.serve.servers import Server, serving

ECHO = ("engine=echo", "serve.grpc_port=0")


def say(text: str) -> dict[str, object]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


# ---- heads ----


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("faults"), *ECHO) as found:
        yield found


def test_a_head_that_does_not_end(server: Server) -> None:
    """Proves SYS-SEC-005: a request's head has a limit at the door that a user starts; of seconds too: test_fuzz."""
    found = raw.ask(server.url, b"GET /ready HTTP/1.1\r\n" + b"X-Filler: y\r\n" * 100_000)
    assert (found.status, (found.error or {}).get("code")) == (431, "head_too_large")
    assert server.ask("/v1/chat/completions", say("a"))[0] == 200
