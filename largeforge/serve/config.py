"""Typed configs of the group serve; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from largeforge.config.typed import Bool, Int, NonNegativeFloat, PartConfig, PositiveFloat

Port = Annotated[Int, Field(ge=0, le=65535)]


class ServeConfig(PartConfig):
    """What every server has."""

    has_door: ClassVar[bool] = True
    """Whether clients reach it, past guards; an engine server answers its door only."""
    has_engine: ClassVar[bool] = True
    """Whether it starts an engine, or asks one that stands elsewhere."""

    host: str = Field(min_length=1, description="Where it listens.")
    port: Port = Field(description="On which port; 0 takes a free one.")
    name: str | None = Field(min_length=1, description="What requests call the model; null is the choice's, the folder's or the engine server's name.")
    drain_s: NonNegativeFloat = Field(description="Seconds that running answers are given after SIGTERM or Ctrl-C.")


class DoorConfig(ServeConfig):
    """What a door has."""

    grpc_port: Port | None = Field(description="Of gRPC; null is the port after `port`, 0 is no gRPC.")
    certificate: str | None = Field(description="A PEM file with the certificate and its chain: HTTPS, gRPC over TLS (1.2 or newer).")
    private_key: str | None = Field(description="A PEM file with its private key.")
    open: Bool = Field(description="Let everybody in, without keys, though the door listens elsewhere than on loopback.")


class AllConfig(DoorConfig):
    """The door and the engine server behind it, on this machine."""

    prove: Bool = Field(
        description="Before it is ready: compare the answers to pinned prompts with those of plain transformers; refuse to serve where they differ."
    )
    start_timeout_s: PositiveFloat = Field(description="Seconds until the engine must be ready; of vLLM engine.start_timeout_s says so.")


class DoorOnlyConfig(DoorConfig):
    """The door alone, in front of an engine server that stands elsewhere."""

    has_engine = False

    start_timeout_s: PositiveFloat = Field(description="Seconds until the engine server must answer; it is loading until then.")
    engine_url: str = Field(min_length=1, description="Where the engine server stands: http://10.0.0.5:8100.")
    engine_key: SecretStr | None = Field(description="What it asks for.")


class EngineOnlyConfig(ServeConfig):
    """The engine server alone, for a door that stands elsewhere."""

    has_door = False

    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field(description="Where it listens; LitServe takes these.")
    port: Annotated[Int, Field(ge=1024, le=65535)] = Field(description="On which port; LitServe takes none below 1024.")
    engine_key: SecretStr | None = Field(description="What its door must say; needed elsewhere than on loopback.")
    start_timeout_s: PositiveFloat = Field(description="Seconds until the engine must be ready; of vLLM engine.start_timeout_s says so.")
