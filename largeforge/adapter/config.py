"""Typed configs of the group adapter; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from largeforge.config.typed import Bool, PartConfig, PositiveFloat, PositiveInt, real_number

DropoutRate = Annotated[float, BeforeValidator(real_number), Field(ge=0, lt=1)]


class AdapterConfig(PartConfig):
    """What every adapter has."""


class FullConfig(AdapterConfig):
    """No adapter: every parameter learns (full fine-tuning)."""


class LoRAConfig(AdapterConfig):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

    r: PositiveInt = Field(description="Rank of the update.")
    alpha: PositiveFloat = Field(description="Scale: the update is multiplied by alpha / r (alpha / sqrt(r) with rslora).")
    dropout: DropoutRate = Field(description="Dropout on the adapter's input.")
    target_modules: str | list[str] = Field(description="all-linear, or the names of the layers that get an adapter.")
    rslora: Bool = Field(description="Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732).")
    dora: Bool = Field(description="Weight-decomposed adaptation (Liu et al. 2024, arXiv:2402.09353).")
