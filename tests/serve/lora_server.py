"""A stand-in for vLLM's server: its two routes for adapters, models and chat completions, and nothing behind them. python lora_server.py PORT ADAPTER ..."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from aiohttp import web

NAMES: dict[str, str] = dict.fromkeys(sys.argv[2:], "")


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}, status=status)


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def load(request: web.Request) -> web.Response:
    asked = await request.json()
    if asked["lora_name"] in NAMES and not asked.get("load_inplace"):
        return refusal(400, "has already been loaded")
    if not (Path(asked["lora_path"]) / "adapter_config.json").is_file():
        return refusal(404, "No adapter found")
    if json.loads((Path(asked["lora_path"]) / "adapter_config.json").read_text())["r"] == 13:
        return refusal(500, "a fault of the engine")
    NAMES[asked["lora_name"]] = asked["lora_path"]
    if asked["lora_path"].endswith("slow"):
        await asyncio.sleep(0.5)
    return web.Response(text=f"Success: LoRA adapter '{asked['lora_name']}' added successfully.")


async def unload(request: web.Request) -> web.Response:
    if NAMES.pop((await request.json())["lora_name"], None) is None:
        return refusal(404, "cannot be found")
    return web.Response(text="Success: removed successfully.")


async def chat(request: web.Request) -> web.Response:
    """Says the folder of the adapter that was asked."""
    name = (await request.json())["model"]
    if name != "base" and name not in NAMES:
        return refusal(404, "does not exist")
    choice = {"index": 0, "message": {"role": "assistant", "content": NAMES.get(name, "")}, "finish_reason": "stop"}
    return web.json_response({"id": "1", "object": "chat.completion", "created": 1, "model": name, "choices": [choice], "usage": {}})


app = web.Application()
app.add_routes([web.get("/health", health), web.post("/v1/load_lora_adapter", load), web.post("/v1/unload_lora_adapter", unload)])
app.add_routes([web.post("/v1/chat/completions", chat)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
