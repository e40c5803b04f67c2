"""A plain uvicorn as host of an engine that needs no process of its own: echo."""

from __future__ import annotations

import time

import uvicorn

from largeforge.process import spare_what_stays
from largeforge.serve.engine_app import EngineApp
from largeforge.serve.hosting import Hosting


def serve(hosting: Hosting) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then is finished first."""
    start = time.monotonic()
    hosted = hosting.make()
    hosted.load_seconds = time.monotonic() - start
    app = EngineApp.of(hosting, hosted.engine)
    app.learn(hosted.about())
    config = uvicorn.Config(
        app,
        host=hosting.host,
        port=hosting.port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(hosting.drain_s),
        backlog=4096,
    )
    spare_what_stays()
    uvicorn.Server(config).run()
