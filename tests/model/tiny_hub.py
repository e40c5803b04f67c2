"""A Hub of one machine: the two addresses that huggingface_hub asks, over real HTTP, with the answers the Hub gives."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {
    "org/gated": (403, "GatedRepo"),
    "org/gated-anonymous": (401, "GatedRepo"),
    "org/absent": (404, "RepoNotFound"),
    "org/broken": (500, ""),
}


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve `folder` as the model org/nano with the one revision main; every other name is refused as REFUSALS says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                name, revision, file = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", None
            elif len(parts) > 4 and parts[2] == "resolve":
                name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            else:
                self.refuse(404, "")
                return
            if name in REFUSALS:
                # the Hub tells what a gated model is, and refuses its files
                if REFUSALS[name][1] == "GatedRepo" and file is None:
                    self.tell(parts, [("config.json", b"{}")])
                else:
                    self.refuse(*REFUSALS[name])
            elif revision not in ("main", COMMIT):
                self.refuse(404, "RevisionNotFound")
            elif file is None:
                self.tell(parts, [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()])
            elif not (folder / file).is_file():
                self.refuse(404, "EntryNotFound")
            else:
                self.send_bytes((folder / file).read_bytes(), "application/octet-stream")

        def tell(self, parts: list[str], files: list[tuple[str, bytes]]) -> None:
            """What a model's page says: its files as a tree, or the model with their names."""
            tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()} for name, content in files]
            page = {"id": "/".join(parts[2:4]), "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": name} for name, _ in files]}
            self.send_bytes(json.dumps(tree if "tree" in parts else page).encode(), "application/json")

        def send_bytes(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
