"""gRPC beside the HTTP door: the service largeforge.v1.Inference, grpc.health.v1 and reflection, in the door's own event loop.

Every RPC is a call from inside into the guarded HTTP app, so keys, limits, deadlines, errors and usage are HTTP's. Knows nothing of engines.
Health is open to everybody, as /health is; whatever else is asked, a method that does not exist included, wants a key where keys are on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import grpc
import orjson
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from largeforge.asgi import App
from largeforge.call import error_body
from largeforge.errors import ServeError
from largeforge.serve.inner import GRACE_S, LEAST_S, CutShort, Reply, call, events, status_of
from largeforge.serve.messages import Unusable, body_of, chat_piece, chatted, generated
from largeforge.serve.proto import inference_pb2 as pb

LOG = logging.getLogger("largeforge.serve")
SERVICE = "largeforge.v1.Inference"
HEALTH = "grpc.health.v1.Health"
OPEN_METHODS = frozenset({f"/{HEALTH}/Check", f"/{HEALTH}/Watch"})
"""What is answered without a key."""

ERROR = "largeforge-error-bin"
HEADERS = ("authorization", "x-api-key", "x-request-id", "x-priority")
LONGEST_DEADLINE_S = 86_400.0  # that the guard of deadlines accepts
LARGEST_ERROR_BYTES = 4096  # clients take 8 KB of metadata
WATCH_S = 0.25  # between two looks at readiness while somebody watches
MOST_WATCHERS = 64

CODES: Mapping[int, grpc.StatusCode] = MappingProxyType(
    {
        400: grpc.StatusCode.INVALID_ARGUMENT,
        401: grpc.StatusCode.UNAUTHENTICATED,
        403: grpc.StatusCode.PERMISSION_DENIED,
        404: grpc.StatusCode.NOT_FOUND,
        408: grpc.StatusCode.DEADLINE_EXCEEDED,
        409: grpc.StatusCode.ABORTED,
        413: grpc.StatusCode.RESOURCE_EXHAUSTED,
        429: grpc.StatusCode.RESOURCE_EXHAUSTED,
        499: grpc.StatusCode.CANCELLED,
        501: grpc.StatusCode.UNIMPLEMENTED,
        502: grpc.StatusCode.UNAVAILABLE,
        503: grpc.StatusCode.UNAVAILABLE,
        504: grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

_REFUSED = {
    401: ("A valid key is needed, in the metadata authorization ('Bearer KEY') or x-api-key.", "authentication_error"),
    403: ("This key may not do that.", "permission_error"),
    429: ("Too many requests.", "rate_limit_error"),
    503: ("Keys cannot be looked up at the moment.", "server_error"),
}


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        error: OpenAI's error object.
        headers: of the HTTP answer that are passed on.
    """

    def __init__(self, status: int, error: dict[str, Any], *, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(error.get("message"))
        self.status, self.error, self.headers = status, error, tuple(headers)

    async def abort(self, context: Any) -> None:
        """End an RPC with it; raises, as grpc's abort does."""
        code = CODES.get(self.status, grpc.StatusCode.INVALID_ARGUMENT if self.status < 500 else grpc.StatusCode.INTERNAL)
        message = str(self.error.get("message"))[:1000]
        body = orjson.dumps({"error": self.error})
        if len(body) > LARGEST_ERROR_BYTES:
            body = orjson.dumps(error_body(message[:500], kind=str(self.error.get("type"))[:100]))
        await context.abort(code, message, trailing_metadata=((ERROR, body), *self.headers))


@dataclass(frozen=True)
class Method:
    """One RPC of the service.

    Args:
        request: type of its message.
        path: of the HTTP route.
        answer: makes the message of an answer, or of a piece of one.
        stream: whether the answer is a stream.
    """

    request: Any
    path: str
    answer: Callable[[Mapping[str, Any]], Any]
    stream: bool


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "Generate": Method(pb.GenerateRequest, "/v1/completions", generated, False),
        "GenerateStream": Method(pb.GenerateRequest, "/v1/completions", generated, True),
        "Chat": Method(pb.ChatRequest, "/v1/chat/completions", chatted, False),
        "ChatStream": Method(pb.ChatRequest, "/v1/chat/completions", chat_piece, True),
    }
)


