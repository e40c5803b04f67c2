"""task=serve with engine=echo, as a user starts it: what is answered, to whom, and how it starts and ends."""

from __future__ import annotations

import datetime
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.serve.servers import ROOT, Server, serving, start

ECHO = ("engine=echo", "serve.grpc_port=0")


def say(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


def events(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    """Every event of a stream, [DONE] included."""
    request = urllib.request.Request(server.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.read().decode().splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("echo"), *ECHO) as found:
        yield found


def test_a_chat_and_a_completion(server: Server) -> None:
    """Proves SYS-F-050, SYS-F-059, SR-F-021, SR-F-022: section 6.1.1's answers, with usage and a true reason."""
    status, found = server.ask("/v1/chat/completions", say("one two"))
    assert (status, found["object"], found["model"]) == (200, "chat.completion", "echo")
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "echo: one two", "refusal": None}
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert abs(found["created"] - time.time()) < 100
    status, found = server.ask("/v1/completions", {"model": "echo", "prompt": "a b c d", "max_tokens": 2})
    assert (status, found["object"], found["choices"][0]["text"], found["choices"][0]["finish_reason"]) == (200, "text_completion", "echo: a", "length")


def test_a_stream(server: Server) -> None:
    """Proves SYS-F-051: pieces that join to the whole, one id, the reason last, usage where it was asked for, then [DONE]."""
    *pieces, done = events(server, "/v1/chat/completions", say("one two", stream=True))
    assert done == "[DONE]" and len({piece["id"] for piece in pieces}) == 1
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "echo: one two"
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert not any("usage" in piece for piece in pieces)
    *pieces, last, done = events(
        server, "/v1/chat/completions", say("one two", stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    )
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 3


def test_several_choices_and_prompts(server: Server) -> None:
    status, found = server.ask("/v1/completions", {"model": "echo", "prompt": ["a", "b c"], "n": 2})
    assert [(one["index"], one["text"]) for one in found["choices"]] == [(0, "echo: a"), (1, "echo: a"), (2, "echo: b c"), (3, "echo: b c")]
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}  # each prompt once
    pieces = events(server, "/v1/completions", {"model": "echo", "prompt": ["a", "b c"], "stream": True})[:-1]
    joined = {number: "".join(one["choices"][0]["text"] for one in pieces if one["choices"][0]["index"] == number) for number in (0, 1)}
    assert joined == {0: "echo: a", 1: "echo: b c"}


def test_defaults_are_the_specification_s(server: Server) -> None:
    """Proves SYS-F-058: 256 tokens at most where a request does not say."""
    found = server.ask("/v1/completions", {"model": "echo", "prompt": "a " * 400})[1]
    assert found["usage"]["completion_tokens"] == 256 and found["choices"][0]["finish_reason"] == "length"
    values = (server.folder / "config.yaml").read_text(encoding="utf-8")
    assert "temperature: 0.7" in values and "top_p: 0.9" in values and "top_k: 50" in values


def test_one_model(server: Server) -> None:
    """As OpenAI's `models.retrieve` asks."""
    assert server.ask("/v1/models/echo", None)[1]["id"] == "echo"
    status, found = server.ask("/v1/models/gpt-4", None)
    assert (status, found["error"]["code"]) == (404, "model_not_found") and "there is: echo" in found["error"]["message"]


def test_pages_of_other_hosts_may_not_ask(server: Server) -> None:
    """A browser sends what any page says to a server on loopback, a name that was pointed there included."""
    own = server.url
    assert server.ask("/v1/chat/completions", say("a"), Origin=own)[0] == 200
    port = own.rpartition(":")[2]
    for origin, host in (("http://evil.example", None), ("http://[abc", None), ("null", None), (f"http://evil.example:{port}", f"evil.example:{port}")):
        headers = {"Origin": origin, **({"Host": host} if host else {})}
        status, found = server.ask("/v1/chat/completions", say("a"), **headers)
        assert (status, found["error"]["code"]) == (403, "origin"), origin


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b"{", 400, None, "no valid JSON"),
        (b"\xff\xfe", 400, None, "no valid JSON"),
        (b"[1]", 400, None, "JSON object"),
        (b"[" * 5000, 400, None, "no valid JSON"),
        (say("a", metadata=json.loads("[" * 300 + "]" * 300)), 400, None, "nested too deeply"),
        ({"model": "echo"}, 400, "messages", "you must provide a messages parameter"),
        (say("a", model="gpt-4"), 404, "model", "The model 'gpt-4' does not exist"),
        (say("a", foo=1), 400, "foo", "Unrecognized request argument supplied: foo"),
        (say("a", temperature=3), 400, "temperature", "less than or equal to 2"),
        (say("a", max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
        (say("a", max_tokens="5"), 400, "max_tokens", "valid integer"),
        (say("a", n=1000), 400, "n", "less than or equal to"),
        (say("a", stop=["a"] * 5), 400, "stop", "up to 4 strings"),
        (say("a", stream_options={"include_usage": True}), 400, "stream_options", "only allowed when 'stream'"),
        (say("a", tools=[{"type": "function"}]), 400, "tools", "not supported by this engine"),
        (say("a", logprobs=True), 400, None, "An echo has no logprobs"),
        ({"model": "echo", "messages": [{"role": "king", "content": "a"}]}, 400, "messages", "Input should be"),
        ({"model": "echo", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0", "only parts of type text"),
    ],
)
def test_what_is_wrong_is_told_as_openai_tells_it(server: Server, body: Any, status: int, param: str | None, says: str) -> None:
    """Proves SR-NF-032, SYS-SEC-005: a 4xx with OpenAI's error object, the field, and words for a person."""
    found = server.ask("/v1/chat/completions", body)
    assert found[0] == status, found
    error = found[1]["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert says in error["message"] and error["param"] == param


def test_models_health_ready_metrics_docs(server: Server) -> None:
    """Proves SYS-F-060, SYS-F-061, SYS-I-023, SR-F-020, SR-NF-022: section 6.1.3's health and metrics, readiness, and a document of it all."""
    assert [one["id"] for one in server.get("/v1/models")["data"]] == ["echo"]
    health = server.get("/health")
    assert (health["status"], [one["name"] for one in health["components"]]) == ("healthy", ["engine", "store"])
    assert set(health) == {"status", "components", "version", "uptime_seconds"} and all(one["latency_ms"] >= 0 for one in health["components"])
    assert server.ask("/ready", None) == (200, {"status": "ready"})
    server.ask("/v1/chat/completions", say("a secret word", stream=False))
    metrics = server.get("/metrics")
    for name in (
        "inference_requests_total",
        "inference_latency_seconds_bucket",
        "tokens_generated_total",
        "gpu_memory_used_bytes",
        "active_requests",
        "model_load_time_seconds",
        "queue_depth",
        "time_to_first_token_seconds_bucket",
        "inter_token_seconds_bucket",
    ):
        assert f"\n{name}" in metrics, name
    assert "secret" not in metrics
    document = server.get("/openapi.json")
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics"} <= set(document["paths"])
    assert "swagger" in server.get("/docs")
    assert server.ask("/nix", None)[0] == 404 and server.ask("/v1/chat/completions", None)[0] == 405


def test_nothing_that_was_said_is_written_down(server: Server) -> None:
    """Proves SYS-F-066, SYS-SEC-008: no prompt and no answer stands in any file of the run; every request has its one line."""
    server.ask("/v1/chat/completions", say("xylophone zebra"), X_Request_ID="find-me")
    time.sleep(0.2)
    for path in server.folder.rglob("*"):
        assert path.is_dir() or b"xylophone" not in path.read_bytes(), path
    lines = [json.loads(line) for line in (server.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = [line for line in lines if line.get("request_id") == "find-me"]
    assert len(mine) == 1 and mine[0]["completion_tokens"] == 3 and mine[0]["status"] == 200


def test_stopping_lets_what_runs_finish(tmp_path: Path) -> None:
    """After SIGTERM it is not ready, takes no more, finishes what runs, and ends with 0; no process is left."""
    with serving(tmp_path, *ECHO) as server:
        family = server.family()
        found: list[Any] = []
        words = 200_000  # takes an echo a second or two
        body = {"model": "echo", "prompt": "a", "max_tokens": words, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        asking = threading.Thread(target=lambda: found.extend(events(server, "/v1/completions", body)))
        asking.start()
        until = time.monotonic() + 10
        while "active_requests 1.0" not in server.get("/metrics") and time.monotonic() < until:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.ask("/ready", None) == (503, {"status": "draining"})
        status, refusal = server.ask("/v1/chat/completions", say("a"))
        assert (status, refusal["error"]["code"]) == (503, "draining")
        assert server.process.wait(60) == 0
        asking.join(30)
        assert found[-1] == "[DONE]" and found[-2]["usage"]["completion_tokens"] == words
        assert not any(one.is_running() for one in family)
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["status"] == "done"


def test_what_is_not_done_in_time_is_told(tmp_path: Path) -> None:
    """After drain_s a stream ends with an error event, not in silence; nothing is printed but that; nobody is logged as gone who is not."""
    with serving(tmp_path, *ECHO, "serve.drain_s=0.5") as server:
        found: list[Any] = []
        body = {"model": "echo", "prompt": "a", "max_tokens": 3_000_000, "ignore_eos": True, "stream": True}
        asking = threading.Thread(target=lambda: found.extend(events(server, "/v1/completions", body)))
        asking.start()
        until = time.monotonic() + 10
        while "active_requests 1.0" not in server.get("/metrics") and time.monotonic() < until:
            time.sleep(0.02)
        assert server.stop() == 0
        asking.join(30)
        assert found[-1]["error"]["code"] == "draining" and len(found) > 2
        assert "1 answer was broken off after 0.5 s" in server.said and "stopped" in server.said and "Traceback" not in server.said
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = next(line for line in lines if line.get("path") == "/v1/completions")
    assert mine["status"] == 200 and mine["error"] == "server_error"


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(tmp_path, *ECHO, f"serve.port={port}")
        assert process.wait(60) == 2
    assert f"Port {port} of 127.0.0.1 is taken" in (tmp_path / "printed.txt").read_text(encoding="utf-8")


def test_a_server_for_everybody_asks_for_keys(tmp_path: Path) -> None:
    """Proves SYS-SEC-001: bound elsewhere than on loopback it asks for keys, and does not start while there are none; unless it is told to."""
    process = start(tmp_path / "none", *ECHO, "serve.host=0.0.0.0") if (tmp_path / "none").mkdir() is None else None
    assert process is not None and process.wait(60) == 2
    said = (tmp_path / "none" / "printed.txt").read_text(encoding="utf-8")
    assert "task=keys create=" in said and "serve.open=true" in said
    with serving(tmp_path / "open", *ECHO, "serve.host=0.0.0.0", "serve.open=true") as server:
        assert server.ask("/v1/models", None)[0] == 200


def make_certificate(folder: Path, *, days: int) -> tuple[Path, Path]:
    """A self-made certificate for localhost that is valid for so many days from two days ago on."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate, private


def test_tls(tmp_path: Path) -> None:
    """Proves SYS-SEC-002, SR-NF-031: HTTPS by certificate files, with TLS 1.2 or newer and no older one."""
    certificate, private = make_certificate(tmp_path, days=10)
    with serving(tmp_path, *ECHO, f"serve.certificate={certificate}", f"serve.private_key={private}") as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        url = server.url.replace("127.0.0.1", "localhost")
        with urllib.request.urlopen(f"{url}/ready", timeout=10, context=trusting) as response:
            assert json.load(response) == {"status": "ready"}
        old = ssl.create_default_context(cafile=str(certificate))
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as plain:
            old.wrap_socket(plain, server_hostname="localhost")


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    certificate, private = make_certificate(tmp_path, days=1)
    process = start(tmp_path, *ECHO, f"serve.certificate={certificate}", f"serve.private_key={private}")
    assert process.wait(60) == 2
    assert "is valid from" in (tmp_path / "printed.txt").read_text(encoding="utf-8")
    process = start(tmp_path, *ECHO, f"serve.certificate={certificate}", "folder=" + str(tmp_path / "other"))
    assert process.wait(60) == 2
    assert "serve.private_key=" in (tmp_path / "printed.txt").read_text(encoding="utf-8")


def test_the_door_loads_no_torch(tmp_path: Path) -> None:
    """It has to start at once, and to be small beside the engine."""
    code = "import sys, largeforge.task.serve, largeforge.serve.all, largeforge.guard.keys, largeforge.proof.served; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
