"""gRPC over a real channel: answers, streams, errors, cancelling, deadlines, health, reflection, keys, nonsense, TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from google.protobuf import descriptor_pool
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from largeforge.errors import ServeError
from largeforge.serve.grpc import ERROR, SERVICE, GrpcServer
from largeforge.serve.inner import call
from largeforge.serve.messages import Unusable, body_of
from largeforge.serve.proto import inference_pb2 as pb
from largeforge.serve.proto.inference_pb2_grpc import InferenceStub

from .fake_completions import WORDS, FakeCompletions, until

ROOT = Path(__file__).parents[2]
TEXT = "".join(WORDS)
HI = [pb.Message(role="user", content="hi")]
CODE = grpc.StatusCode


class Stand:
    """The server under test, and a channel to it."""

    def __init__(self, app: FakeCompletions) -> None:
        self.app = app
        self.ready = True
        self.port = 0
        self.channel: Any = None
        self.server = GrpcServer(app, ready=lambda: self.ready, authorise=self._authorise, max_message_bytes=200_000)

    async def _authorise(self, headers: list[tuple[bytes, bytes]]) -> int:
        async with call(self.app, path="/v1/models", body=b"", headers=headers, client=None, transport="grpc", method="GET") as reply:
            return reply.status

    @property
    def stub(self) -> InferenceStub:
        return InferenceStub(self.channel)


def run(story: Callable[[Stand], Awaitable[None]], *, app: FakeCompletions | None = None) -> None:
    """Run a story on uvloop, as the door does."""

    async def main() -> None:
        stand = Stand(app or FakeCompletions())
        stand.port = await stand.server.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{stand.port}") as stand.channel:
            try:
                await asyncio.wait_for(story(stand), 60)
            finally:
                await stand.server.stop(0)
        assert stand.app.active == 0

    uvloop.run(main())


async def fails(rpc: Any, code: Any) -> tuple[Any, dict[str, Any]]:
    """See an RPC fail; returns the exception and OpenAI's error object."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        if hasattr(rpc, "__aiter__"):
            async for _ in rpc:
                pass
        else:
            await rpc
    assert failure.value.code() == code, failure.value
    told = dict(failure.value.trailing_metadata() or ())
    return failure.value, json.loads(told[ERROR])["error"] if ERROR in told else {}


def test_whole_answers() -> None:
    """Proves SYS-I-005."""

    async def story(stand: Stand) -> None:
        answer = await stand.stub.Generate(pb.GenerateRequest(model="words", prompt="hi", n=2, logprobs=1))
        assert [choice.text for choice in answer.choices] == [TEXT, TEXT] and answer.choices[1].index == 1
        assert (answer.choices[0].finish_reason, answer.id, answer.created, answer.model) == ("stop", "cmpl-1", 1700000000, "words")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)
        logprob = pb.TokenLogprob(token="a", logprob=-0.5, top=[pb.TopLogprob(token="b", logprob=-1.5)])
        assert list(answer.choices[0].logprobs) == [logprob]
        rpc = stand.stub.Chat(pb.ChatRequest(model="words", messages=HI, logprobs=True, top_logprobs=1))
        said = await rpc
        assert (said.choices[0].message.role, said.choices[0].message.content, said.usage.total_tokens) == ("assistant", TEXT, 8)
        assert list(said.choices[0].logprobs) == [logprob]
        assert dict(await rpc.initial_metadata())["x-request-id"] == "r-1"
        assert stand.app.scopes[-1]["state"]["transport"] == "grpc" and stand.app.scopes[-1]["client"][0] == "127.0.0.1"

    run(story)


def test_streams() -> None:
    async def story(stand: Stand) -> None:
        pieces = [piece async for piece in stand.stub.GenerateStream(pb.GenerateRequest(model="words", prompt="hi"))]
        assert "".join(choice.text for piece in pieces for choice in piece.choices) == TEXT
        assert pieces[-1].usage.total_tokens == 8 and not any(piece.HasField("usage") for piece in pieces[:-1])
        assert [choice.finish_reason for piece in pieces for choice in piece.choices if choice.HasField("finish_reason")] == ["stop"]
        chunks = [chunk async for chunk in stand.stub.ChatStream(pb.ChatRequest(model="words", messages=HI))]
        assert "".join(choice.delta.content for chunk in chunks for choice in chunk.choices) == TEXT
        assert {chunk.id for chunk in chunks} == {"cmpl-1"} and chunks[-1].usage.completion_tokens == 5

    run(story)


