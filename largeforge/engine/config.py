"""Typed configs of the group engine; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

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


class RemoteConfig(EngineConfig):
    """Any server that speaks OpenAI's chat completions."""

    url: str = Field(min_length=1, description="Where it stands: https://api.example.com/v1, http://localhost:8000.")
    model: str | None = Field(description="The model's name there; null is the first that the server lists.")
    api_key: SecretStr | None = Field(description="The key, better given as LARGEFORGE_ENGINE__API_KEY than typed; null is none.")
    in_flight: PositiveInt = Field(description="Requests that are asked at once at most.")
    requests_per_minute: PositiveInt | None = Field(description="Requests of a minute at most, retries included, evenly spaced; null is no limit.")
    tokens_per_minute: PositiveInt | None = Field(description="Tokens of prompts and answers of a minute at most; null is no limit.")
    retries: NonNegativeInt = Field(
        description="Further tries where nobody answers, where it is busy (429) or at fault (5xx); waits double, Retry-After is honoured."
    )
    timeout_s: PositiveFloat = Field(description="Seconds to wait for an answer; of a stream, for its next piece.")
    budget: BudgetConfig = Field(description="What may be spent.")
