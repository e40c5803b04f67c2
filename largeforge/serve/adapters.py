"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter at the door: LoRA adapters that come and go while the engine runs, as vLLM has them.

https://docs.vllm.ai/en/latest/features/lora.html. What came and went is done again to an engine that was started again, before it is
ready: vLLM itself forgets. Knows nothing of keys; the guard asks for one with the scope admin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field

from largeforge.asgi import Receive, Scope, Send, refuse, respond
from largeforge.call import LOAD_ADAPTER, UNLOAD_ADAPTER, call_of
from largeforge.errors import InputError
from largeforge.serve.engine_app import Gone, read_body
from largeforge.serve.upstream import Upstream
from largeforge.serve.wire import BadRequest, fields_of, validated
from largeforge.threads import in_daemon_thread

log = logging.getLogger("largeforge.serve")
GONE = 499
LOOK_S = 10.0
TIMEOUT_S = 120.0  # an adapter is read from a disk
TROUBLE = (aiohttp.ClientError, OSError, asyncio.TimeoutError)
Name = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class LoadAdapterRequest(_Wire):
    """POST /v1/load_lora_adapter."""

    lora_name: Name = Field(description="What requests call it, as `model`.")
    lora_path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")] = Field(description="Its folder on the server's machine.")
    load_inplace: bool = Field(default=False, description="Put it in the place of one of that name.")
    is_3d_lora_weight: bool = Field(default=False, description="vLLM's: weights of experts stacked in one tensor.")


class UnloadAdapterRequest(_Wire):
    """POST /v1/unload_lora_adapter."""

    lora_name: Name = Field(description="One that GET /v1/models lists.")
    lora_int_id: int | None = Field(default=None, description="vLLM's; not used.")


class Adapters:
    """The handler of both routes.

    Args:
        upstream: whose adapters they are; its `names` change with them.
        look: returns the folder of an adapter, of its name and what the request calls its place, and raises InputError where the engine could not
            take it. None: nothing comes or goes here, and both routes are a 404.
    """

    def __init__(self, upstream: Upstream, *, look: Callable[[str, str], Path] | None) -> None:
        self.upstream = upstream
        self.look = look
        self.given = frozenset(upstream.names)  # by the engine's command line, which brings them back whenever it is started
        self.loaded: dict[str, dict[str, Any]] = {}
        self.unloaded: set[str] = set()
        self._turn = asyncio.Lock()
        if look is not None and upstream.server is not None:
            upstream.server.before_ready = self.again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self.look is None:
            message = "No adapter comes or goes here while the server runs; engine=vllm engine.runtime_adapters=true lets them."
            return await refuse(scope, receive, send, 404, message, kind="invalid_request_error", code="adapters_are_fixed")
        if scope["method"] != "POST":
            return await refuse(scope, receive, send, 405, f"{path} takes POST.", kind="invalid_request_error", headers={"allow": "POST"})
        try:
            raw = await read_body(receive)
            status, body = await (self._load(raw) if path == LOAD_ADAPTER else self._unload(raw))
        except BadRequest as fault:
            return await refuse(scope, receive, send, fault.status, fault.message, kind="invalid_request_error", code=fault.code, param=fault.param)
        except Gone:
            call_of(scope).status = GONE
            return
        except TROUBLE:
            message = self.upstream.lost
            return await refuse(scope, receive, send, 503, message, kind="server_error", code="engine_unavailable", headers={"retry-after": "1"})
        call_of(scope).status = status
        await respond(send, status, body, content_type=b"text/plain; charset=utf-8" if status == 200 else b"application/json")

    async def _load(self, raw: bytes) -> tuple[int, bytes]:
        """Ask for one more. Raises BadRequest, what aiohttp raises."""
        asked = validated(LoadAdapterRequest, fields_of(raw))
        name, names = asked.lora_name, self.upstream.names
        assert self.look is not None
        try:
            look = partial(self.look, name, asked.lora_path)
            folder = await asyncio.wait_for(in_daemon_thread(look, name="look-at-adapter"), LOOK_S)  # a disk may be slow, or hang
        except InputError as fault:
            raise BadRequest(fault.message, param="lora_path", code="adapter_unusable") from fault
        body = {**asked.model_dump(exclude_defaults=True), "lora_path": str(folder)}
        async with self._turn:
            if name == names[0] or (name in names and not asked.load_inplace):
                raise BadRequest(f"There is a model '{name}' already; load_inplace replaces an adapter.", param="lora_name", code="adapter_exists")
            status, said = await self._ask(LOAD_ADAPTER, body)
            if status == 200:
                self.loaded[name] = body
                if name not in names:
                    names.append(name)
                log.info("the adapter %s was loaded from %s", name, folder)
        return status, said

    async def _unload(self, raw: bytes) -> tuple[int, bytes]:
        """Let one go. Raises BadRequest, what aiohttp raises."""
        asked = validated(UnloadAdapterRequest, fields_of(raw))
        name, names = asked.lora_name, self.upstream.names
        if name == names[0]:
            raise BadRequest(f"'{name}' is the model itself.", param="lora_name", code="not_an_adapter")
        async with self._turn:
            if name not in names:
                raise BadRequest(f"There is no adapter '{name}'.", param="lora_name", status=404, code="model_not_found")
            status, said = await self._ask(UNLOAD_ADAPTER, {"lora_name": name})
            if status == 200:
                self.loaded.pop(name, None)
                if name in self.given:
                    self.unloaded.add(name)
                names.remove(name)
                log.info("the adapter %s was unloaded", name)
        return status, said

    async def _ask(self, path: str, body: dict[str, Any], *, early: bool = False) -> tuple[int, bytes]:
        """Return what the engine says. Raises what aiohttp raises, ConnectionError where it has not what the one before had."""
        if not self.upstream.ready and not early:
            raise ConnectionError("the engine is started again")
        async with self.upstream.post(path, orjson.dumps(body), {}, timeout_s=TIMEOUT_S) as response:
            said = await response.read()
            if response.status in (401, 403):  # the door's own key: none of the client's business
                raise aiohttp.ClientPayloadError("the engine refuses the door's key")
            return response.status, said

    async def again(self) -> None:
        """Do to an engine that was started again what was done to the one before; what it refuses is served no longer."""
        async with self._turn:
            for name in self.unloaded:
                await self._once_more(UNLOAD_ADAPTER, name, {"lora_name": name})
            for name, body in list(self.loaded.items()):
                if not await self._once_more(LOAD_ADAPTER, name, body):
                    del self.loaded[name]
                    self.upstream.names.remove(name)

    async def _once_more(self, path: str, name: str, body: dict[str, Any]) -> bool:
        # raises where the engine dies meanwhile: the next one is asked for all of them
        status, said = await self._ask(path, body, early=True)
        if status != 200:
            log.error("%s of the adapter %s failed at the engine that was started again: %d %s", path, name, status, said[:500].decode("utf-8", "replace"))
        return status == 200