def test_only_what_is_set_is_asked_for() -> None:
    """An unset field has the server's default, 0 is a value; doubles stay what they are."""

    def body(request: Any) -> Any:
        return json.loads(body_of(request, stream=False))

    assert body(pb.GenerateRequest(model="m", prompt="p")) == {"model": "m", "prompt": "p"}
    assert body(pb.GenerateRequest()) == {}
    assert body(pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[1, 2]), temperature=0, seed=0, stop=["x", "y"])) == {
        "prompt": [1, 2],
        "temperature": 0.0,
        "seed": 0,
        "stop": ["x", "y"],
    }
    extra = Struct()
    extra.update({"ignore_eos": True, "min_tokens": 5, "min_p": 0.5, "tools": [{"a": None}]})
    turns = [pb.Message(role="assistant", tool_calls=[pb.ToolCall(id="1", name="f", arguments="{}")]), pb.Message(role="tool", content="", tool_call_id="1")]
    assert body(pb.ChatRequest(messages=turns, top_p=0.7, response_schema='{"type": "object"}', extra=extra)) == {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "", "tool_call_id": "1"},
        ],
        "top_p": 0.7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}},
        "ignore_eos": True,
        "min_tokens": 5,
        "min_p": 0.5,
        "tools": [{"a": None}],
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": float("inf")}, "top_p"),
        ({"response_schema": "{"}, "response_schema"),
        ({"extra": {"stream": True}}, "stream"),
        ({"extra": {"temperature": 1}}, "temperature"),
        ({"response_schema": "{}", "extra": {"response_format": {}}}, "response_format"),
    ],
)
def test_what_json_cannot_say_is_refused(fields: dict[str, Any], param: str) -> None:
    """Not dropped in silence: NaN would become null, the default."""
    extra = Struct()
    extra.update(fields.pop("extra", {}))
    request = pb.ChatRequest(model="words", messages=HI, extra=extra, **fields)
    with pytest.raises(Unusable) as refused:
        body_of(request, stream=True)
    assert refused.value.param == param

    async def story(stand: Stand) -> None:
        _, error = await fails(stand.stub.Chat(request), CODE.INVALID_ARGUMENT)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        stand.app.key = "k"
        await fails(stand.stub.Chat(request), CODE.UNAUTHENTICATED)

    run(story)


def test_errors_are_those_of_http() -> None:
    async def story(stand: Stand) -> None:
        failure, error = await fails(stand.stub.Chat(pb.ChatRequest(model="refuses", messages=HI)), CODE.RESOURCE_EXHAUSTED)
        assert error == {"message": "Too many requests.", "type": "rate_limit_error", "param": None, "code": None}
        assert dict(failure.trailing_metadata())["retry-after"] == "7" and failure.details() == "Too many requests."
        _, error = await fails(stand.stub.Generate(pb.GenerateRequest(prompt="x")), CODE.INVALID_ARGUMENT)
        assert error["param"] == "model"
        _, error = await fails(stand.stub.ChatStream(pb.ChatRequest(model="breaks", messages=HI)), CODE.INTERNAL)
        assert error["message"] == "The engine died."
        _, error = await fails(stand.stub.ChatStream(pb.ChatRequest(model="cut", messages=HI)), CODE.UNAVAILABLE)
        assert error["code"] == "cut_short"
        await fails(stand.stub.Generate(pb.GenerateRequest(model="raises", prompt="x")), CODE.INTERNAL)

    run(story)


@pytest.mark.parametrize("model", ["slow", "never"])
def test_who_cancels_stops_the_call_inside(model: str) -> None:
    """Streaming and not, before the first piece and after it."""

    async def story(stand: Stand) -> None:
        rpcs = [
            stand.stub.ChatStream(pb.ChatRequest(model=model, messages=HI)),
            stand.stub.Chat(pb.ChatRequest(model=model, messages=HI)),
            stand.stub.Generate(pb.GenerateRequest(model=model, prompt="x")),
        ]
        waiting = [asyncio.ensure_future(rpcs[0].read())]
        await until(lambda: stand.app.active == 3 and (model == "never" or stand.app.sent > 3))
        for rpc in rpcs:
            rpc.cancel()
        await until(lambda: stand.app.active == 0, within_s=5)
        assert stand.app.left == 3
        await asyncio.gather(*waiting, return_exceptions=True)

    run(story)


