"""Typed configs of the group guard; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, NonNegativeFloat, PartConfig, PositiveFloat, PositiveInt


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
