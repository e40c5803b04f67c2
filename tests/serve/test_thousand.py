"""A thousand requests at once: all are answered, with a bounded number inside and the others in the queue."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from pathlib import Path

import aiohttp

from tests.serve.servers import serving

COUNT = 1000


def test_a_thousand_streams_at_once(tmp_path: Path) -> None:
    """Proves SR-NF-012, SYS-S-004: a thousand connections, a stream of twenty tokens on each; every one is whole."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 4096
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    try:
        with serving(tmp_path, "engine=echo", "serve.grpc_port=0") as server:
            ended = asyncio.run(ask(server.url))
            assert ended == Counter(whole=COUNT)
            assert f'route="/v1/chat/completions",status="200",transport="http"}} {COUNT}.0' in server.get("/metrics")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def ask(url: str) -> Counter[str]:
    """Open all connections, then ask on all of them."""
    together = asyncio.Barrier(COUNT) if hasattr(asyncio, "Barrier") else None
    body = {"model": "echo", "stream": True, "max_tokens": 20, "ignore_eos": True, "messages": [{"role": "user", "content": "one two three"}]}

    async def one(session: aiohttp.ClientSession) -> str:
        if together is not None:
            await together.wait()
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            text = await response.text()
        pieces = text.count('"content":"') - text.count('"content":""')
        return "whole" if response.status == 200 and text.endswith("data: [DONE]\n\n") and pieces == 20 else f"{response.status}: {text[-200:]}"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)) as session:
        return Counter(await asyncio.gather(*(one(session) for _ in range(COUNT))))
