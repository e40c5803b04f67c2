"""Greedy answers of the endpoint beside `model.generate`: many at once, adapters mixed, streamed or not, others leaving halfway; equal or not.

nano in fp32. Compared are the text, the counts of tokens and why it ended, of each request that was not left.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from scripts.benches.serve_exact_side import NAMES
from scripts.benches.serve_servers import here, ours
from scripts.benches.table import Row, Table

SIDE = Path(__file__).with_name("serve_exact_side.py")
IN_FLIGHT = 32


def measure(folder: Path, *, num: int) -> int:
    """Ask `num` requests; 1 where one answer is another than generate's."""
    start_s = time.monotonic()
    done = subprocess.run([sys.executable, str(SIDE), json.dumps({"folder": str(folder), "num": num})], env=here(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"generate ended with {done.returncode}:\n{done.stderr[-3000:]}")
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    adapters = ",".join(f"{name}:{folder / name}" for name in NAMES)
    words = ["model=nano", "model.dtype=fp32", "engine.batch_size=32", f"engine.adapters={{{adapters}}}"]
    with ours(folder / "server", *words, model="nano") as server:
        found = asyncio.run(ask_all(server.url, expected))
    stayed = [(one, told) for one, told in zip(expected, found, strict=True) if told is not None]
    wrong = [(one, told) for one, told in stayed if not same(one, told)]
    table = Table("serve_exact", f"{num} requests, {IN_FLIGHT} in flight, nano in fp32, three adapters and the base", ours="equal", peer="asked to the end")
    table.rows.append(Row("answers equal to model.generate", len(stayed) - len(wrong), len(stayed), "answers", at_least=1.0))
    streamed = sum(one["body"]["stream"] for one, _ in stayed)
    chats = sum("messages" in one["body"] for one, _ in stayed)
    table.notes += [
        f"{num - len(stayed)} were left halfway; of the others {streamed} were streamed, {chats} conversations (the rest token ids), "
        f"{sum(one['body']['model'] != 'nano' for one, _ in stayed)} by an adapter; {sum(one['answer_tokens'] for one, _ in stayed)} tokens.",
        f"{time.monotonic() - start_s:.0f} s in all.",
        *(f"Another answer: {json.dumps({'asked': one, 'answered': told})[:600]}" for one, told in wrong[:5]),
    ]
    table.details = {"wrong": [{"asked": one, "answered": told} for one, told in wrong]}
    table.publish()
    return int(bool(wrong) or not stayed)


def same(one: dict[str, Any], told: dict[str, Any]) -> bool:
    """Whether an answer is the expected one. The token that ends an answer may be counted or not: it is not said."""
    counts = {one["answer_tokens"], one["answer_tokens"] - 1} if one["ended"] else {one["answer_tokens"]}
    reason = "stop" if one["ended"] else "length"
    return bool(
        told["status"] == 200
        and told["text"] == one["text"]
        and told["answer_tokens"] in counts
        and told["prompt_tokens"] == one["prompt_tokens"]
        and told["reason"] == reason
    )


async def ask_all(url: str, requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Answers in the order asked; None where the client left."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def one(request: dict[str, Any]) -> dict[str, Any] | None:
            async with gate:
                return await ask(session, url, request)

        return list(await asyncio.gather(*map(one, requests)))


async def ask(session: aiohttp.ClientSession, url: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """One answer: status, text, counts and reason; None where it was left."""
    body = request["body"]
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    told: dict[str, Any] = {"status": 0, "text": "", "reason": "", "prompt_tokens": 0, "answer_tokens": 0}
    async with session.post(url + path, json=body) as response:
        told["status"] = response.status
        if not body["stream"] or response.status != 200:
            take(told, json.loads(await response.read()))
            return told
        async for line in response.content:
            if line.startswith(b"data: {"):
                take(told, json.loads(line[6:]))
            if request["leave_after"] is not None and len(told["text"]) > request["leave_after"]:
                response.close()
                return None
    return told


def take(told: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what a chunk, or a whole answer, says."""
    if "error" in found:
        told["error"] = found["error"]
    for choice in found.get("choices", ()):
        told["text"] += (choice.get("delta") or choice.get("message") or {}).get("content") or choice.get("text") or ""
        told["reason"] = choice.get("finish_reason") or told["reason"]
    if usage := found.get("usage"):
        told["prompt_tokens"], told["answer_tokens"] = usage["prompt_tokens"], usage["completion_tokens"]
