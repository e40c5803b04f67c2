"""Typed configs of the tasks: what stands at the root of a composed config; imports nothing heavy.

`task._target_` names a story (`largeforge.task.train.Train`); its `<Class>Config` here types the whole root.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.adapter.config import AdapterConfig
from largeforge.benchmark.config import BenchmarkConfig
from largeforge.config.typed import Bool, NonNegativeInt, PartConfig, PositiveInt, Typed
from largeforge.data.check.config import CheckConfig
from largeforge.data.config import ArtifactConfig, RawConfig, TokensConfig
from largeforge.data.generator.config import GeneratorConfig
from largeforge.data.step.config import StepsConfig
from largeforge.engine.config import EngineConfig
from largeforge.executor.config import ExecutorConfig
from largeforge.method.config import MethodConfig
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


class TrainConfig(RootConfig):
    """Train a model with one method; leaves a checkpoint or adapter artifact."""

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


class ChatConfig(RootConfig):
    """Talk to a model in the terminal, with the template it was trained with."""

    model: ModelConfig = Field(description="Who answers: an artifact, a folder, a Hub id, a choice.")
    quant: QuantConfig = Field(description="How weights are held.")
    engine: EngineConfig = Field(description="How it answers.")
    prompt: str | None = Field(description="One question; null opens a conversation.")
    system: str | None = Field(description="System message; null is what the template says.")


class PrepareConfig(RootConfig):
    """Read rows, clean them step by step, split and check them; leaves a data artifact."""

    data: RawConfig = Field(description="The raw rows.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    steps: list[str] = Field(description="Which steps run, in this order.")
    step: StepsConfig = Field(description="The settings of each step.")
    check: CheckConfig = Field(description="What is checked of the result.")
    executor: ExecutorConfig = Field(description="Where the work runs.")
    shard_rows: PositiveInt = Field(description="Raw rows that are worked on together; memory grows with it, the result's bytes depend on it.")
    layout: Literal["canonical", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "preference_text", "text"] = Field(
        description="How a row is written; canonical is as LargeForge reads it best (messages, preference or text, whatever it is)."
    )
    file_type: Literal["jsonl", "json", "csv", "parquet", "arrow"] = Field(description="What files rows are written to.")
    teacher: ModelConfig = Field(description="Who augments rows or measures their loss, where a step asks for it.")
    quant: QuantConfig = Field(description="How the teacher's weights are held.")
    engine: EngineConfig = Field(description="How the teacher answers.")


class GenerateConfig(RootConfig):
    """Make rows from templates or with a teacher; leaves a data artifact."""

    generator: GeneratorConfig = Field(description="How rows are made.")
    teacher: ModelConfig = Field(description="Who answers, where the generator asks somebody.")
    quant: QuantConfig = Field(description="How the teacher's weights are held.")
    engine: EngineConfig = Field(description="How the teacher answers.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")


class InspectConfig(RootConfig):
    """Show an artifact: rows, statistics, lineage up to the raw files; verify its files and its audit log."""

    data: ArtifactConfig = Field(description="The artifact.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    show: NonNegativeInt = Field(description="Rows to show.")
    row: str | None = Field(description="Show one row, by its id or the beginning of it, with all that is known about where it came from.")


class DiffConfig(RootConfig):
    """Compare two artifacts: which rows came, went and changed."""

    a: str = Field(description="The artifact before.")
    b: str = Field(description="The artifact after.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    show: NonNegativeInt = Field(description="Rows of each kind to show; all are written to diff.jsonl.")


class PushConfig(RootConfig):
    """Send an artifact to a bucket or to the Hugging Face Hub."""

    data: ArtifactConfig = Field(description="The artifact.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    to: str = Field(description="s3://bucket/folder, gs://, az://, a folder, or hub://org/name.")
    private: Bool = Field(description="Whether a data set that is made on the Hub is private.")
