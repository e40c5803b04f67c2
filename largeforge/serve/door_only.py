"""door: the door alone, in front of an engine server that stands elsewhere, as a cluster has it."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from largeforge.errors import InputError
from largeforge.serve.all import All
from largeforge.serve.base import Parts
from largeforge.serve.config import AllConfig, DoorOnlyConfig


class DoorOnly:
    """Serves what another machine answers.

    Args:
        config: where, and whom it asks.
    """

    def __init__(self, config: DoorOnlyConfig) -> None:
        self.config = config

    def run(self, parts: Parts) -> None:
        """Serve until SIGTERM or Ctrl-C. Raises ServeError."""
        key = self.config.engine_key.get_secret_value() if self.config.engine_key is not None else ""
        whole = AllConfig.model_validate({**self.config.model_dump(by_alias=True, exclude={"engine_url", "engine_key"}), "prove": False})
        All(whole).run(
            replace(
                parts,
                launch=None,
                elsewhere=(with_version(self.config.engine_url), key, ""),
                name=self.config.name or "",
                adapters=(),
                defaults=None,
                adapter=None,
            )
        )


def with_version(url: str) -> str:
    """The URL of an engine server with its /v1. Raises InputError where it is none, or holds a password, which every config.yaml would show."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
        raise InputError(
            f"serve.engine_url={parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()} is no URL of an engine server.",
            next_step="serve.engine_url=http://127.0.0.1:8100",
        )
    return url.strip().rstrip("/").removesuffix("/v1") + "/v1"
