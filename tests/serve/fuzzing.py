"""Makers of nonsense for a server: seeded, so that a case which fails is found again by its number.

Each maker draws one case and asks it; it returns what is wrong with the answer, "" where nothing is. What is right: a 4xx in OpenAI's error
shape; where HTTP itself is broken, the parser's bare 400 or a closed connection; where chance made something harmless, an answer.
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import grpc

from largeforge.serve.proto import inference_pb2 as pb
from largeforge.serve.wire import KINDS
from tests.serve import raw
from tests.serve.raw import Reply
from tests.serve.servers import Server

Maker = Callable[[Server, random.Random], str]
BARE = b"Invalid HTTP request received."  # uvicorn's, where there is no request to answer


def wrong(found: Reply, *, harmless: bool, broken: bool = False) -> str:
    """What is wrong with a reply.

    Args:
        found: what came.
        harmless: whether the request may also have been one that is answered.
        broken: whether it may not have been HTTP.
    """
    if found.status == 0:
        return "" if broken else f"closed without an answer: {found.body[:80]!r}"
    if broken and found.status == 400 and found.body == BARE:
        return ""
    if found.status >= 500 or (found.status < 400 and not harmless):
        return f"{found.status} {found.body[:300]!r}"
    if found.status >= 400 and found.error is None:
        return f"{found.status} without OpenAI's error object: {found.body[:300]!r}"
    return ""


def body_of(path: str) -> dict[str, Any]:
    """A request that is answered."""
    if path == raw.CHAT:
        return {"model": "echo", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 8}
    return {"model": "echo", "prompt": "one two", "max_tokens": 8}


def any_path(rng: random.Random) -> str:
    return rng.choice((raw.CHAT, raw.COMPLETIONS))


def noise(rng: random.Random, most: int = 300) -> bytes:
    return rng.randbytes(rng.randrange(1, most))


# ---- bodies ----

VALUES: list[str] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "1.5",
    "-0.0",
    "1e400",
    "-1e400",
    "1e-400",
    "9" * 400,
    "-" + "9" * 30,
    "9223372036854775808",
    "18446744073709551616",
    '""',
    '"x"',
    '"5"',
    '"\\u0000"',
    '"\\ud83d\\ude00"',
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "[null]",
    '{"a":1}',
    '["x",1]',
    "[1.5]",
    "[true]",
    '[[1,"x"]]',
    "[-1]",
    "[99999999999]",
    '{"type":"json_schema"}',
    '{"type":"json_schema","json_schema":{"schema":{"$ref":"#"}}}',
    '[{"role":"user"}]',
    '[{"role":"user","content":[{"type":"text"}]}]',
    '[{"role":"user","content":[{"type":"text","text":"\\u0000"}]}]',
    '[{"role":"tool","content":"x","tool_call_id":"1"}]',
    '{"include_usage":1}',
    '{"include_usage":true}',
]


def field(server: Server, rng: random.Random) -> str:
    """Any value at any field, under another name, or twice."""
    path = any_path(rng)
    names = [*KINDS[path].model_fields, "foo", "", "__class__", "model\x00"]
    body = body_of(path)
    told = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in body.items()]
    for _ in range(rng.randrange(1, 4)):
        told.append(f"{json.dumps(rng.choice(names))}:{rng.choice(VALUES)}")
    if rng.random() < 0.3:
        rng.shuffle(told)
    return wrong(raw.ask(server.url, raw.post(path, ("{" + ",".join(told) + "}").encode())), harmless=True)


def wrong_type(server: Server, rng: random.Random) -> str:
    """A value at a field that can never be right there."""
    path = any_path(rng)
    body = body_of(path)
    name = rng.choice(sorted(KINDS[path].model_fields))
    body[name] = {"x": {"y": [[None]]}} if name not in ("response_format", "tool_choice", "function_call", "chat_template_kwargs", "audio", "prediction") else 3
    if name in ("metadata", "logit_bias", "web_search_options"):
        body[name] = [3]
    return wrong(raw.ask(server.url, raw.post(path, json.dumps(body).encode())), harmless=False)


def no_json(server: Server, rng: random.Random) -> str:
    """What no parser of JSON takes: cut short, no UTF-8, half characters, words of other languages."""
    path = any_path(rng)
    whole = json.dumps(body_of(path)).encode()
    made = rng.choice(
        [
            whole[: rng.randrange(0, len(whole))],
            whole + rng.choice([b"}", b"x", b",", b"\x00", whole]),
            whole.replace(b"one", rng.choice([b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\n", b"\\ud800", b"\\x41", b"\xf5\x80\x80\x80"])),
            whole.replace(b'"echo"', rng.choice([b"NaN", b"Infinity", b"-Infinity", b"undefined", b"'echo'", b"0x10", b"01", b"1_000", b"+1", b".5"])),
            noise(rng),
            whole.decode().encode("utf-16"),
            b"\xef\xbb\xbf" + whole,
            rng.choice([b"[", b'{"a":', b'[{"a":', b'{"messages":[']) * rng.choice([10, 200, 300, 1000, 5000, 100_000]),
        ]
    )
    return wrong(raw.ask(server.url, raw.post(path, made, chunked=rng.random() < 0.3)), harmless=False)


def deep(server: Server, rng: random.Random) -> str:
    """JSON that is right and deep, at a field that takes anything."""
    path = raw.CHAT
    levels = rng.choice([10, 100, 200, 253, 254, 255, 256, 300, 500, 900, 1000, 1020, 1023, 1024, 1025, 2000, 20_000])
    nested = rng.choice([('{"a":', "1", "}"), ("[", "1", "]"), ('[{"a":', "1", "}]")])
    value = nested[0] * levels + nested[1] + nested[2] * levels
    name = rng.choice(["response_format", "tools", "metadata", "messages", "tool_choice", "chat_template_kwargs", "logit_bias", "prediction", "foo", "schema"])
    body = json.dumps(body_of(path))[:-1]
    if name == "schema":
        body += f',"response_format":{{"type":"json_schema","json_schema":{{"schema":{value}}}}}}}'
    elif name == "tools":
        body += f',"tools":[{{"type":"function","function":{value}}}]}}'
    elif name == "messages":
        body = f'{{"model":"echo","messages":[{{"role":"user","content":"x","odd":{value}}}]}}'
    else:
        body += f',"{name}":{value}}}'
    return wrong(raw.ask(server.url, raw.post(path, body.encode())), harmless=True)


def flipped(server: Server, rng: random.Random) -> str:
    """A request with some bytes changed, anywhere in its body."""
    path = any_path(rng)
    body = bytearray(json.dumps(body_of(path)).encode())
    for _ in range(rng.randrange(1, 6)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return wrong(raw.ask(server.url, raw.post(path, bytes(body))), harmless=True)


def long_strings(server: Server, rng: random.Random) -> str:
    """Names, stops and ids far longer than any; many of them."""
    path = raw.COMPLETIONS
    many = rng.choice([1000, 100_000, 1_000_000])
    body = body_of(path) | rng.choice(
        [
            {"model": "x" * many},
            {"stop": "y" * many},
            {"stop": ["s"] * 1000},
            {"x" * many: 1},
            {"prompt": ["a"] * 1000},
            {"prompt": [1] * many},
            {"user": 3 * "u" * many, "n": 99},
        ]
    )
    found = raw.ask(server.url, raw.post(path, json.dumps(body).encode()))
    return wrong(found, harmless=many == 1000 or body["prompt"] != "one two") or (
        "an error of a megabyte" if len(found.body) > 3000 and found.status >= 400 else ""
    )


def huge(server: Server, rng: random.Random) -> str:
    """A prompt of 100 MB, announced or in chunks."""
    body = b'{"model":"echo","prompt":"' + b"a " * 50_000_000 + b'"}'
    with raw.connect(server.url) as one:
        raw.send(one, raw.post(raw.COMPLETIONS, body, chunked=rng.random() < 0.5))
        found = raw.read(one)
    return "" if found.status == 0 else wrong(found, harmless=False)  # a reset may overtake the answer of one who does not stop talking


# ---- heads ----


def head_garbage(server: Server, rng: random.Random) -> str:
    """Lines of a head that are none, too many, or too long."""
    body = json.dumps(body_of(raw.CHAT)).encode()
    line = rng.choice(
        [
            noise(rng),
            b"X: " + noise(rng),
            noise(rng, 20) + b": x",
            b": no name",
            b"No colon",
            b"X-A: " + b"a" * rng.choice([1000, 60_000, 70_000, 500_000]),
            b"\r\n".join(b"X-%d: y" % number for number in range(rng.choice([10, 1000, 20_000]))),
            b"Host: y",
            b" folded: line",
            b"X: \x00",
            b"X:\x7f\x01",
            b"Content-Type: text/plain",
            b"Content-Encoding: gzip",
            b"Expect: 200-nothing",
            b"Connection: close, upgrade",
            b"Upgrade: h2c",
            b"Upgrade: websocket",
        ]
    )
    return wrong(raw.ask(server.url, raw.post(raw.CHAT, body, line)), harmless=True, broken=True)


def known_headers(server: Server, rng: random.Random) -> str:
    """Headers that are read, with values that nobody means."""
    names = [b"X-Request-ID", b"X-Priority", b"X-Request-Timeout", b"Authorization", b"X-API-Key", b"Accept", b"Origin", b"Cookie", b"Forwarded"]
    values = [
        b"",
        b"nan",
        b"inf",
        b"-inf",
        b"-1",
        b"0",
        b"1e999",
        b"9" * 400,
        b"\xff\xfe",
        b"\xc3\xa4",
        b"Bearer",
        b"Bearer \xff",
        b"Basic x",
        b"a" * 5000,
        b"0x1",
        b"\t",
        b"1,2",
    ]
    values.append("٣".encode())  # a digit to str.isdigit, and to float
    lines = [rng.choice(names) + b": " + rng.choice(values) for _ in range(rng.randrange(1, 4))]
    found = raw.ask(server.url, raw.post(raw.CHAT, json.dumps(body_of(raw.CHAT)).encode(), *lines))
    if found.status == 504:  # a timeout of nothing is kept
        return ""
    return wrong(found, harmless=True)


def lengths(server: Server, rng: random.Random) -> str:
    """Lengths that lie, and chunks that are none."""
    body = json.dumps(body_of(raw.CHAT)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    said = rng.choice(
        [
            b"Content-Length: -1",
            b"Content-Length: x",
            b"Content-Length: 1e3",
            b"Content-Length: +5",
            b"Content-Length: 99999999999999999999999",
            b"Content-Length: 0x10",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: %d\r\nTransfer-Encoding: chunked" % len(body),
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: chunked, x",
            b"Content-Length: %d" % (len(body) - 5),
            b"Content-Length: 9000000",
            b"Content-Length: 0",
            b"X: no length",
            b"Transfer-Encoding: chunked",
        ]
    )
    if b"chunked" in said:
        body = rng.choice(
            [
                b"zz\r\n" + body,
                b"-5\r\n" + body,
                b"5\r\n" + body,
                b"ffffffffffffffffff\r\n" + body,
                b"5;x=" + noise(rng) + b"\r\nhello\r\n0\r\n\r\n",
                noise(rng),
                b"0\r\n\r\n",
            ]
        )
    with raw.connect(server.url) as one:
        raw.send(one, head + said + b"\r\n\r\n" + body)
        one.shutdown(socket.SHUT_WR)
        return wrong(raw.read(one), harmless=False, broken=True)


def lines(server: Server, rng: random.Random) -> str:
    """First lines: methods, paths, encodings, versions."""
    method = rng.choice(
        [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD", b"TRACE", b"CONNECT", b"PROPFIND", b"get", b"FOO", b"G\x00T", b"A" * 500, b"PRI"]
    )
    pieces = [
        b"/",
        b"v1",
        b"..",
        b".",
        b"%2e%2e",
        b"%00",
        b"%ff",
        b"%",
        b"%zz",
        b"chat",
        b"completions",
        b"health",
        b"?a=b",
        b"#x",
        b"//",
        b"\\",
        b"*",
        b"\xc3\xa4",
        b"%F0%9F%98%80",
        b";",
        b"a" * 3000,
    ]
    path = b"/" * (rng.random() < 0.9) + b"".join(rng.choice(pieces) for _ in range(rng.randrange(0, 8)))
    path = rng.choice(
        [
            path,
            path,
            b"/v1/models",
            b"/metrics",
            b"http://x" + path,
            b"/v1/chat/completions/",
            b"/v1/ws",
            b"/openapi.json",
            b"/docs",
            b"/ready?" + noise(rng).replace(b" ", b""),
        ]
    )
    version = rng.choice([b" HTTP/1.1"] * 6 + [b" HTTP/1.0", b" HTTP/2.0", b" HTTP/9.9", b"", b" HTP/1.1"])
    found = raw.ask(server.url, method + b" " + path + version + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    if method == b"HEAD" and found.status:
        return f"{found.status} to HEAD" if found.status >= 500 else ""
    return wrong(found, harmless=True, broken=True)


def no_http(server: Server, rng: random.Random) -> str:
    """Bytes of other protocols."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200)
    said = rng.choice(
        [
            hello,
            b"GET /\r\n",
            b"GET /\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise(rng),
            b"SSH-2.0-x\r\n",
            b"\x00" * 100,
            noise(rng, 3000),
            b"\r\n" * 50,
            b"EHLO x\r\n",
        ]
    )
    with raw.connect(server.url) as one:
        raw.send(one, said)
        one.shutdown(socket.SHUT_WR)
        return wrong(raw.read(one), harmless=True, broken=True)


