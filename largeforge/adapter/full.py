"""No adapter: every parameter learns; knows nothing about how weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from largeforge.adapter.config import FullConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Full:
    """Full fine-tuning."""

    trains_base = True

    def __init__(self, config: FullConfig, *, seed: int | None = None) -> None:
        self.config = config

    def apply(self, network: PreTrainedModel) -> PreTrainedModel:
        """Let every parameter learn; an adapter that the network carries already is merged into its weights first."""
        if hasattr(network, "peft_config"):
            network = network.merge_and_unload()  # type: ignore[operator]
        network.requires_grad_(True)
        return network
