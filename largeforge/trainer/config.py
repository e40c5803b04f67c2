"""Typed configs of the group trainer; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, Fraction, NonNegativeFloat, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed


class CheckpointConfig(Typed):
    """When a run can be taken up again."""

    every_steps: NonNegativeInt = Field(description="Write a checkpoint every so many steps; 0 only at the end or when interrupted.")
    keep_last: PositiveInt = Field(description="Newest checkpoints to keep.")
    keep_best: NonNegativeInt = Field(description="Checkpoints with the lowest validation loss to keep besides.")


class EarlyStoppingConfig(Typed):
    """When to stop before the last step."""

    patience: NonNegativeInt = Field(description="Validations without a lower loss before training stops; 0 never stops early.")
    min_delta: NonNegativeFloat = Field(description="How much lower counts as lower.")


class TrainerConfig(PartConfig):
    """What every trainer has."""

    max_steps: PositiveInt | None = Field(description="Optimizer steps; null is what epochs give.")
    epochs: PositiveFloat = Field(description="Passes over the rows, where max_steps is null.")
    batch_size: PositiveInt = Field(description="Rows per optimizer step, over all devices.")
    micro_batch_size: PositiveInt = Field(description="Sequences of one forward pass; lower it to save memory, the result stays the same.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(description="Arithmetic; auto is bf16 where the device has it.")
    devices: PositiveInt = Field(description="Devices of each machine to train on: one process each.")
    nodes: PositiveInt = Field(description="Machines; more than one are started by torchrun, SLURM or trainer=ray.")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        description="How processes share the work: ddp holds the model in each, fsdp spreads weights, gradients and optimizer over them; auto is ddp."
    )
    threads: NonNegativeInt = Field(description="CPU threads for tensor work; 0 leaves torch's choice.")
    gradient_checkpointing: Bool = Field(description="Compute activations again in the backward pass: less memory, more time.")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(description="What steps: adamw_8bit and adafactor hold less memory.")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(description="Learning rate after the warm-up; wsd stays, then falls at the end.")
    warmup_ratio: Fraction = Field(description="Share of the steps that warm up.")
    decay_ratio: Fraction = Field(description="Share of the steps, at the end, in which the learning rate of wsd falls.")
    weight_decay: NonNegativeFloat = Field(description="Decoupled weight decay, on matrices only.")
    clip_norm: NonNegativeFloat = Field(description="Largest global gradient norm; 0 does not clip.")
    log_every_steps: PositiveInt = Field(description="Steps between two points of a curve.")
    validate_every_steps: NonNegativeInt = Field(description="Steps between two validations; 0 only at the end.")
    early_stopping: EarlyStoppingConfig = Field(description="When to stop before the last step.")
    checkpoint: CheckpointConfig = Field(description="When a run can be taken up again.")


class AutoConfig(TrainerConfig):
    """The GPU where there is one, else the CPU."""


class CPUConfig(TrainerConfig):
    """The CPU, also where there is a GPU."""


class GPUConfig(TrainerConfig):
    """An NVIDIA GPU; an error where there is none."""
