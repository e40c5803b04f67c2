"""What serving a model will cost: its weights, and the KV cache that its requests share. Reads no weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from largeforge.contract import LoadedModel, Progress
from largeforge.plan.calibration import read_calibration
from largeforge.plan.devices import device_for
from largeforge.plan.report import Plan
from largeforge.plan.talking import PROMPT_TOKENS, key_value_bytes

if TYPE_CHECKING:
    from largeforge.task.serving_config import ServeConfig

DOOR_BYTES = 120 * 2**20  # of the door's process and LitServe's two small ones, measured on Linux


class ServingPlan:
    """Plans task=serve with an engine of this machine.

    Args:
        config: the whole typed config.
    """

    def __init__(self, config: ServeConfig) -> None:
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

        config: Any = self.config
        engine = config.engine
        device = device_for(device_name if device_name is not None else config.plan or True, kind=kind or ("cuda" if torch.cuda.is_available() else "cpu"))
        network: Any = model.network
        parameters = list(network.parameters())
        calibration = read_calibration(device.kind)
        per_token = key_value_bytes(network.config.get_text_config(), next(iter(parameters)).element_size())
        weights = sum(p.numel() * p.element_size() for p in parameters)
        together: int = engine.batch_size if hasattr(engine, "batch_size") else engine.max_num_seqs
        wanted = together * (PROMPT_TOKENS + engine.max_tokens) * per_token
        room = device.memory_bytes - weights - calibration.runtime_bytes - DOOR_BYTES
        cap = getattr(engine, "kv_cache_bytes", None)
        cache = min(wanted, cap) if isinstance(cap, int) else min(wanted, max(0, room) // (4 if device.kind == "cpu" else 1))
        cache = max(cache, (PROMPT_TOKENS + engine.max_tokens) * per_token)  # one request at least
        tokens = cache // per_token
        return Plan(
            task="serve",
            model=model.source.name,
            device=device,
            parameters=sum(p.numel() for p in parameters),
            trainable=0,
            memory={"weights": weights, "keys and values": cache, "libraries": calibration.runtime_bytes, "door": DOOR_BYTES},
            facts={
                "KV cache": f"{tokens:,} tokens, {per_token:,} bytes each",
                "requests at once": f"{min(together, tokens // (PROMPT_TOKENS + engine.max_tokens)):,} of {PROMPT_TOKENS} + {engine.max_tokens} tokens",
            },
            notes=[*model.notes, f"{calibration.told[0].upper()}{calibration.told[1:]}."],
        )
