"""Typed configs of the group quant; imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from largeforge.config.typed import Bool, NonNegativeFloat, PartConfig


class QuantConfig(PartConfig):
    """What every way of holding weights has."""


class UnquantizedConfig(QuantConfig):
    """Weights as they are, in the model's dtype."""


class NF4Config(QuantConfig):
    """4-bit NormalFloat; with adapter=lora this is QLoRA."""

    double_quant: Bool = Field(description="Quantize the scales too: 0.4 bits a weight less.")


class Int8Config(QuantConfig):
    """8-bit integers, outliers in 16 bits."""

    outlier_threshold: NonNegativeFloat = Field(description="Activations above this are multiplied in 16 bits; 0 treats all alike.")
