"""One contract, three transports: the same tokens, usage and errors over HTTP, WebSocket and gRPC; and no way in without a key on any of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from largeforge.call import OPEN_PATHS
from largeforge.serve.door import ROUTES
from largeforge.serve.proto import inference_pb2 as pb
from largeforge.serve.proto import inference_pb2_grpc
from tests.serve.servers import ROOT, Server, serving

# body of a chat completion -> what all three say of it
ASKED: list[dict[str, Any]] = [
    {"max_tokens": 12, "temperature": 0},
    {"max_tokens": 12, "temperature": 1.3, "seed": 7},
    {"max_tokens": 9, "temperature": 1.0, "seed": 7, "n": 2, "top_k": 5},
    {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 40, "temperature": 0, "stop": ["e"]},
]
WRONG: list[dict[str, Any]] = [
    {"model": "gpt-4"},
    {"temperature": 9},
    {"max_tokens": 0},
    {"messages": [{"role": "king", "content": "x"}]},
    {"top_logprobs": 3},
    {"messages": [{"role": "user", "content": "word " * 5000}]},  # longer than the model reads
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Iterator[Server]:
    words = ("model=nano", "model.dtype=fp32", "engine.batch_size=16", "serve.prove=false")
    with serving(tmp_path_factory.mktemp("three"), *words, environment={"LARGEFORGE_CACHE": str(shared_models)}) as found:
        yield found


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "nano", "messages": [{"role": "user", "content": "Hello there"}], **fields}


def told(found: dict[str, Any]) -> Any:
    """What an answer says, without what is new in each."""
    choices = [
        (one["index"], one["message"]["content"], one["finish_reason"], [round(part["logprob"], 3) for part in (one.get("logprobs") or {}).get("content", [])])
        for one in found["choices"]
    ]
    return choices, found["usage"]


def over_http(server: Server, body: dict[str, Any]) -> Any:
    status, found = server.ask("/v1/chat/completions", body)
    return told(found) if status == 200 else (status, found["error"])


def over_websocket(server: Server, body: dict[str, Any]) -> Any:
    with connect(server.url.replace("http", "ws") + "/v1/ws") as socket:
        socket.send(json.dumps({"id": "a", "type": "chat.completions", "request": {**body, "stream": False}}))
        found = json.loads(socket.recv(timeout=60))
    return told(found["data"]) if found["type"] == "result" else (found["status"], found["error"])


def over_websocket_as_stream(server: Server, body: dict[str, Any]) -> Any:
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    with connect(server.url.replace("http", "ws") + "/v1/ws") as socket:
        socket.send(json.dumps({"id": "a", "type": "chat.completions", "request": body}))
        while (found := json.loads(socket.recv(timeout=60)))["type"] == "chunk":
            for choice in found["data"]["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
                reasons[choice["index"]] = choice["finish_reason"]
    if found["type"] == "error":
        return found["status"], found["error"]
    return [(index, text, reasons[index]) for index, text in sorted(texts.items())], found["usage"]


def over_grpc(server: Server, body: dict[str, Any]) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            answer = inference_pb2_grpc.InferenceStub(channel).Chat(json_format.ParseDict(body, pb.ChatRequest()), timeout=60)
        except grpc.RpcError as fault:
            error = orjson.loads(dict(fault.trailing_metadata())["largeforge-error-bin"])["error"]
            return fault.code(), error
    usage = {name: getattr(answer.usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return [(one.index, one.message.content, one.finish_reason, [round(part.logprob, 3) for part in one.logprobs]) for one in answer.choices], usage


@pytest.mark.parametrize("fields", ASKED, ids=str)
def test_the_same_answer(server: Server, fields: dict[str, Any]) -> None:
    """Proves SYS-I-005, SYS-I-011: equal tokens, reasons, log-probabilities and usage, whole and as a stream."""
    body = body_of(fields)
    expected = over_http(server, body)
    assert isinstance(expected[0], list), expected
    assert over_websocket(server, body) == expected
    assert over_grpc(server, body) == expected
    choices, usage = over_websocket_as_stream(server, body)
    assert (choices, usage) == ([one[:3] for one in expected[0]], expected[1])


@pytest.mark.parametrize("fields", WRONG, ids=lambda fields: next(iter(fields)))
def test_the_same_refusal(server: Server, fields: dict[str, Any]) -> None:
    """Equal error objects; HTTP's status is the WebSocket's, and gRPC's code says the same."""
    body = body_of(fields)
    status, error = over_http(server, body)
    assert status in (400, 404)
    if len(body["messages"][0]["content"]) > 10_000:
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert over_websocket(server, body) == (status, error)
    code, said = over_grpc(server, body)
    assert said == error and code == {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}[status]


