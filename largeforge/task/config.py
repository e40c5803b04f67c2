"""Typed configs of the tasks: what stands at the root of a composed config; imports nothing heavy.

`task._target_` names a story (`largeforge.task.train.Train`); its `<Class>Config` here types the whole root.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from pydantic import Field

from largeforge.adapter.config import AdapterConfig
from largeforge.benchmark.config import BenchmarkConfig
from largeforge.config.typed import Bool, NonNegativeInt, PartConfig, Typed
from largeforge.data.config import ChatRowsConfig, PairRowsConfig, TextRowsConfig, TokensConfig
from largeforge.engine.config import EngineConfig
from largeforge.method.config import DistillConfig, MethodConfig, ReferencedConfig, SupervisedConfig, TextMethodConfig, UnreferencedConfig
from largeforge.model.config import ModelConfig
from largeforge.quant.config import QuantConfig
from largeforge.storage.config import StorageConfig
from largeforge.tracker.config import TrackerConfig
from largeforge.trainer.config import TrainerConfig


class TaskConfig(PartConfig):
    """A choice of the group task: which story runs."""


class RootConfig(Typed):
    """What every task has at its root."""

    task: TaskConfig = Field(description="What to do.")
    seed: NonNegativeInt = Field(description="Seed of everything random: order of rows, dropout, adapters' fresh weights.")
    name: str | None = Field(description="A name for the run, to find it again; null is none.")
    folder: str | None = Field(description="Where the run goes; null is outputs/<task>/<date>/<time>.")
    resume: str = Field(description="never, auto (the run in folder, else the newest unfinished of that name), or a checkpoint.")
    plan: Bool | str = Field(description="true, or a device such as rtx4090: say what the run would cost, and stop.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(description="Least level that is logged.")
    log_format: Literal["console", "json"] = Field(description="How log lines look on the terminal; log.jsonl is JSON always.")
    trust: list[str] = Field(description="Packages of your own that _target_ may name; command line and user settings only.")


class TrainingConfig(RootConfig):
    """What every task has that trains; leaves a checkpoint or adapter artifact."""

    verify: Literal["none", "resume", "invariance", "parity"] = Field(
        description="Prove on this very recipe, in a few steps, instead of training: resume, invariance (of how a batch is split), parity (with TRL)."
    )

    model: ModelConfig = Field(description="What is trained.")
    adapter: AdapterConfig = Field(description="Which parameters learn.")
    quant: QuantConfig = Field(description="How frozen weights are held.")
    method: MethodConfig = Field(description="What is learnt.")
    data: TokensConfig = Field(description="The rows.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    trainer: TrainerConfig = Field(description="How it runs.")
    tracker: TrackerConfig = Field(description="Where curves go.")
    engine: EngineConfig = Field(description="What answers the benchmark's questions.")
    benchmark: BenchmarkConfig = Field(description="What is asked before and after.")


class TrainConfig(TrainingConfig):
    """Fine-tune a model on rows of chat."""

    method: SupervisedConfig = Field(description="What is learnt.")
    data: ChatRowsConfig = Field(description="The rows.")


class PretrainConfig(TrainingConfig):
    """Go on training a model on plain text."""

    method: TextMethodConfig = Field(description="What is learnt.")
    data: TextRowsConfig = Field(description="The texts.")


class PreferConfig(TrainingConfig):
    """Train a model on answers of which some are preferred."""

    method: UnreferencedConfig = Field(description="What is learnt.")
    data: PairRowsConfig = Field(description="The answers.")


class PreferToReferenceConfig(TrainingConfig):
    """Train a model on answers of which some are preferred, held to a reference model."""

    method: ReferencedConfig = Field(description="What is learnt.")
    data: PairRowsConfig = Field(description="The answers.")
    reference: ModelConfig | None = Field(description="A second model to be held to; null is the model itself, as it is at the start.")


class DistillFromTeacherConfig(TrainingConfig):
    """Teach a small model what a large one would say."""

    method: DistillConfig = Field(description="What is learnt.")
    data: ChatRowsConfig = Field(description="The rows.")
    teacher: ModelConfig | None = Field(description="Who is learnt from: a model of the same vocabulary.")
    assistant: ModelConfig | None = Field(description="A model between both in size, who teaches first; null is none.")


class ChatConfig(RootConfig):
    """Talk to a model in the terminal, with the template it was trained with."""

    model: ModelConfig = Field(description="Who answers: an artifact, a folder, a Hub id, a choice.")
    quant: QuantConfig = Field(description="How weights are held.")
    engine: EngineConfig = Field(description="How it answers.")
    prompt: str | None = Field(description="One question; null opens a conversation.")
    system: str | None = Field(description="System message; null is what the template says.")


class ReproduceConfig(RootConfig):
    """Run a run again from its lock, or say what drifted."""

    lock: str = Field(description="A recipe.lock.yaml, or the folder of the run that left it.")
    allow: list[Literal["all", "package", "python", "largeforge", "machine", "device", "precision", "model", "template", "data"]] = Field(
        description="What may have drifted all the same."
    )
    run: Bool = Field(description="Whether it is run again; false only checks.")


ELSEWHERE = {
    "largeforge.task.data_config": ("PrepareConfig", "GenerateConfig", "InspectConfig", "DiffConfig", "PushConfig"),
    "largeforge.task.serving_config": ("KeysConfig", "ServeConfig"),
}


def __getattr__(name: str) -> Any:
    """Load the configs of other tasks when they are asked for: a training task need not pay for the types of every step and guard."""
    for module, names in ELSEWHERE.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(name)