class GrpcServer:
    """The server. It starts no thread of its own and shares the loop it is started in.

    Args:
        app: the whole guarded HTTP app.
        ready: whether requests would be answered now: what health tells.
        authorise: the HTTP status that a request with these headers gets, below 400 where it may pass: asked before reflection, before methods
            that do not exist and before it is told what is wrong with a message.
        max_message_bytes: of a request; an answer may have any length.
        max_rpcs: that run at once, watchers of health included; more are refused.
    """

    def __init__(
        self,
        app: App,
        *,
        ready: Callable[[], bool],
        authorise: Callable[[list[tuple[bytes, bytes]]], Awaitable[int]],
        max_message_bytes: int = 8 * 2**20,
        max_rpcs: int = 4096,
    ) -> None:
        self.app = app
        self._authorise = authorise
        self._running: set[asyncio.Task[Any]] = set()
        self._health = _Health(ready)
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else a second server on the same port would take half of the first one's clients, and nobody says so
            ("grpc.keepalive_time_ms", 30_000),  # a client whose machine is gone is found out
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        self._server = grpc.aio.server(interceptors=[_Keys(self)], options=options, maximum_concurrent_rpcs=max_rpcs)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {name: self._handler(one) for name, one in METHODS.items()}),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int, *, tls: tuple[str | Path, str | Path] | None = None) -> int:
        """Listen; returns the port, which is another than 0.

        Args:
            host: address or name.
            port: 0 takes a free one.
            tls: files in PEM: certificate (with its chain), key. gRPC speaks TLS 1.2 or higher only.

        Raises:
            ServeError: the port is taken, or the files cannot be used.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                certificate, key = (Path(path).read_bytes() for path in tls)
                bound = self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
        except OSError as fault:
            raise ServeError(f"The files of TLS cannot be read: {fault}", next_step="name a certificate and its key in PEM form") from fault
        except RuntimeError as fault:
            why = "The port is taken, or this machine has no such address"
            if tls is not None:
                why += ", or certificate and key do not belong together"
            raise ServeError(f"gRPC cannot listen on {address}. {why}.", next_step="another port, or stop what listens there") from fault
        await self._server.start()
        return int(bound)

    async def stop(self, grace_s: float) -> None:
        """Refuse what is new at once, and end what runs still after `grace_s` seconds."""
        self._health.stopping = True
        await self._server.stop(grace_s)
        if self._running:  # cancelled just now: their calls inside get a moment to end
            await asyncio.wait(set(self._running), timeout=GRACE_S + LEAST_S)

    async def see_key(self, metadata: Any) -> None:
        """See that whoever shows this metadata may ask anything at all. Raises Refusal."""
        status = await self._authorise(_headers(metadata))
        if status >= 400:
            message, kind = _REFUSED.get(status, (f"The server answered with status {status}.", "server_error"))
            raise Refusal(status, error_body(message, kind=kind)["error"])

    def _handler(self, method: Method) -> Any:
        def read(data: bytes) -> Any:
            try:
                return method.request.FromString(data)
            except Exception:  # protobuf's DecodeError, and what the C code raises beside it: no fault of ours, so not INTERNAL
                return None

        async def whole(request: Any, context: Any) -> Any:
            async def ask() -> Any:
                async with await self._call(method, request, context) as reply:
                    await _begin(reply, context)
                    return method.answer(orjson.loads(await reply.body()))

            return await self._answered(ask(), context)

        async def stream(request: Any, context: Any) -> None:
            async def ask() -> None:
                async with await self._call(method, request, context) as reply:
                    await _begin(reply, context)
                    async with aclosing(reply.chunks()) as chunks, aclosing(events(chunks)) as found:
                        async for data in found:
                            chunk = orjson.loads(data)
                            if "error" in chunk:
                                raise Refusal(status_of(chunk["error"]), chunk["error"])
                            await context.write(method.answer(chunk))  # waits while the client does not read

            await self._answered(ask(), context)

        make = grpc.unary_stream_rpc_method_handler if method.stream else grpc.unary_unary_rpc_method_handler
        return make(stream if method.stream else whole, request_deserializer=read, response_serializer=lambda message: message.SerializeToString())

    async def _answered(self, work: Coroutine[Any, Any, Any], context: Any) -> Any:
        """Run an RPC; whatever goes wrong is told in gRPC's words. A client that leaves cancels it, and with it the call inside."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await work
        except Refusal as refusal:
            last = refusal
        except CutShort:
            last = Refusal(502, error_body("The answer ended before it was whole.", kind="server_error", code="cut_short")["error"])
        except Exception:
            LOG.exception("An RPC failed")
            last = Refusal(500, error_body("The server failed to answer this request.", kind="server_error")["error"])
        await last.abort(context)

    async def _call(self, method: Method, request: Any, context: Any) -> AbstractAsyncContextManager[Reply]:
        """The call from inside that an RPC is. Raises Refusal where its message cannot be said in JSON."""
        try:
            if request is None:
                raise Unusable(f"The message is no {method.request.DESCRIPTOR.full_name}.")
            body = body_of(request, stream=method.stream)
        except Unusable as fault:
            await self.see_key(context.invocation_metadata())  # nobody learns more than that without a key
            error = error_body(fault.message, kind="invalid_request_error", param=fault.param)["error"]
            raise Refusal(400, error) from fault
        headers = _headers(context.invocation_metadata())
        if (left := context.time_remaining()) is not None:
            headers.append((b"x-request-timeout", f"{min(max(left, 0.001), LONGEST_DEADLINE_S):.3f}".encode()))
        return call(self.app, path=method.path, body=body, headers=headers, client=_client(context.peer()), transport="grpc")


