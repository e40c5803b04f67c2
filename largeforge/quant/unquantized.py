"""Weights as they are; knows nothing about the model."""

from __future__ import annotations

from typing import Any

from largeforge.quant.config import UnquantizedConfig


class Unquantized:
    """No quantization."""

    def __init__(self, config: UnquantizedConfig) -> None:
        self.config = config

    def load_arguments(self, *, precision: str | None = None) -> dict[str, Any]:
        return {}

    def loaded(self, network: Any, *, trainable: bool) -> None:
        """Nothing to do."""

    def outlined(self, network: Any, *, precision: str | None = None) -> Any:
        return network
