"""LoRA adapters that answer side by side in one batch: loaded once, and each token computed with its own request's.

Knows layers and tokens; which request wants which adapter is told with every step.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from largeforge.artifact import is_artifact, read_artifact
from largeforge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from largeforge.contract import Reference

FILE = "adapter_config.json"


def load_adapters(network: PreTrainedModel, adapters: Mapping[str, str], *, base: Reference) -> PreTrainedModel:
    """Return the network with adapters beside its layers, in fp32; none of them is switched on.

    Args:
        network: the base, or with an adapter of its own around it.
        adapters: name -> folder of a peft adapter, of an artifact or of a run that left one.
        base: the network's weights: an artifact says which ones it was trained on.

    Raises:
        InputError: no adapter there, of another base or shape, or of a kind that cannot stand beside others.
    """
    from peft import PeftModel

    adapted: Any = network
    own = active_adapter(network)
    for name, path in adapters.items():
        if name in (own, "") or "." in name:
            raise InputError(f"No adapter can be called {name!r}.", next_step="engine.adapters: other names, without dots")
        folder = _folder(name, path)
        _check_base(name, folder, base)
        try:
            if hasattr(adapted, "peft_config"):
                adapted.load_adapter(str(folder), adapter_name=name, is_trainable=False)
            else:
                adapted = PeftModel.from_pretrained(adapted, str(folder), adapter_name=name, is_trainable=False)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as fault:
            message = " ".join(str(fault).split())[:300]
            raise InputError(f"The adapter {name} in {folder} does not fit {base.name}: {message}", next_step="an adapter of this model") from fault
        _check_kind(adapted, name, folder)
    if own is not None:
        adapted.set_adapter(own)
    adapted.eval()
    return adapted  # type: ignore[no-any-return]


def active_adapter(network: PreTrainedModel) -> str | None:
    """The adapter that a network came with; None where it has none."""
    return str(getattr(network, "active_adapter", None)) if hasattr(network, "peft_config") else None


def _folder(name: str, path: str) -> Path:
    folder = Path(path).expanduser()
    found = next((one for one in (folder, folder / "artifact") if (one / FILE).is_file()), None)
    if found is None:
        what = f"holds no {FILE}" if folder.is_dir() else "is no folder"
        raise InputError(f"engine.adapters.{name}={path} {what}.", next_step="the folder of a peft adapter, or of a run that trained one")
    if is_artifact(found):
        read_artifact(found, kind="adapter")
    return found


def _check_base(name: str, folder: Path, base: Reference) -> None:
    artifact = read_artifact(folder) if is_artifact(folder) else None
    trained_on = next((parent for parent in artifact.parents if parent.kind == "model"), None) if artifact is not None else None
    if trained_on is not None and trained_on.sha256 and base.sha256 and trained_on.sha256 != base.sha256:
        raise InputError(
            f"The adapter {name} was trained on {trained_on.name} with sha256 {trained_on.sha256[:12]}; this model is {base.name} with {base.sha256[:12]}.",
            next_step="the model that the adapter was trained on, or an adapter of this model",
        )


def _check_kind(network: Any, name: str, folder: Path) -> None:
    """Refuse what a mixed batch does not compute: DoRA, layers trained whole, embeddings, other methods than LoRA."""
    from peft import PeftType
    from peft.tuners.lora import LoraLayer

    config = network.peft_config[name]
    if config.peft_type != PeftType.LORA:
        raise InputError(f"The adapter {name} in {folder} is {config.peft_type}; several answer side by side as LoRA only.", next_step="merge it into a model")
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    odd = "DoRA" if any(module.lora_variant for module in layers) else ""
    odd = odd or ("layers trained whole (modules_to_save)" if config.modules_to_save else "")
    odd = odd or ("layers that are not linear" if any(module.lora_embedding_A or not _is_linear(module) for module in layers) else "")
    if odd:
        raise InputError(f"The adapter {name} in {folder} has {odd}, which cannot stand beside others.", next_step="merge it into a model: task=merge")


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Linear4bit", "Linear8bitLt")


class Mixing:
    """Computes each token of a step with the adapter of its request.

    Args:
        network: with adapters beside its layers.
        names: of each number a request may tell: number 0 is the network as it was loaded; None is its base alone.
    """

    def __init__(self, network: PreTrainedModel, names: Sequence[str | None]) -> None:
        self.network = network
        self.names = names
        self._places: list[tuple[str, Tensor | None]] = []
        self._thread = 0  # that steps are computed on: whoever else computes with the network meanwhile is left alone

    def lay_out(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Say whose the tokens of the next step are: (adapter, number of tokens), in their order."""
        self._thread = threading.get_ident()
        if len({adapter for adapter, _ in pieces}) == 1:
            name = self.names[pieces[0][0]]
            self._places = [] if name is None else [(name, None)]
            return
        places: dict[str, list[int]] = {}
        at = 0
        for adapter, run in groupby(pieces, key=lambda piece: piece[0]):
            length = sum(length for _, length in run)
            name = self.names[adapter]
            if name is not None:
                places.setdefault(name, []).extend(range(at, at + length))
            at += length
        self._places = [(name, torch.tensor(found, device=self.network.device)) for name, found in places.items()]

    def begin(self) -> None:
        """Let the layers compute so."""
        from peft.tuners.lora import LoraLayer

        for module in self.network.modules():
            if isinstance(module, LoraLayer):
                layer: Any = module
                layer.forward = partial(self._forward, layer)

    def end(self) -> None:
        """Let the layers compute as they did."""
        for module in self.network.modules():
            vars(module).pop("forward", None)

    def _forward(self, layer: Any, inputs_1TD: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if threading.get_ident() != self._thread:
            usual: Tensor = type(layer).forward(layer, inputs_1TD, *arguments, **named)
            return usual
        out_1TD: Tensor = layer.base_layer(inputs_1TD, *arguments, **named)
        for name, places in self._places:
            if name not in layer.lora_A:
                continue
            down, up = layer.lora_A[name], layer.lora_B[name]
            own = inputs_1TD if places is None else inputs_1TD[:, places]
            update = up(down(own.to(down.weight.dtype))) * layer.scaling[name]
            if places is None:
                out_1TD = out_1TD + update.to(out_1TD.dtype)
            else:
                out_1TD = out_1TD.index_add(1, places, update.to(out_1TD.dtype))
        return out_1TD