# ---- those who leave ----


def leaving(server: Server, rng: random.Random) -> str:
    """A stream, left at a random moment: politely, by a reset, or before the request is whole."""
    body = {**body_of(raw.COMPLETIONS), "stream": True, "max_tokens": rng.choice([5, 2000, 50_000]), "ignore_eos": True}
    data = raw.post(raw.COMPLETIONS, json.dumps(body).encode())
    one = raw.connect(server.url)
    if rng.random() < 0.3:
        data = data[: rng.randrange(1, len(data))]
    raw.send(one, data)
    if rng.random() < 0.6 and data.endswith(b"}"):
        one.recv(rng.choice([1, 100, 5000]))
    (raw.hard_close if rng.random() < 0.5 else socket.socket.close)(one)
    return ""


class Slow:
    """Connections that say a little and then nothing, held open while others are asked."""

    def __init__(self, server: Server) -> None:
        body = raw.post(raw.CHAT, json.dumps(body_of(raw.CHAT)).encode())
        self.body = raw.connect(server.url)
        self.body.sendall(body[:-5])
        self.head = raw.connect(server.url)
        self.head.sendall(body[:30])
        self.nothing = raw.connect(server.url)

    def statuses(self) -> dict[str, tuple[int, str]]:
        """Wait until each is answered: status and code."""
        found = {}
        for name, one in (("body", self.body), ("head", self.head), ("nothing", self.nothing)):
            with one:
                reply = raw.read(one)
            found[name] = (reply.status, str((reply.error or {}).get("code")))
        return found


