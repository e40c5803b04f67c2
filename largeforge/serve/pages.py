"""The door's own pages: /, /health, /ready, /metrics, /docs. The completions are written down here, for the OpenAPI document, and answered elsewhere.

Knows the door by what it is handed: questions it may ask. No page shows a prompt or a key.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field

from largeforge import __version__
from largeforge.call import LOAD_ADAPTER, OPEN_PATHS, UNLOAD_ADAPTER, call_of, error_body
from largeforge.serve.adapters import LoadAdapterRequest, UnloadAdapterRequest
from largeforge.serve.wire import CHAT, COMPLETIONS, ChatCompletionRequest, CompletionRequest

SCRIPT, SHEET = "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"  # from a package: a machine without the Internet shows its docs too
PAGE = Path(__file__).parent / "chat.html"
# What the page may load it says itself; this is what a page cannot say of itself.
PAGE_HEADERS = {"x-frame-options": "DENY", "x-content-type-options": "nosniff", "cache-control": "no-cache", "referrer-policy": "no-referrer"}


Level = Literal["healthy", "degraded", "unhealthy"]


class Component(BaseModel):
    """One thing that serving depends on."""

    name: str
    status: Level
    latency_ms: float = Field(ge=0)


class Health(BaseModel):
    """GET /health, as section 6.1.3 of the system requirements has it."""

    status: Level
    components: list[Component]
    version: str
    uptime_seconds: int = Field(ge=0)


class Ready(BaseModel):
    """GET /ready."""

    status: Literal["ready", "loading", "draining"]


class ErrorObject(BaseModel):
    """What is wrong, as OpenAI tells it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorObject


class Model(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Usage(BaseModel):
    """Tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(BaseModel):
    """The turn of the assistant."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: Said
    finish_reason: str | None


class ChatCompletion(BaseModel):
    """An answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    finish_reason: str | None


class Completion(BaseModel):
    """Continuations of a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


@dataclass(frozen=True)
class Asked:
    """What the pages ask the door.

    Args:
        components: what serving depends on, looked at now.
        state: "ready", "loading" or "draining".
        metrics: Prometheus' text and its content type, gathered now.
    """

    components: Callable[[], Awaitable[list[Component]]]
    state: Callable[[], Literal["ready", "loading", "draining"]]
    metrics: Callable[[], Awaitable[tuple[bytes, str]]]


EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, an error object as JSON, or [DONE]."}},
    "required": ["data"],
}
# itemSchema is OpenAPI 3.2's word for the items of a stream; readers of 3.1 pass over it
STREAM = {"text/event-stream": {"itemSchema": EVENT, "example": 'data: {"choices":[...]}\n\ndata: [DONE]\n\n'}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": what}
    for code, what in {
        400: "The request is wrong.",
        401: "No API key, or a wrong one.",
        403: "The key may not do this, or a page of another host asks.",
        404: "No such model or path.",
        405: "Another method is meant.",
        408: "The body took too long to come.",
        413: "The body is too large.",
        429: "Over a limit; Retry-After says when.",
        499: "The client went away.",
        500: "A fault of the server.",
        502: "The engine said nonsense.",
        503: "Busy, or the engine is being started; Retry-After says when.",
        504: "Not done within the deadline.",
    }.items()
}


def pages(asked: Asked, *, title: str, adapters: bool = False) -> FastAPI:
    """Return the app of the pages.

    Args:
        asked: the door.
        title: of the OpenAPI document.
        adapters: whether adapters come and go: the routes for it are written down where they do.
    """
    started = time.monotonic()
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None, description="OpenAI-compatible; also WebSocket at /v1/ws, and gRPC.")

    @app.exception_handler(404)
    async def missing(request: Request, fault: Any) -> JSONResponse:
        return _refused(request, 404, f"There is no {request.method} {request.url.path[:200]} here; see /docs.")

    @app.exception_handler(405)
    async def another_method(request: Request, fault: Any) -> JSONResponse:
        response = _refused(request, 405, f"{request.url.path[:200]} does not take {request.method[:20]}.")
        response.headers["allow"] = (getattr(fault, "headers", None) or {}).get("Allow", "GET")
        return response

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/openapi.json", title=title, swagger_js_url=SCRIPT, swagger_css_url=SHEET, swagger_favicon_url="data:,")

    @app.get(SCRIPT, include_in_schema=False)
    @app.get(SHEET, include_in_schema=False)
    async def of_docs(request: Request) -> FileResponse:
        package = importlib.util.find_spec("fastapi_offline")
        assert package is not None and package.origin is not None  # an exact pin of the extra `serve`
        path = Path(package.origin).parent / "static" / request.url.path.rpartition("/")[2]
        return FileResponse(path, headers={"cache-control": "max-age=86400"})

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "Something that serving needs is down."}}, tags=["state"])
    async def health() -> JSONResponse:
        """How what serving depends on is doing."""
        components = await asked.components()
        down = [one for one in components if one.status == "unhealthy"]
        status: Level = "unhealthy" if any(one.name == "engine" for one in down) else "degraded" if down else "healthy"
        found = Health(status=status, components=components, version=__version__, uptime_seconds=int(time.monotonic() - started))
        return JSONResponse(found.model_dump(), status_code=503 if status == "unhealthy" else 200)

    @app.get("/ready", response_model=Ready, responses={503: {"model": Ready, "description": "Loading or draining."}}, tags=["state"])
    async def ready() -> JSONResponse:
        """Whether requests should be sent here."""
        state = asked.state()
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_some(401, 503)}, tags=["state"]
    )
    async def metrics() -> Response:
        """Prometheus' text exposition format."""
        body, content_type = await asked.metrics()
        return Response(body, media_type=content_type)

    @app.get("/v1/models", response_model=Models, responses=_some(401, 429, 503), tags=["inference"])
    async def models() -> None:
        """The model and its adapters."""

    @app.post(CHAT, response_model=ChatCompletion, responses={200: {"content": STREAM}, **REFUSALS}, tags=["inference"])
    async def chat_completions(request: ChatCompletionRequest) -> None:
        """Answer a conversation; as server-sent events where `stream` is true."""

    @app.post(COMPLETIONS, response_model=Completion, responses={200: {"content": STREAM}, **REFUSALS}, tags=["inference"])
    async def completions(request: CompletionRequest) -> None:
        """Continue a prompt; as server-sent events where `stream` is true."""

    if adapters:
        said: dict[str, Any] = {"response_class": PlainTextResponse, "responses": {**_some(400, 401, 403, 404, 503)}, "tags": ["adapters"]}

        @app.post(LOAD_ADAPTER, **said)
        async def load_adapter(request: LoadAdapterRequest) -> None:
            """Serve one more LoRA adapter, from a folder of the server's machine; a key needs the scope admin."""

        @app.post(UNLOAD_ADAPTER, **said)
        async def unload_adapter(request: UnloadAdapterRequest) -> None:
            """Serve a LoRA adapter no longer; a key needs the scope admin."""

    _document(app)
    return app


def _some(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: REFUSALS[code] for code in codes}


def _refused(request: Request, status: int, message: str) -> JSONResponse:
    call_of(request.scope).error = "invalid_request_error"
    return JSONResponse(error_body(message, kind="invalid_request_error"), status_code=status)


def _document(app: FastAPI) -> None:
    """The OpenAPI document, without FastAPI's 422 (what is wrong is a 400 here) and with the ways to show a key."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = made()
            for name, path in found["paths"].items():
                for operation in path.values():
                    if name in OPEN_PATHS:
                        operation["security"] = []
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(name, None)
            found["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            found["security"] = [{}, {"bearer": []}, {"key": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
