"""moto's S3 on a port of its own, with faults on demand: `python -m tests.storage.s3_server`; prints its port, serves until it is killed.

POST /-/rule {"method": "PUT", "match": "rows/", "after": 1, "do": "fail" | "deny" | "key" | "slow"} makes requests of that method
whose path holds `match`, from the one after `after` on, go wrong; `times` says how often. POST /-/rule {} takes all rules back.
GET /-/seen lists what was asked since the last rule: [method, path].
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

from moto.server import create_backend_app
from werkzeug.serving import make_server

MESSAGES = {
    "fail": ("503 Service Unavailable", b"<Error><Code>ServiceUnavailable</Code><Message>busy</Message></Error>"),
    "deny": ("403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
    "key": ("403 Forbidden", b"<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known.</Message></Error>"),
}


class Faulty:
    """A WSGI application in front of moto's."""

    def __init__(self) -> None:
        self.moto = create_backend_app("s3")
        self.lock = threading.Lock()
        self.rule: dict[str, Any] = {}
        self.matched = 0
        self.seen: list[tuple[str, str]] = []

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/-/rule":
            with self.lock:
                self.rule = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self.matched, self.seen = 0, []
            start("200 OK", [])
            return [b""]
        if path == "/-/seen":
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.seen).encode()]
        with self.lock:
            self.seen.append((method, path + ("?" + environ["QUERY_STRING"] if environ.get("QUERY_STRING") else "")))
            rule = self.rule
            hit = bool(rule) and method == rule["method"] and rule.get("match", "") in path
            self.matched += hit
            hit = hit and rule.get("after", 0) < self.matched <= rule.get("after", 0) + rule.get("times", 10**6)
        if not hit:
            return self.moto(environ, start)
        if rule["do"] == "slow":
            time.sleep(1)
            return self.moto(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, body = MESSAGES.get(rule["do"], MESSAGES["fail"])
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, Faulty(), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
