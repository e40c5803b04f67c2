"""Typed configs of the group method; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import PartConfig, PositiveFloat


class MethodConfig(PartConfig):
    """What every method has."""

    learning_rate: PositiveFloat = Field(description="Peak learning rate, reached after the warm-up.")
    train_on: Literal["answer", "all"] = Field(description="answer: the assistant's turns; all: every token.")


class SFTConfig(MethodConfig):
    """Supervised fine-tuning: the mean negative log-likelihood of supervised tokens."""
