"""A real uvicorn on a free loopback port, in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from largeforge.asgi import App


@asynccontextmanager
async def serving(app: App, **settings: Any) -> AsyncIterator[int]:
    """Serve an app; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5, **settings)
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server._serve([listener]))  # serve() would take the signals of the test's process
    try:
        while not server.started:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.005)
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 20)
        listener.close()
