"""What an engine server says to somebody who is not its door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
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


# ---- what hf says of half characters and of prompts that are too long ----

LETTERS = '"\U0001f44d\U0001f3fd 家へ帰る é"'


def asked_of_nano(cache: Path, *requests: tuple[str, dict[str, Any]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """Status and events, or the one body, of each request; asked of nano in this process, with nobody before it who counts characters."""
    engine = part("engine", "hf", live={"model": part("model", "nano").load(trainable=False, precision="fp32"), "device": "cpu"}, batch_size=2)
    app = EngineApp(engine, "m", (), Defaults(64, 0.0, 1.0, 0))

    async def ask() -> list[tuple[int, list[dict[str, Any]]]]:
        found = []
        for path, fields in requests:
            body = orjson.dumps({"model": "m", **fields})
            async with call(app, path=path, body=body, headers=[], client=None, transport="grpc") as reply:
                if reply.streams:
                    async with aclosing(reply.chunks()) as chunks:
                        found.append((reply.status, [orjson.loads(event) async for event in events(chunks)]))
                else:
                    found.append((reply.status, [orjson.loads(await reply.body())]))
        await engine.close()
        return found

    return asyncio.run(ask())


def test_bytes_of_a_greedy_answer_are_its_text(nano_cache: Path) -> None:
    """Whole and as a stream, of letters that nano's tokenizer cuts: joined, `bytes` are the answer, though most tokens of it are no text alone."""
    schema = {"enum": [json.loads(LETTERS)]}
    fields = {
        "messages": [{"role": "user", "content": "Say it."}],
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    }
    (_, [whole]), (_, pieces) = asked_of_nano(nano_cache, ("/v1/chat/completions", fields), ("/v1/chat/completions", {**fields, "stream": True}))
    choices = [choice for piece in pieces for choice in piece["choices"]]
    streamed = [told for choice in choices for told in (choice["logprobs"] or {"content": []})["content"]]
    [choice] = whole["choices"]
    assert choice["message"]["content"] == LETTERS == "".join(one["delta"].get("content") or "" for one in choices)
    for tokens in (choice["logprobs"]["content"], streamed):
        assert bytes(byte for one in tokens for byte in one["bytes"]).decode() == LETTERS
        halves = [one for one in tokens if "\ufffd" in one["token"]]
        assert len(halves) > 5 and all(bytes(one["bytes"]) != one["token"].encode() for one in halves)


def test_a_prompt_that_is_too_long_has_openais_code(nano_cache: Path) -> None:
    """On either route, whole and as a stream, of a text and of token ids: the tokens were counted, not the characters."""
    long = "word " * 3000
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/completions", {"prompt": [5] * 3000}),
    ]
    found = asked_of_nano(nano_cache, *wanted, *((path, {**fields, "stream": True}) for path, fields in wanted))
    assert [status for status, _ in found] == [400] * 6
    errors = [body["error"] for _, [body] in found]
    assert {(error["type"], error["code"]) for error in errors} == {("invalid_request_error", "context_length_exceeded")}
    assert [error["param"] for error in errors] == ["messages", "prompt", "prompt"] * 2
    assert all("tokens; this model reads 2,048" in error["message"] for error in errors)
