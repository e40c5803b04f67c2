"""Typed configs of the group quant; imports nothing heavy."""

from __future__ import annotations

from largeforge.config.typed import PartConfig


class QuantConfig(PartConfig):
    """What every way of holding weights has."""


class UnquantizedConfig(QuantConfig):
    """Weights as they are, in the model's dtype."""
