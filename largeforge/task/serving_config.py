"""Typed configs of the tasks that serve, and that say who may ask; imports nothing heavy. Reached through `largeforge.task.config`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Int, PositiveFloat, PositiveInt
from largeforge.engine.config import EngineConfig
from largeforge.guard.config import GuardsConfig
from largeforge.model.config import ModelConfig
from largeforge.quant.config import QuantConfig
from largeforge.serve.config import ServeConfig as ServerConfig
from largeforge.store.config import StoreConfig
from largeforge.task.config import RootConfig


class KeysConfig(RootConfig):
    """Make, list and revoke the API keys that task=serve asks for."""

    store: StoreConfig = Field(description="Where keys are kept: the same as of task=serve.")
    create: str | None = Field(description="Make a key for this name, and print it once; letters, digits and _.@+- only. null makes none.")
    revoke: str | None = Field(description="Make the key of this name, or of these first letters, worthless; null revokes none.")
    priority: Int = Field(ge=-100, le=100, description="Of the key that is made: the higher is served first; 0 is usual.")
    requests_per_minute: PositiveInt | None = Field(description="Of the key that is made: requests of a minute at most; null is what the server says.")
    tokens_per_minute: PositiveInt | None = Field(
        description="Of the key that is made: tokens of prompts and answers of a minute at most; null is the server's."
    )
    expires_days: PositiveFloat | None = Field(le=36500, description="Days after which the key that is made is worthless; null is never.")
    scopes: list[Literal["infer", "admin"]] = Field(min_length=1, description="What the key that is made may do.")


class ServeConfig(RootConfig):
    """Serve a model over OpenAI's HTTP, WebSocket and gRPC."""

    model: ModelConfig = Field(description="Who answers: an artifact, a folder, a Hub id, a choice.")
    quant: QuantConfig = Field(description="How weights are held.")
    engine: EngineConfig = Field(description="How it answers.")
    serve: ServerConfig = Field(description="What runs here, and where it listens.")
    guards: GuardsConfig = Field(description="What a request must pass.")
    store: StoreConfig = Field(description="Where keys are kept.")