def test_a_channel_that_closes_stops_the_calls_inside() -> None:
    async def story(stand: Stand) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{stand.port}") as channel:
            rpc = InferenceStub(channel).ChatStream(pb.ChatRequest(model="slow", messages=HI))
            await rpc.read()
        await until(lambda: stand.app.active == 0, within_s=5)
        assert stand.app.left == 1

    run(story)


def test_a_deadline_is_kept_and_told_to_the_guards() -> None:
    async def story(stand: Stand) -> None:
        await fails(stand.stub.ChatStream(pb.ChatRequest(model="slow", messages=HI), timeout=1.5), CODE.DEADLINE_EXCEEDED)
        assert 0 < float(stand.app.headers()["x-request-timeout"]) < 2  # gRPC sends it rounded up
        await until(lambda: stand.app.active == 0, within_s=5)
        await stand.stub.Chat(pb.ChatRequest(model="words", messages=HI), timeout=1e6)
        assert stand.app.headers()["x-request-timeout"] == "86400.000"
        await stand.stub.Chat(pb.ChatRequest(model="words", messages=HI))
        assert "x-request-timeout" not in stand.app.headers()

    run(story)


def test_a_slow_reader_slows_the_engine_down() -> None:
    async def story(stand: Stand) -> None:
        rpc = stand.stub.ChatStream(pb.ChatRequest(model="burst", messages=HI))
        await rpc.read()
        seen = -1
        while seen != stand.app.sent:
            seen = stand.app.sent
            await asyncio.sleep(0.3)
        assert seen < 8000, "kB of buffers, not of what an engine could make in the meantime"
        rpc.cancel()
        await until(lambda: stand.app.active == 0)

    run(story)


def test_health_says_what_is_so() -> None:
    async def story(stand: Stand) -> None:
        health = health_pb2_grpc.HealthStub(stand.channel)
        stand.app.key = "k"  # asks for none
        for service in ("", SERVICE):
            for stand.ready in (True, False):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert (answer.status == health_pb2.HealthCheckResponse.SERVING) is stand.ready
        await fails(health.Check(health_pb2.HealthCheckRequest(service="other")), CODE.NOT_FOUND)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stand.ready = True
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.ensure_future(stand.server.stop(20))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.wait_for(stopping, 10)  # a watcher does not hold it up

    run(story)


def test_stopping_ends_what_runs_after_its_grace() -> None:
    async def story(stand: Stand) -> None:
        rpc = stand.stub.ChatStream(pb.ChatRequest(model="slow", messages=HI))
        await rpc.read()
        await asyncio.wait_for(stand.server.stop(0.3), 10)
        assert stand.app.active == 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{stand.port}") as channel:
            await fails(InferenceStub(channel).Chat(pb.ChatRequest(model="words", messages=HI)), CODE.UNAVAILABLE)

    run(story)


def test_reflection_describes_the_service() -> None:
    async def story(stand: Stand) -> None:
        def look() -> tuple[set[str], list[str]]:
            with grpc.insecure_channel(f"127.0.0.1:{stand.port}") as channel:
                found = ProtoReflectionDescriptorDatabase(channel)
                service = descriptor_pool.DescriptorPool(found).FindServiceByName(SERVICE)
                return set(found.get_services()), [method.name for method in service.methods]

        services, methods = await asyncio.to_thread(look)
        assert {SERVICE, "grpc.health.v1.Health"} <= services
        assert methods == ["Generate", "GenerateStream", "Chat", "ChatStream"]

    run(story)


