"""TLS of the door, where OpenSSL itself would allow older versions. Certificates, and a door as a user starts it: test_serving_echo."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
import uvicorn.config

from largeforge.asgi import Receive, Scope, Send, respond
from largeforge.guard.head_limit import head_limited
from largeforge.serve.base import Listening, run_loop
from tests.serve.test_serving_echo import make_certificate
from tests.tiny_models import config


class Open:
    """A door without guards."""

    max_message_bytes = 4096

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"{}")


def shake_hands(port: int, certificate: Path, version: ssl.TLSVersion) -> str:
    """As a client of one version of TLS that takes any cipher; what they agreed on, else why they did not."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = version
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain, server_hostname="localhost") as safe:
            return str(safe.version())
    except (ssl.SSLError, ConnectionError) as fault:
        return str(fault)


def test_no_version_before_1_2_whatever_openssl_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-SEC-002: the door says so itself, and does not rely on how Python or the system were built."""
    made = uvicorn.config.create_ssl_context

    def lax(*arguments: Any, **how: Any) -> ssl.SSLContext:
        context = made(*arguments, **how)
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        return context

    monkeypatch.setattr(uvicorn.config, "create_ssl_context", lax)
    certificate, private = make_certificate(tmp_path, days=10)

    async def story() -> None:
        door: Any = Open()
        listening = Listening(config("serve", "all", port=0, grpc_port=0, certificate=str(certificate), private_key=str(private)), protocol=head_limited())
        try:
            await listening.start(door)
            server: Any = listening._server
            said = [await asyncio.to_thread(shake_hands, listening.port, certificate, version) for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2)]
            assert not said[0].startswith("TLS") and said[1] == "TLSv1.2", said
            assert server.config.ssl.minimum_version == ssl.TLSVersion.TLSv1_2  # where this OpenSSL has no older one at all
        finally:
            await listening.stop()
            listening.close()

    run_loop(story())
