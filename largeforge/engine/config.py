"""Typed configs of the group engine; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from largeforge.config.typed import NonNegativeFloat, NonNegativeInt, PartConfig, PositiveInt, real_number


class EngineConfig(PartConfig):
    """What every engine has: how answers are drawn where a request does not say."""

    max_tokens: PositiveInt = Field(description="Tokens of an answer at most.")
    temperature: NonNegativeFloat = Field(description="0 is greedy: always the likeliest token.")
    top_p: Annotated[float, BeforeValidator(real_number), Field(gt=0, le=1)] = Field(description="Nucleus that a token is drawn from.")
    top_k: NonNegativeInt = Field(description="Candidates that a token is drawn from; 0 is all.")


class HFConfig(EngineConfig):
    """transformers in this process, in padded batches."""

    batch_size: PositiveInt = Field(description="Requests that are answered together at most; fewer where their keys and values would take over 4 GiB.")
