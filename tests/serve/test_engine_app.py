"""What an engine server says to somebody who is not its door."""

from __future__ import annotations

import asyncio

import pytest

from largeforge.serve.asking import Defaults
from largeforge.serve.engine_app import EngineApp
from largeforge.serve.inner import call
from tests.tiny_models import part

APP = EngineApp(part("engine", "echo"), "echo", (), Defaults(16, 0.0, 1.0, 0), key="secret")
BODY = b'{"model": "echo", "prompt": "a"}'


async def status_of(path: str, method: str, headers: list[tuple[bytes, bytes]]) -> int:
    async with call(APP, path=path, body=BODY, headers=headers, client=None, transport="grpc", method=method) as reply:
        await reply.body()
        return int(reply.status)


@pytest.mark.parametrize(("path", "method"), [("/v1/completions", "POST"), ("/v1/models", "GET"), ("/stats", "GET"), ("/pinned", "GET"), ("/tokenize", "POST")])
@pytest.mark.parametrize("shown", [[], [(b"authorization", b"Bearer secreT")], [(b"authorization", b"secret")]])
def test_it_answers_its_door_only(path: str, method: str, shown: list[tuple[bytes, bytes]]) -> None:
    """Without the key that its door has, nothing but /health; with it, its routes."""
    assert asyncio.run(status_of(path, method, shown)) == 401
    assert asyncio.run(status_of("/health", "GET", shown)) == 200
    if path != "/tokenize":  # an echo has no tokenizer
        assert asyncio.run(status_of(path, method, [(b"authorization", b"Bearer secret")])) == 200
