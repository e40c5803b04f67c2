"""Typed configs of the group engine; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from largeforge.config.typed import NonNegativeFloat, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed, real_number


class EngineConfig(PartConfig):
    """What every engine has: how answers are drawn where a request does not say."""

    max_tokens: PositiveInt = Field(description="Tokens of an answer at most.")
    temperature: NonNegativeFloat = Field(description="0 is greedy: always the likeliest token.")
    top_p: Annotated[float, BeforeValidator(real_number), Field(gt=0, le=1)] = Field(description="Nucleus that a token is drawn from.")
    top_k: NonNegativeInt = Field(description="Candidates that a token is drawn from; 0 is all.")


class HFConfig(EngineConfig):
    """transformers in this process."""

    batch_size: PositiveInt = Field(description="Requests that are answered together at most; fewer where their keys and values would take over 4 GiB.")


class BudgetConfig(Typed):
    """What may be spent on answers: once it is, running ones finish and no more are asked."""

    tokens: PositiveInt | None = Field(description="Tokens of prompts and answers together at most; null is no limit.")
    cost: PositiveFloat | None = Field(description="Money at most, in the currency of the prices; null is no limit.")
    prompt_price: NonNegativeFloat = Field(description="Price of a million tokens of prompts.")
    completion_price: NonNegativeFloat = Field(description="Price of a million tokens of answers.")


class EchoConfig(EngineConfig):
    """Says what was asked: for tests and dry runs."""

    in_flight: PositiveInt = Field(description="Requests that are asked at once at most.")
    budget: BudgetConfig = Field(description="What may be spent.")
