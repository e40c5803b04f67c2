"""int8: frozen weights in 8 bits, with outliers of the activations in 16; an adapter learns on top. Knows nothing about the model."""

from __future__ import annotations

from typing import Any

from largeforge.quant.bitsandbytes_weights import COMPUTE, check_installed, packed
from largeforge.quant.config import Int8Config


class Int8:
    """LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): a scale for each row, and columns whose activations exceed the threshold in 16 bits.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """

    def __init__(self, config: Int8Config) -> None:
        self.config = config
        check_installed()

    def load_arguments(self, *, precision: str | None = None) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        kind: Any = BitsAndBytesConfig
        return {"quantization_config": kind(load_in_8bit=True, llm_int8_threshold=self.config.outlier_threshold)}

    def loaded(self, network: Any, *, trainable: bool) -> None:
        """Nothing to do: it trains as it is loaded."""

    def outlined(self, network: Any, *, precision: str | None = None) -> Any:
        return packed(network, bits=8, block=0, double=False, compute=COMPUTE.get(precision or "bf16", COMPUTE["bf16"]))