def test_without_a_key_nothing_but_health_is_answered() -> None:
    async def story(stand: Stand) -> None:
        services = [("largeforge.v1.Inference", name) for name in ("Generate", "GenerateStream", "Chat", "ChatStream", "Other")]
        services += [("grpc.health.v1.Health", "List"), ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"), ("a.B", "C"), ("", "")]
        for service, name in services:
            for payload in (b"", b"\xff\xff\xff"):
                for metadata in ((), (("x-api-key", "wrong"),)):
                    method = stand.channel.stream_stream(f"/{service}/{name}")
                    rpc = method(iter([payload]), metadata=metadata)
                    _, error = await fails(rpc, CODE.UNAUTHENTICATED)
                    assert error["type"] == "authentication_error", (service, name)
        for metadata in ((("x-api-key", "k"),), (("authorization", "Bearer k"),)):
            answer = await stand.stub.Chat(
                pb.ChatRequest(model="words", messages=HI), metadata=(*metadata, ("x-priority", "2"), ("x-request-id", "mine"), ("cookie", "c"))
            )
            assert answer.usage.total_tokens == 8
            assert (stand.app.headers()["x-priority"], stand.app.headers()["x-request-id"]) == ("2", "mine") and "cookie" not in stand.app.headers()
            info = reflection_pb2_grpc.ServerReflectionStub(stand.channel).ServerReflectionInfo
            replies = [reply async for reply in info(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata)]
            assert len(replies) == 1
            await fails(stand.channel.unary_unary("/a.B/C")(b"", metadata=metadata), CODE.UNIMPLEMENTED)

    run(story, app=FakeCompletions(key="k"))


def test_the_server_outlives_nonsense() -> None:
    async def story(stand: Stand) -> None:
        for garbage in (b"\x00" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000, bytes(range(256)) * 40):
            reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
            writer.write(garbage)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 20)
            writer.close()
        for name in ("Generate", "GenerateStream", "Chat", "ChatStream"):
            for payload in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x12\xff"):  # no protobuf, no UTF-8, cut off
                _, error = await fails(stand.channel.stream_stream(f"/{SERVICE}/{name}")(iter([payload])), CODE.INVALID_ARGUMENT)
                assert error["type"] == "invalid_request_error"
        await fails(stand.stub.Generate(pb.GenerateRequest(model="words", prompt="x" * 300_000)), CODE.RESOURCE_EXHAUSTED)
        assert (await stand.stub.Generate(pb.GenerateRequest(model="words", prompt="x"))).usage.total_tokens == 8

    run(story)


def test_a_port_that_is_taken_is_told() -> None:
    async def story(stand: Stand) -> None:
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{stand.port}"):
            await Stand(stand.app).server.start("127.0.0.1", stand.port)
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ServeError, match="taken"):
            await Stand(stand.app).server.start("127.0.0.1", other.getsockname()[1])

    run(story)


def _certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=False)
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return paths


def test_tls(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)

    async def main() -> None:
        stand = Stand(FakeCompletions())
        port = await stand.server.start("127.0.0.1", 0, tls=(certificate, key))
        try:
            credentials = grpc.ssl_channel_credentials(root_certificates=certificate.read_bytes())
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                assert (await InferenceStub(channel).Chat(pb.ChatRequest(model="words", messages=HI))).usage.total_tokens == 8
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await fails(InferenceStub(channel).Chat(pb.ChatRequest(model="words", messages=HI)), CODE.UNAVAILABLE)
        finally:
            await stand.server.stop(0)
        with pytest.raises(ServeError, match="cannot be read"):
            await Stand(stand.app).server.start("127.0.0.1", 0, tls=(tmp_path / "none.pem", key))
        (tmp_path / "bad.pem").write_text("no certificate")
        with pytest.raises(ServeError, match="belong together"):
            await Stand(stand.app).server.start("127.0.0.1", 0, tls=(tmp_path / "bad.pem", key))

    uvloop.run(asyncio.wait_for(main(), 60))


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: pip install 'largeforge[test]'")
    proto = "largeforge/serve/proto/inference.proto"
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *out, proto], cwd=ROOT, check=True)
    names = ["inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py"]
    for name in names:
        made = (tmp_path / "largeforge" / "serve" / "proto" / name).read_text(encoding="utf-8")
        assert made == (ROOT / "largeforge" / "serve" / "proto" / name).read_text(encoding="utf-8"), f"{name}: see largeforge/serve/proto/__init__.py"
