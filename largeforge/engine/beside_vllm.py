"""What runs inside vLLM's processes, whoever installed them: a plugin of vLLM and an ASGI middleware, put beside it by `vllm.py`.

Standard library only, and torch, which vLLM has: nothing else of LargeForge is importable there.
"""

from __future__ import annotations

import hmac
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from multiprocessing.connection import wait
from typing import Any

OPEN = ("/health", "/ping")  # say whether it lives, nothing else
FEW_CORES = 4  # engine, worker, vLLM's server and the door would each have one
REST_S = 50e-6


def begin() -> None:
    """Called by vLLM once or more in each of its processes, before a model is loaded.

    On a CPU with AMX a process that uses the tiles without asking Linux for them is killed at its first short prompt.
    """
    import torch

    torch.cpu._init_amx()
    if len(os.sched_getaffinity(0)) <= FEW_CORES:
        rest_between_looks()
    parent = multiprocessing.parent_process()
    if parent is not None and not any(thread.name == "largeforge-parent" for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="largeforge-parent", daemon=True).start()


def rest_between_looks() -> None:
    """Let vLLM's engine and worker rest a moment where they wait for each other on a CPU.

    They look without a pause for a second, which takes two cores of a small machine from whoever computes and answers: on two cores first tokens of
    four clients came after 10 ms or after 450 ms by turns, and come after 10 to 20 ms like this.
    """
    if import_module("vllm.platforms").current_platform.is_cpu():
        shm_broadcast: Any = import_module("vllm.distributed.device_communicators.shm_broadcast")
        if hasattr(shm_broadcast, "sched_yield"):  # another vLLM may wait otherwise
            shm_broadcast.sched_yield = rest


def rest() -> None:
    """What is done between two looks."""
    time.sleep(REST_S)


def _end_with(sentinel: int) -> None:
    """Be killed when the parent is gone: vLLM's engine lives on without the server that it answers to, and holds the device's memory."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class KeyEverywhere:
    """Asks for the key on every route: vLLM itself asks below /v1 alone, and answers prompts under /invocations too."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.expected = b"Bearer " + os.environ.get("VLLM_API_KEY", "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Awaitable[None]]) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if hmac.compare_digest(given, self.expected):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return None
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]})
        await send({"type": "http.response.body", "body": b'{"error": {"message": "Wrong or missing key.", "type": "authentication_error", "code": 401}}'})
        return None
