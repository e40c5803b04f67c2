"""Bytes on a socket, as no decent client sends them, and what comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Reply:
    """What a server answered to bytes.

    Args:
        status: of HTTP; 0 where it closed the connection without a word, or said something that is no HTTP.
        body: of the first response.
        content_type: of it; "" where it has none.
    """

    status: int
    body: bytes
    content_type: str = ""

    @property
    def error(self) -> dict[str, Any] | None:
        """OpenAI's error object; None where the body is none."""
        try:
            found = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, dict) and set(found) == {"message", "type", "param", "code"} else None


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    host, _, port = url.partition("://")[2].rpartition(":")
    return host, int(port)


def connect(url: str, timeout_s: float = 30.0) -> socket.socket:
    """An open connection."""
    return socket.create_connection(address(url), timeout=timeout_s)


def post(path: str, body: bytes, *lines: bytes, chunked: bool = False) -> bytes:
    """A request; `lines` are further headers."""
    if chunked:
        size = 65536
        pieces = [b"%x\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size]) for at in range(0, len(body), size)]
        body, length = b"".join([*pieces, b"0\r\n\r\n"]), b"Transfer-Encoding: chunked"
    else:
        length = b"Content-Length: %d" % len(body)
    head = [b"POST %b HTTP/1.1" % path.encode("latin-1"), b"Host: x", b"Content-Type: application/json", length, *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def hard_close(one: socket.socket) -> None:
    """Leave by a reset, as a process that is killed with data unread."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def send(one: socket.socket, data: bytes) -> bool:
    """Send all; whether the server took it all (it may answer and close before)."""
    try:
        one.sendall(data)
    except OSError:
        return False
    return True


def read(one: socket.socket) -> Reply:
    """Read one response, or up to the end."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in data:
            more = one.recv(65536)
            if not more:
                break
            data += more
    head, found, body = data.partition(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    words = first.split(b" ")
    if not found or not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        return Reply(0, data)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in rest.split(b"\r\n"))}
    status = int(words[1])
    length = int(headers.get(b"content-length", b"-1"))
    with contextlib.suppress(ConnectionError):
        while len(body) < length if length >= 0 else not body.endswith(b"0\r\n\r\n"):
            more = one.recv(65536)
            if not more:
                break
            body += more
    return Reply(status, body, headers.get(b"content-type", b"").decode("latin-1"))


def ask(url: str, data: bytes) -> Reply:
    """Send bytes on a connection of their own, say that there are no more of them, and read what comes."""
    with connect(url) as one:
        send(one, data)
        return read(one)
