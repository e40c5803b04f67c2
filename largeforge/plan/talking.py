"""What talking to a model will cost: its weights, and the keys and values of the tokens it keeps. Reads no weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from largeforge.contract import LoadedModel, Progress
from largeforge.plan.calibration import read_calibration
from largeforge.plan.devices import device_for
from largeforge.plan.report import Plan

if TYPE_CHECKING:
    from largeforge.task.config import ChatConfig

PROMPT_TOKENS = 1024


class TalkingPlan:
    """Plans task=chat.

    Args:
        config: the whole typed config.
    """

    def __init__(self, config: ChatConfig) -> None:
        self.config = config

    def __call__(self, *, model: LoadedModel, progress: Progress | None = None, device_name: bool | str | None = None, kind: str | None = None) -> Plan:
        """Return the plan.

        Args:
            model: on the meta device.
            progress: shows nothing today.
            device_name: True for the device found, or a name; None takes `plan` of the config.
            kind: "cpu" or "cuda", of the device found; None asks torch.
        """
        import torch

        config = self.config
        device = device_for(device_name if device_name is not None else config.plan or True, kind=kind or ("cuda" if torch.cuda.is_available() else "cpu"))
        network: Any = model.network
        parameters = list(network.parameters())
        tokens = PROMPT_TOKENS + config.engine.max_tokens
        calibration = read_calibration(device.kind)
        memory = {
            "weights": sum(p.numel() * p.element_size() for p in parameters),
            "keys and values": tokens * key_value_bytes(network.config, next(iter(parameters)).element_size()),
            "libraries": calibration.runtime_bytes,
        }
        return Plan(
            task="chat",
            model=model.source.name,
            device=device,
            parameters=sum(p.numel() for p in parameters),
            trainable=0,
            memory=memory,
            facts={"tokens of a conversation": tokens},
            notes=[
                *model.notes,
                f"One conversation of {PROMPT_TOKENS} tokens and an answer of {config.engine.max_tokens}. {calibration.told[0].upper()}{calibration.told[1:]}.",
            ],
        )


def key_value_bytes(config: Any, element_bytes: int) -> int:
    """Bytes that one token's keys and values take over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * element_bytes)
