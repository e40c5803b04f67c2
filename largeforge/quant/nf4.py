"""nf4: frozen weights in 4 bits, made whole for each product; with an adapter on top this is QLoRA. Knows nothing about the model."""

from __future__ import annotations

from typing import Any

import torch

from largeforge.quant.bitsandbytes_weights import COMPUTE, check_installed, packed
from largeforge.quant.config import NF4Config

BLOCK = 64  # weights that share a scale, as bitsandbytes has it


class NF4:
    """4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314): 16 levels that are evenly likely for normal weights, a scale for 64 of them.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """

    def __init__(self, config: NF4Config) -> None:
        self.config = config
        check_installed()

    def load_arguments(self, *, precision: str | None = None) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        kind: Any = BitsAndBytesConfig
        arguments = kind(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=self.config.double_quant, bnb_4bit_compute_dtype=self._compute(precision)
        )
        return {"quantization_config": arguments}

    def loaded(self, network: Any, *, trainable: bool) -> None:
        if not trainable:
            return
        for module in network.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # On a CPU a first pass in evaluation mode would repack the weights for a kernel that has no gradient, for good: a run that
                # validates would go on training with wrong gradients and say nothing (bitsandbytes 0.50.2, nn/modules.py, Linear4bit.forward).
                module.support_avx512bf16_for_cpu = False

    def outlined(self, network: Any, *, precision: str | None = None) -> Any:
        return packed(network, bits=4, block=BLOCK, double=self.config.double_quant, compute=self._compute(precision))

    @staticmethod
    def _compute(precision: str | None) -> torch.dtype:
        """What products are taken in: the trainer's precision."""
        return COMPUTE.get(precision or "bf16", torch.bfloat16)
