"""What every model source shares: from a folder of files to a network, a tokenizer and a template.

Where the folder comes from is each source's own business; which parameters learn is the adapter's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from largeforge.contract import LoadedModel, Reference
from largeforge.errors import ModelError
from largeforge.model.attention import outlined, runnable
from largeforge.model.config import ModelConfig
from largeforge.model.dtype import held_dtype
from largeforge.model.folder import TOKENIZER_FILES, check_folder, read_json
from largeforge.model.shape import differences, impossible, network_config
from largeforge.model.template import settle_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from largeforge.contract import Adapter, Progress, Quant


@dataclass(frozen=True)
class Place:
    """A model on this machine.

    Args:
        folder: holds config.json, weights and tokenizer.
        name: what a saved adapter shall call its base: a Hub id, or the folder.
        source: what locks and manifests record.
    """

    folder: Path
    name: str
    source: Reference


class Source:
    """A model source: subclasses say where the folder is, this class loads it."""

    def __init__(self, config: ModelConfig, *, progress: Progress | None = None) -> None:
        self.config = config
        self.progress = progress

    def place(self) -> Place:
        """Bring the model to this machine if need be, and say where it stands. Raises ModelError."""
        raise NotImplementedError

    def known_folder(self) -> Path | None:
        """Where the model's files, or some of them, stand already; fetches and makes nothing."""
        raise NotImplementedError

    def load(self, *, trainable: bool, precision: str | None = None, quant: Quant | None = None, adapter: Adapter | None = None) -> LoadedModel:
        """Load weights: frozen ones in the model's dtype, trainable ones in fp32.

        Raises:
            ModelError: the model cannot be had, is not whole, or has no chat template.
        """
        runnable(self.config.attention)  # told before anything is fetched
        place = self.place()
        tokenizer = self.tokenizer(place.folder)
        notes = settle_template(tokenizer, self.config.chat_template, name=place.name)
        arguments = quant.load_arguments(precision=precision) if quant else {}
        network = self.network(place, dtype=self.dtype(trainable, precision, adapter), trainable=trainable, arguments=arguments)
        if quant is not None:
            quant.loaded(network, trainable=trainable)
        notes += self.shape_notes(network.config)
        end_at_eos(network, tokenizer)
        if adapter is not None:
            network = adapter.apply(network)
        elif trainable:
            network.requires_grad_(True)
        if trainable:
            network.train()  # from_pretrained leaves eval mode, and Lightning keeps the mode it finds
        else:
            network.requires_grad_(False)
            network.train(False)
        return LoadedModel(network, tokenizer, str(tokenizer.chat_template), place.source, notes)

    def identity_of_files(self) -> tuple[Reference, PreTrainedTokenizerBase, str]:
        """Source, tokenizer and template as `load` would give them, to see whether they changed; no weights are read into a network. Raises ModelError."""
        place = self.place()
        tokenizer = self.tokenizer(place.folder)
        settle_template(tokenizer, self.config.chat_template, name=place.name)
        return place.source, tokenizer, str(tokenizer.chat_template)

    def template_text(self, place: Place) -> str:
        """The chat template (Jinja) that `load` would give: for a server of another program, which reads the files itself. Raises ModelError."""
        tokenizer = self.tokenizer(place.folder)
        settle_template(tokenizer, self.config.chat_template, name=place.name)
        return str(tokenizer.chat_template)

    def outline(self, *, trainable: bool, precision: str | None = None, quant: Quant | None = None, adapter: Adapter | None = None) -> LoadedModel:
        """Build the same network on the meta device: no weights are read, nothing is fetched."""
        from transformers import AutoModelForCausalLM

        folder = self.known_folder()
        config = self.network_config(folder)
        tokenizer = self.offline_tokenizer(folder)
        notes = settle_template(tokenizer, self.config.chat_template, name=self.name) if tokenizer is not None else []
        if tokenizer is None and self.config.chat_template is not None:
            notes.append(f"The chat template is declared in the config: {self.config.chat_template.splitlines()[0][:60]}.")
        with torch.device("meta"):
            try:
                network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, dtype=self.dtype(trainable, precision, adapter), attn_implementation=outlined(self.config.attention)
                )
            except ValueError as fault:
                raise impossible(fault) from fault
            network = quant.outlined(network, precision=precision) if quant is not None else network
            network = self.carried(network, folder)
            network = adapter.apply(network) if adapter is not None else network.requires_grad_(trainable)
        network.train(trainable)
        notes += self.shape_notes(config)
        template = str(tokenizer.chat_template) if tokenizer is not None else self.config.chat_template or ""
        return LoadedModel(network, tokenizer, template, Reference("model", self.name, self.config.revision or ""), notes)

    def refuse(self, *keys: str) -> None:
        """Raise ModelError where a key is set that this source has no use for: it would be ignored otherwise."""
        for key in keys:
            if getattr(self.config, key) is not None:
                raise ModelError(
                    f"model.{key}={getattr(self.config, key)} has no meaning for model={self.name}.", next_step=f"leave model.{key} out, or model=hf"
                )

    @property
    def name(self) -> str:
        """What the user would recognise the model by."""
        return type(self).__name__.lower()

    def dtype(self, trainable: bool, precision: str | None, adapter: Adapter | None) -> torch.dtype:
        """Return what the base weights are held in: fp32 where they learn themselves."""
        if trainable and (adapter is None or adapter.trains_base):
            return torch.float32
        return held_dtype(self.config.dtype, precision)

    def network(self, place: Place, *, dtype: torch.dtype, trainable: bool, arguments: dict[str, Any]) -> PreTrainedModel:
        """Read the weights of a folder into a network."""
        check_folder(place.folder)
        network = read_network(place.folder, dtype=dtype, attention=self.config.attention, arguments=arguments)
        name_base(network, place)
        return network

    def carried(self, network: PreTrainedModel, folder: Path | None) -> PreTrainedModel:
        """Outline the adapter that the model brings along, where there is one."""
        return network

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Read a folder's tokenizer."""
        return read_tokenizer(folder)

    def offline_tokenizer(self, folder: Path | None) -> PreTrainedTokenizerBase | None:
        """Read the tokenizer if it stands on this machine already."""
        if folder is None or not any((folder / name).is_file() for name in TOKENIZER_FILES):
            return None
        return read_tokenizer(folder)

    def network_config(self, folder: Path | None) -> PretrainedConfig:
        """Return the transformers config: the model's own where it is on this machine, else the shape's."""
        from transformers import AutoConfig

        if folder is not None and (folder / "config.json").is_file():
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
            return config
        if self.config.shape is None:
            raise ModelError(
                f"{self.name} is not on this machine, and its config gives no shape to plan from.",
                next_step="model.path=<a local folder>, or a choice that has a shape: model=qwen3_8b",
            )
        return network_config(self.config.shape)

    def shape_notes(self, config: PretrainedConfig) -> list[str]:
        found = differences(self.config.shape, config) if self.config.shape is not None else []
        return [f"The model's own config.json counts, not model.shape: {'; '.join(found)}."] if found else []


