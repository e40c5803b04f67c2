"""What an engine server says to somebody who is not its door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from largeforge.chat import ChatRequest, Delta, TokenLogprob, Usage
from largeforge.serve.asking import Defaults
from largeforge.serve.engine_app import EngineApp
from largeforge.serve.inner import call, events
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


# ---- where tokens stand in an answer ----


class Teller:
    """Says texts, each with log-probabilities of its tokens: several in a piece, and one piece that has none to tell."""

    def __init__(self, *pieces: tuple[str, ...]) -> None:
        self.pieces = pieces

    async def generate(self, request: ChatRequest) -> AsyncIterator[Delta]:
        for tokens in self.pieces:
            await asyncio.sleep(0)  # the other choice has its turn
            yield Delta("".join(tokens), logprobs=tuple(TokenLogprob(token, -0.5) for token in tokens))
        yield Delta("", finish_reason="stop", usage=Usage(1, sum(map(len, self.pieces))))


PIECES = (("One",), (" thing", ","), (), (" né", "e 🙂"), (".",))


async def told(*, stream: bool) -> dict[int, dict[str, Any]]:
    """The text, tokens and offsets of each of two choices, those of a stream joined."""
    app = EngineApp(Teller(*PIECES), "m", (), Defaults(16, 0.0, 1.0, 0))
    body = orjson.dumps({"model": "m", "prompt": "a", "n": 2, "logprobs": 0, "stream": stream})
    async with call(app, path="/v1/completions", body=body, headers=[], client=None, transport="grpc") as reply:
        if stream:
            async with aclosing(reply.chunks()) as chunks:
                found = [orjson.loads(event) async for event in events(chunks)]
        else:
            found = [orjson.loads(await reply.body())]
    joined: dict[int, dict[str, Any]] = {index: {"text": "", "tokens": [], "text_offset": []} for index in range(2)}
    for choice in (choice for one in found for choice in one["choices"]):
        mine, logprobs = joined[choice["index"]], choice["logprobs"] or {"tokens": [], "text_offset": []}
        mine["text"] += choice["text"]
        for name in ("tokens", "text_offset"):
            mine[name] += logprobs[name]
    return joined


@pytest.mark.parametrize("stream", [False, True])
def test_text_offset_says_where_a_token_stands(stream: bool) -> None:
    """In characters from the answer's beginning, of each choice, in a stream too: as in OpenAI's older API."""
    text = "".join(token for piece in PIECES for token in piece)
    for mine in asyncio.run(told(stream=stream)).values():
        assert mine["text"] == text and mine["text_offset"] == [0, 3, 9, 10, 13, 16]
        assert [text[place:].startswith(token) for place, token in zip(mine["text_offset"], mine["tokens"], strict=True)] == [True] * 6
