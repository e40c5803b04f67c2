"""LoRA: a low-rank update beside frozen weights, by peft; knows nothing about how weights are loaded or trained."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch

from largeforge.adapter.config import LoRAConfig
from largeforge.errors import ConfigError, InputError, Problem

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


class LoRA:
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): `W x + scale * B A x`, where only A and B learn.

    A is drawn from the seed, B starts at zero, so training starts from the base.

    Args:
        config: rank, scale, dropout, layers.
        seed: of A; torch's global generator is left as it was. None draws from the global generator.
    """

    trains_base = False

    def __init__(self, config: LoRAConfig, *, seed: int | None = None) -> None:
        self.config = config
        self.seed = seed

    def apply(self, network: PreTrainedModel) -> PreTrainedModel:
        """Freeze the network and set an adapter beside its linear layers, the output head left out.

        Adapter weights are fp32, whatever the base is held in. A network that carries a LoRA of the same form already goes on
        learning that one. Works on the meta device.

        Raises:
            ConfigError: target_modules names a layer that the network does not have.
            InputError: the network carries an adapter of another form.
        """
        if hasattr(network, "peft_config"):
            return self._go_on(network)
        from peft import get_peft_model

        self._check_targets(network)
        revision = getattr(network.config, "_commit_hash", None)
        with torch.random.fork_rng(devices=[], enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed)
            adapted: Any = get_peft_model(network, self._peft_config(), revision=revision)
        return adapted  # type: ignore[no-any-return]

    def _peft_config(self) -> LoraConfig:
        from peft import LoraConfig

        config = self.config
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=config.r,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=config.target_modules,
            use_rslora=config.rslora,
            use_dora=config.dora,
        )

    def _check_targets(self, network: PreTrainedModel) -> None:
        wanted = self.config.target_modules
        if wanted == ALL_LINEAR:
            return
        names = [wanted] if isinstance(wanted, str) else wanted
        known = linear_names(network)
        unknown = [name for name in names if not any(name == full or full.endswith(f".{name}") for full in known)]
        if not names or unknown:
            short = sorted({full.rsplit(".", 1)[-1] for full in known})
            near = difflib.get_close_matches(unknown[0], short, 1) if unknown else []
            value = ", ".join(unknown) or "[]"
            raise ConfigError(
                [Problem("adapter.target_modules", value, f"all-linear, or layers this model has: {', '.join(short)}", "adapter=lora")],
                next_step=f"adapter.target_modules=[{near[0] if near else ','.join(short)}]",
            )

    def _go_on(self, network: PreTrainedModel) -> PreTrainedModel:
        carried: Any = network.peft_config["default"]
        config = self.config
        asked = {"r": config.r, "alpha": config.alpha, "rslora": config.rslora, "dora": config.dora}
        found = {"r": carried.r, "alpha": carried.lora_alpha, "rslora": carried.use_rslora, "dora": carried.use_dora}
        if asked != found:
            words = ", ".join(f"{key}={found[key]} (asked: {asked[key]})" for key in asked if asked[key] != found[key])
            mend = " ".join(f"adapter.{key}={str(value).lower()}" for key, value in found.items() if asked[key] != value)
            raise InputError(
                f"This model is an adapter already, with {words}.",
                next_step=f"{mend}, which goes on training it; or adapter=none, which merges it and trains everything",
            )
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return network


def linear_names(network: PreTrainedModel) -> list[str]:
    """Return the dotted names of the linear layers, the output head left out."""
    from torch.nn import Linear

    head = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [name for name, module in network.named_modules() if isinstance(module, Linear) and module is not head]