# ---- WebSocket ----


def frame(payload: bytes, *, code: int = 1, final: bool = True, masked: bool = True, reserved: int = 0, length: int | None = None) -> bytes:
    """One frame of RFC 6455, right or wrong."""
    size = len(payload) if length is None else length
    first = (0x80 if final else 0) | reserved << 4 | code
    mark = 0x80 if masked else 0
    head = (
        struct.pack("!BB", first, mark | size)
        if size < 126
        else struct.pack("!BBH", first, mark | 126, size)
        if size < 65536
        else struct.pack("!BBQ", first, mark | 127, size)
    )
    key = b"\x01\x02\x03\x04"
    return head + (key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload)) if masked else payload)


def socket_garbage(server: Server, rng: random.Random) -> str:
    """A handshake that is right, and frames that are not; or a handshake that is not."""
    key = base64.b64encode(rng.randbytes(16))
    version, path = b"13", b"/v1/ws"
    bad_handshake = rng.random() < 0.2
    if bad_handshake:
        version, key = rng.choice([(b"12", key), (b"x", key), (b"13", b"short"), (b"13", b"\xff" * 16), (b"", b"")])
    hello = b"GET %b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: %b\r\nSec-WebSocket-Version: %b\r\n\r\n" % (
        path,
        key,
        version,
    )
    with raw.connect(server.url) as one:
        raw.send(one, hello)
        head = b""
        while b"\r\n\r\n" not in head:
            more = one.recv(65536)
            if not more:
                break
            head += more
        status = int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else 0
        if bad_handshake:
            return "" if 400 <= status < 500 else f"a bad handshake was answered with {status}"
        if status != 101:
            return f"a handshake was answered with {status}"
        asked = json.dumps({"id": "a", "type": "completions", "request": {"model": "echo", "prompt": "x"}}).encode()
        many = rng.choice([1, 20])
        said = rng.choice(
            [
                noise(rng),
                frame(noise(rng)),
                frame(noise(rng), code=2),
                frame(asked, masked=False),
                frame(asked, reserved=rng.randrange(1, 8)),
                frame(asked, code=rng.randrange(3, 8)),
                frame(b"x" * 200, code=9),
                frame(b"x", code=9, final=False),
                frame(b"", code=0),
                frame(asked, final=False),
                frame(b"", length=2**62),
                frame(b"", length=20 * 2**20),
                frame(b"\xff\xff"),
                frame(b"", code=8),
                frame(b"\x00", code=8),
                frame(struct.pack("!H", rng.randrange(65536)) + b"\xff", code=8),
                frame(b"[" * 3000),
                frame(
                    json.dumps(
                        rng.choice(
                            [1, [], None, {}, {"id": 1}, {"id": "a"}, {"type": "ping", "id": []}, {"id": "a" * 500, "type": "completions", "request": {}}]
                        )
                    ).encode()
                )
                * many,
                frame(
                    json.dumps(
                        {
                            "id": "a",
                            "type": rng.choice(["chat.completions", "completions", "cancel", "x", None]),
                            "request": rng.choice([{}, [], None, {"model": 1}, {"stream": "x"}]),
                        }
                    ).encode()
                )
                * many,
                frame(asked) * many,
                frame(
                    json.dumps(
                        {"id": "a", "type": "completions", "request": {"model": "echo", "prompt": "x", "max_tokens": 50_000, "ignore_eos": True}}
                    ).encode()
                ),
            ]
        )
        raw.send(one, said)
        if rng.random() < 0.5:
            one.settimeout(0.05)
            try:
                while one.recv(65536):
                    pass
            except (TimeoutError, ConnectionError):
                pass
        if rng.random() < 0.5:
            raw.hard_close(one)
    return ""