async def _begin(reply: Reply, context: Any) -> None:
    """Send what is known before the answer. Raises Refusal where it is an error."""
    if (id := reply.header(b"x-request-id")) is not None:
        await context.send_initial_metadata((("x-request-id", id),))
    if reply.status >= 400:
        raise await _refusal(reply)


async def _refusal(reply: Reply) -> Refusal:
    wait = reply.header(b"retry-after")
    return Refusal(reply.status, await reply.error(), headers=() if wait is None else (("retry-after", wait),))


def _headers(metadata: Any) -> list[tuple[bytes, bytes]]:
    """The headers of HTTP among an RPC's metadata."""
    return [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata or () if name in HEADERS]


def _client(peer: str) -> tuple[str, int] | None:
    """An address as ASGI has it, from `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    return (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


class _Keys(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks for a key before everything but health and the service itself, whose calls from inside ask for it."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self._own = OPEN_METHODS | {f"/{SERVICE}/{name}" for name in METHODS}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        if details.method in self._own:
            return await continuation(details)
        try:
            await self._server.see_key(details.invocation_metadata)
        except Refusal as fault:
            refusal = fault
        else:
            return await continuation(details)

        async def refuse(requests: Any, context: Any) -> None:
            await refusal.abort(context)

        return grpc.stream_stream_rpc_method_handler(refuse)  # fits any kind of method: nothing is read


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1, told by what is so now: nothing needs to remember to say it.

    Args:
        ready: whether requests would be answered now.
    """

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._num_watchers = 0
        self.stopping = False

    def _status(self) -> Any:
        told = health_pb2.HealthCheckResponse
        return told.SERVING if self._ready() and not self.stopping else told.NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._status())

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        if self._num_watchers >= MOST_WATCHERS:  # it is open to everybody
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST_WATCHERS} watch already")
        self._num_watchers += 1
        try:
            last = None
            while True:
                status = self._status() if request.service in ("", SERVICE) else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status != last:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    last = status
                if self.stopping:
                    return  # else it would hold up the stop until its grace is over
                await asyncio.sleep(WATCH_S)
        finally:
            self._num_watchers -= 1