@pytest.mark.parametrize("max_bytes", [3000, 12 * 2**20])
def test_one_limit_of_bytes(max_bytes: int, tmp_path: Path) -> None:
    """What `guards.body_limit.max_bytes` lets through comes through on all three, more is refused on all three, and a great deal more too."""
    with serving(tmp_path, "engine=echo", f"guards.body_limit.max_bytes={max_bytes}") as server:
        for length, answered in ((max_bytes - 500, True), (max_bytes, False), (2 * max_bytes, False)):
            body = body_of({"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "x" * length}]})
            assert server.ask("/v1/chat/completions", body)[0] == (200 if answered else 413), length
            with connect(server.url.replace("http", "ws") + "/v1/ws") as socket:
                socket.send(json.dumps({"id": "a", "type": "chat.completions", "request": {**body, "stream": False}}))
                found = json.loads(socket.recv(timeout=60))
                assert (found["type"], found.get("status")) == (("result", None) if answered else ("error", 413)), length
                socket.send('{"type": "ping"}')
                assert json.loads(socket.recv(timeout=10)) == {"type": "pong"}, "the socket lives on"
            with grpc.insecure_channel(server.grpc) as channel:
                asked = json_format.ParseDict(body, pb.ChatRequest())
                try:
                    inference_pb2_grpc.InferenceStub(channel).Chat(asked, timeout=60)
                    code = grpc.StatusCode.OK
                except grpc.RpcError as fault:
                    code = fault.code()
            assert code == (grpc.StatusCode.OK if answered else grpc.StatusCode.RESOURCE_EXHAUSTED), length


def test_no_way_in_without_a_key(tmp_path: Path, shared_models: Path) -> None:
    """Proves SYS-SEC-001: with keys on, every route of every transport says 401 without one and answers with one, but for the open ones."""
    made = subprocess.run(
        [sys.executable, "-m", "largeforge", "task=keys", "create=alice", f"store.path={tmp_path / 'store.sqlite3'}", f"folder={tmp_path / 'keys'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stdout.strip()
    with serving(tmp_path, "engine=echo", "guards.keys.require=true") as server:
        document = server.ask("/openapi.json", None, X_API_Key=key)[1]
        for path in {*ROUTES, *document["paths"]}:
            for method_body in (None, b"{}"):
                status, found = server.ask(path, method_body)
                if path in OPEN_PATHS:
                    assert status in (200, 405), path
                    continue
                assert status == 401, (path, status)
                assert found["error"]["code"] in ("invalid_api_key", "missing_api_key"), found
                assert server.ask(path, method_body, Authorization=f"Bearer {key}")[0] != 401
                assert server.ask(path, method_body, X_API_Key=key[:-1] + "x")[0] == 401
        url = server.url.replace("http", "ws") + "/v1/ws"
        with pytest.raises(InvalidStatus) as refused, connect(url):
            pass
        assert refused.value.response.status_code == 401
        with connect(url, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            socket.send('{"type": "ping"}')
            assert json.loads(socket.recv(timeout=10)) == {"type": "pong"}
        with grpc.insecure_channel(server.grpc) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            chat = json_format.ParseDict({"model": "echo", "messages": [{"role": "user", "content": "a"}]}, pb.ChatRequest())
            generate = pb.GenerateRequest(model="echo", prompt="a")
            asked = {
                "Chat": lambda **how: stub.Chat(chat, **how),
                "Generate": lambda **how: stub.Generate(generate, **how),
                "ChatStream": lambda **how: list(stub.ChatStream(chat, **how)),
                "GenerateStream": lambda **how: list(stub.GenerateStream(generate, **how)),
                "reflection": lambda **how: list(
                    reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), **how
                    )
                ),
            }
            assert {method.name for method in pb.DESCRIPTOR.services_by_name["Inference"].methods} == set(asked) - {"reflection"}
            for name, ask in asked.items():
                with pytest.raises(grpc.RpcError) as fault:
                    ask(timeout=10)
                assert fault.value.code() == grpc.StatusCode.UNAUTHENTICATED, name
                assert ask(timeout=10, metadata=(("authorization", f"Bearer {key}"),))
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
            assert key.encode() not in path.read_bytes(), path
