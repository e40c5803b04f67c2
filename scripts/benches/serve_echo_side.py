"""The echo engine server of `task=serve serve=engine engine=echo`, but for fields that it does not know: dropped, as vLLM does, not refused.

vllm-router adds fields of its own (no_stop_trim) to what it passes on, and all doors of a comparison stand before the same server. What this costs falls on
all of them alike.
"""

from __future__ import annotations

import sys
from typing import Any

import orjson
import uvicorn

from largeforge.asgi import Receive, Scope, Send
from largeforge.build import build
from largeforge.config.compose import compose
from largeforge.serve.asking import Defaults
from largeforge.serve.engine_app import EngineApp, Gone, read_body
from largeforge.serve.wire import ChatCompletionRequest, CompletionRequest

KNOWN = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}


class Lenient:
    """Drops fields that the app behind it does not know."""

    def __init__(self, app: EngineApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        try:
            body = orjson.loads(await read_body(receive))
        except (Gone, ValueError):
            return None
        first: list[dict[str, Any]] = [
            {"type": "http.request", "body": orjson.dumps({name: value for name, value in body.items() if name in KNOWN}), "more_body": False}
        ]

        async def again() -> Any:
            return first.pop() if first else await receive()

        await self.app(scope, again, send)


def main() -> None:
    config: Any = compose(["task=serve", "engine=echo"]).config
    engine: Any = build(config.engine)
    app = EngineApp(engine, "echo", (), Defaults(256, 0.7, 0.9, 50))
    uvicorn.run(
        Lenient(app),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="off",
        backlog=4096,
    )


if __name__ == "__main__":
    main()
