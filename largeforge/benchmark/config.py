"""Typed configs of the group benchmark; imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from largeforge.config.typed import NonNegativeInt, PartConfig, PositiveInt


class BenchmarkConfig(PartConfig):
    """What every benchmark has."""


class UnmeasuredConfig(BenchmarkConfig):
    """Nothing is asked before and after training."""


class ExactMatchConfig(BenchmarkConfig):
    """The share of held-out prompts that are answered with exactly the expected text."""

    limit: PositiveInt | None = Field(description="Ask at most so many held-out rows; null is all.")
    max_tokens: PositiveInt = Field(description="Tokens of an answer at most.")
    show: NonNegativeInt = Field(description="Rows of the table that is shown.")
