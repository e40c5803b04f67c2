"""Typed configs of the group guard; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, NonNegativeFloat, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed


class GuardConfig(PartConfig):
    """What every guard has."""


class KeysConfig(GuardConfig):
    """Who may ask: those who show an API key."""

    require: Literal["auto"] | Bool = Field(description="Ask for a key: true, false, or auto, which asks unless the server is bound to this machine alone.")
    cache_s: PositiveFloat = Field(description="Seconds that a key is known by without asking the store: a revoked one works no longer than this.")
    unknown_cache_s: NonNegativeFloat = Field(description="Seconds that a key which the store does not know is refused without asking it again.")
    stale_s: NonNegativeFloat = Field(description="Seconds that a key goes on working while the store does not answer.")
    cache_size: PositiveInt = Field(description="Keys that are remembered at most, known ones and unknown ones each; the least recently used go first.")
    timeout_s: PositiveFloat = Field(description="Seconds to wait for the store.")


class RequestIDConfig(GuardConfig):
    """A name for every request, in the header X-Request-ID and in the log."""


class AccessLogConfig(GuardConfig):
    """One line of the log for every request; no prompt, no answer, no key."""


class MetricsConfig(GuardConfig):
    """What /metrics tells, measured at the end of every request that generates."""


class BodyLimitConfig(GuardConfig):
    """How much a client may send, and how long it may take."""

    max_bytes: PositiveInt = Field(
        le=256 * 2**20, description="Bytes of a request's body at most, over WebSocket and gRPC too; more is answered with 413. At most 256 MiB."
    )
    read_timeout_s: PositiveFloat = Field(description="Seconds within which the whole body has to be there; slower is answered with 408.")


class RateConfig(GuardConfig):
    """How often an owner of a key may ask; where keys are off, everybody is one owner."""

    requests_per_minute: PositiveInt | None = Field(
        description="Requests that one key may make in a minute, at once too; null is any number. A key's own limit wins."
    )
    tokens_per_minute: PositiveInt | None = Field(
        description="Tokens of prompts and answers for one key in a minute; null is any number. A key's own limit wins."
    )


class ConcurrencyConfig(GuardConfig):
    """How many requests are answered at once, and who is next."""

    max_active: PositiveInt = Field(description="Requests that are answered at once; the others wait.")
    max_waiting: NonNegativeInt = Field(description="Requests that may wait; one more is answered with 503.")
    max_waiting_per_key: PositiveInt | None = Field(description="Requests of one key that may wait, one more is answered with 429; null is any number.")
    max_wait_s: PositiveFloat = Field(description="Seconds that a request waits at most; then it is answered with 503.")
    ageing_s: PositiveFloat = Field(description="Every so many seconds of waiting count as one step of priority, so that nobody waits for ever.")
    fair: Bool = Field(description="Whether owners of keys take turns; false is first come, first served.")
    priorities: Bool = Field(description="Whether a higher priority is served first: a key's own, which the header X-Priority may lower.")


class DeadlineConfig(GuardConfig):
    """How long an answer may take."""

    seconds: PositiveFloat | None = Field(
        description="Seconds from a request's coming to the end of its answer; null is any number. The header X-Request-Timeout may shorten it."
    )


class GuardsConfig(Typed):
    """Every guard of the door; they stand in a fixed order, the outermost first."""

    request_id: RequestIDConfig = Field(description="A name for every request.")
    access_log: AccessLogConfig = Field(description="One line a request, without what was said.")
    metrics: MetricsConfig = Field(description="What /metrics tells.")
    keys: KeysConfig = Field(description="Who may ask.")
    body_limit: BodyLimitConfig = Field(description="How much may be sent, and how slowly.")
    rate: RateConfig = Field(description="How often each may ask.")
    concurrency: ConcurrencyConfig = Field(description="How many are answered at once, and who is next.")
    deadline: DeadlineConfig = Field(description="How long an answer may take.")
