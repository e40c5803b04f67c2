"""door: the door alone, in front of an engine server that stands elsewhere, as a cluster has it."""

from __future__ import annotations

from dataclasses import replace

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
        whole = AllConfig.model_validate(
            {**self.config.model_dump(by_alias=True, exclude={"engine_url", "engine_key"}), "prove": False, "start_timeout_s": 60.0}
        )
        All(whole).run(replace(parts, launch=None, elsewhere=(self.config.engine_url, key, ""), name=self.config.name or "", adapters=()))
