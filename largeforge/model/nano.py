"""nano: a fresh Llama of about 3M parameters with LargeForge's own tokenizer, the same weights everywhere.

It is made once into the user's cache, like any other model, so that plain transformers and peft find what an adapter was
trained on. It knows no language: it is for trying, and for tests.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from largeforge.artifact import user_cache
from largeforge.contract import Reference
from largeforge.model.base import Place, Source, quietly
from largeforge.model.cached import made_once
from largeforge.model.config import NanoConfig
from largeforge.model.shape import network_config
from largeforge.model.template import CHATML

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER = Path(__file__).with_name("nano_tokenizer.json")
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"


class Nano(Source):
    """A fresh Llama of about 3M parameters."""

    config: NanoConfig

    def place(self) -> Place:
        self.refuse("path", "revision")
        artifact = made_once(self.folder, fill=self.write, config=self.identity(), parents=[])
        return Place(self.folder, str(self.folder), Reference("model", "nano", sha256=artifact.id))

    def known_folder(self) -> Path | None:
        self.refuse("path", "revision")
        return None  # nothing to look up: shape and tokenizer are all there is to know

    @property
    def folder(self) -> Path:
        key = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]
        return user_cache() / "models" / f"nano-{key}"

    def identity(self) -> dict[str, object]:
        """What the weights and the tokenizer follow from."""
        return {"shape": self.config.shape.model_dump(), "init_seed": self.config.init_seed, "tokenizer": hashlib.sha256(TOKENIZER.read_bytes()).hexdigest()}

    def network_config(self, folder: Path | None) -> PretrainedConfig:
        tokenizer = self.offline_tokenizer(None)
        return network_config(self.config.shape, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)

    def offline_tokenizer(self, folder: Path | None) -> PreTrainedTokenizerBase:
        from transformers import PreTrainedTokenizerFast

        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_file=str(TOKENIZER), eos_token=END, pad_token=PAD, additional_special_tokens=[START]
        )
        tokenizer.model_max_length = self.config.shape.max_position_embeddings
        tokenizer.chat_template = CHATML
        return tokenizer

    def write(self, folder: Path) -> str:
        """Write fresh weights, drawn from an own generator, and the tokenizer; returns the artifact's kind."""
        from transformers import AutoModelForCausalLM

        quietly()
        config = self.network_config(None)
        with torch.device("meta"):
            network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        network.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(self.config.init_seed)
        for _, parameter in sorted(network.named_parameters()):
            if parameter.dim() == 1:  # norms
                torch.nn.init.ones_(parameter)
            else:
                torch.nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
        network.tie_weights()
        network.save_pretrained(folder)
        self.offline_tokenizer(None).save_pretrained(folder)
        return "model"
