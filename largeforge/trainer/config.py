"""Typed configs of the group trainer; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, Fraction, NonNegativeFloat, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed


class CheckpointConfig(Typed):
    """When a run can be taken up again."""

    every_steps: NonNegativeInt = Field(description="Write a checkpoint every so many steps, and after the last; 0 only when the run is stopped.")
    every_minutes: NonNegativeFloat = Field(description="Write one where the last is so old; 0 looks at no clock.")
    keep_last: PositiveInt = Field(description="Newest checkpoints to keep.")
    keep_best: NonNegativeInt = Field(description="Checkpoints with the best validation (by early_stopping.metric and mode) to keep besides.")
    content: Literal["full", "weights"] = Field(
        description="full is all that a run goes on from, exactly; weights is the adapter or model alone, to start another run from or to talk to."
    )
    folder: str | None = Field(description="Where a copy of each kept checkpoint goes besides: s3://..., gs://..., az://... or a path; null is nowhere.")
    allow_changes: list[str] = Field(description="Keys whose change is taken where a run goes on; one stands for all keys below it.")


class EarlyStoppingConfig(Typed):
    """When to stop before the last step."""

    metric: str = Field(description="What is judged: validation_loss, or a measure of the method such as validation_preference_accuracy.")
    mode: Literal["min", "max"] = Field(description="Whether less or more of it is better.")
    patience: NonNegativeInt = Field(description="Validations without a better one before training stops; 0 never stops early.")
    min_delta: NonNegativeFloat = Field(description="How much better counts as better.")


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
    spike_factor: NonNegativeFloat = Field(description="Stop before a step whose loss is so many times the median of the last 32; 0 never does.")
    log_every_steps: PositiveInt = Field(description="Steps between two points of a curve.")
    validate_first: Bool = Field(description="Validate before the first step too: result.json tells before and after.")
    validate_every_steps: NonNegativeInt = Field(description="Steps between two validations; 0 only at the end.")
    early_stopping: EarlyStoppingConfig = Field(description="When to stop before the last step.")
    checkpoint: CheckpointConfig = Field(description="When a run can be taken up again.")

    @property
    def launcher(self) -> str:
        """What starts the processes of a run, by its dotted name; empty where the process that is there does all of it."""
        return "largeforge.trainer.launch.launch" if self.devices * self.nodes > 1 else ""


class AutoConfig(TrainerConfig):
    """The GPU where there is one, else the CPU."""


class CPUConfig(TrainerConfig):
    """The CPU, also where there is a GPU."""


class RayConfig(TrainerConfig):
    """The workers of a Ray cluster; a worker that dies is replaced, and the run goes on from its newest checkpoint."""

    address: str | None = Field(description="Where the cluster is: auto, or ray://host:10001; null starts one on this machine.")
    max_restarts: NonNegativeInt = Field(description="How often workers that died are replaced.")

    @property
    def launcher(self) -> str:
        """A cluster runs it, were it on one device."""
        return "largeforge.trainer.ray.launch"


class GPUConfig(TrainerConfig):
    """An NVIDIA GPU; an error where there is none."""
