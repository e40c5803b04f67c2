"""Typed configs of the tasks that make, clean, compare and send data; imports nothing heavy. Reached through `largeforge.task.config`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, NonNegativeInt, PositiveInt
from largeforge.data.check.config import CheckConfig
from largeforge.data.config import ArtifactConfig, RawConfig
from largeforge.data.generator.config import GeneratorConfig
from largeforge.data.step.config import StepsConfig
from largeforge.engine.config import EngineConfig
from largeforge.executor.config import ExecutorConfig
from largeforge.model.config import ModelConfig
from largeforge.quant.config import QuantConfig
from largeforge.storage.config import StorageConfig
from largeforge.task.config import RootConfig


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
    """Compare two artifacts or runs: which rows came, went and changed; what explains another result."""

    a: str = Field(description="The artifact or run before.")
    b: str = Field(description="The artifact or run after.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    show: NonNegativeInt = Field(description="Rows of each kind to show; all are written to diff.jsonl.")


class PushConfig(RootConfig):
    """Send an artifact to a bucket or to the Hugging Face Hub."""

    data: ArtifactConfig = Field(description="The artifact.")
    storage: StorageConfig = Field(description="How s3://, gs:// and az:// paths are reached.")
    to: str = Field(description="s3://bucket/folder, gs://, az://, a folder, or hub://org/name.")
    private: Bool = Field(description="Whether a data set that is made on the Hub is private.")