# ---- gRPC ----

CLIENT_S_FAULT = {
    grpc.StatusCode[name] for name in "INVALID_ARGUMENT NOT_FOUND RESOURCE_EXHAUSTED UNIMPLEMENTED CANCELLED DEADLINE_EXCEEDED OUT_OF_RANGE".split()
}


class GrpcGarbage:
    """Asks over one channel, with messages that are none; and on the bare port."""

    def __init__(self, server: Server) -> None:
        self.channel = grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)])

    def close(self) -> None:
        self.channel.close()

    def __call__(self, server: Server, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return self.bytes(server, rng)
        method = rng.choice(["Generate", "Chat", "GenerateStream", "ChatStream", "Nothing"])
        data = self.message(rng)
        timeout = rng.choice([30, 30, 30, 0.001])
        path = f"/largeforge.v1.Inference/{method}"
        metadata = [rng.choice([("x-priority", "nan"), ("x-request-id", "x" * 5000), ("authorization", "Bearer"), ("largeforge-bin", b"\xff")])]
        try:
            if method.endswith("Stream"):
                list(self.channel.unary_stream(path)(data, timeout=timeout, metadata=metadata))
            else:
                self.channel.unary_unary(path)(data, timeout=timeout, metadata=metadata)
        except grpc.RpcError as fault:
            code = fault.code()  # type: ignore[attr-defined]
            return "" if code in CLIENT_S_FAULT else f"{method}: {code} {fault.details()}"  # type: ignore[attr-defined]
        return ""

    def message(self, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return rng.randbytes(rng.randrange(0, 400))
        request = pb.GenerateRequest(
            model="echo", prompt="a b", max_tokens=rng.choice([0, -1, 5, 2**62]), temperature=rng.choice([float("nan"), float("inf"), -1.0, 0.5])
        )
        request.extra.update({rng.choice(["foo", "stream", "model", "logit_bias", "user"]): rng.choice([1, None, "x", [1], {"a": {"b": []}}])})
        data = bytearray(request.SerializeToString())
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.01:
            data += b"\x12\x80\x80\x80\x05" + b"a" * (10 * 2**20)  # a prompt of 10 MiB, over what is taken
        return bytes(data)

    def bytes(self, server: Server, rng: random.Random) -> str:
        host, _, port = server.grpc.rpartition(":")
        said = rng.choice(
            [
                noise(rng, 3000),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise(rng, 3000),
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff\xff\xff\x01\x05\x00\x00\x00\x01",
            ]
        )
        with socket.create_connection((host, int(port)), timeout=10) as one:
            raw.send(one, said)
            if rng.random() < 0.5:
                raw.hard_close(one)
        return ""


def seed_of_today() -> int:
    """The seed: fixed, or LARGEFORGE_FUZZ_SEED."""
    return int(os.environ.get("LARGEFORGE_FUZZ_SEED", "5"))