def read_network(folder: Path, *, dtype: torch.dtype, attention: str, arguments: dict[str, Any]) -> PreTrainedModel:
    """Load a causal LM from a checked folder; a weight that is missing or has another shape is a ModelError, never a random one."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    quietly()
    if "quantization_config" in arguments and "quantization_config" in read_json(folder / "config.json"):
        # transformers would take the model's own way, and leave the one asked for out
        raise ModelError(f"{folder} holds weights that are quantized already.", next_step="quant=none, or the model before it was quantized")
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        network, info = read(
            folder, dtype=dtype, attn_implementation=runnable(attention), local_files_only=True, use_safetensors=True, output_loading_info=True, **arguments
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as fault:
        raise ModelError(
            f"{folder} cannot be loaded: {fault}", next_step="check that its config.json and weights belong together, or download it again"
        ) from fault
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise ModelError(
            f"{folder} lacks weights that its config.json asks for: {', '.join(wrong[:4])} ({len(wrong)} in all).", next_step="download or save the model again"
        )
    found: PreTrainedModel = network
    return found


def quietly() -> None:
    """Switch off the bars that transformers draws: a run shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, with its chat template where it has one."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])} ...).", next_step="save it beside the weights: tokenizer.save_pretrained(folder)"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {fault}", next_step="download or save it again") from fault
    return tokenizer


def name_base(network: PreTrainedModel, place: Place) -> None:
    """Let an adapter that is saved later name its base as others can find it."""
    network.name_or_path = place.name
    network.config._name_or_path = place.name
    if place.source.revision:
        network.config._commit_hash = place.source.revision


def end_at_eos(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop at the tokenizer's EOS too, here and in what is saved."""
    generation, eos = network.generation_config, tokenizer.eos_token_id
    if generation is None or eos is None:
        return
    ends = generation.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if eos not in ends:
        generation.eos_token_id = [eos, *ends]
