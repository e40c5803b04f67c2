"""Typed configs of the group tracker; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import PartConfig


class TrackerConfig(PartConfig):
    """What every tracker has."""


class TensorBoardConfig(TrackerConfig):
    """Event files under the run's folder, for `tensorboard --logdir outputs`."""


class CSVConfig(TrackerConfig):
    """A table under the run's folder."""


class WandBConfig(TrackerConfig):
    """Weights & Biases: on its servers, or in files that `wandb sync` sends later."""

    project: str = Field(min_length=1, description="The project on W&B that the run stands in.")
    mode: Literal["online", "offline"] = Field(description="online sends as the run goes; offline writes files for `wandb sync`.")
    entity: str | None = Field(description="The user or team on W&B; null is the one who is logged in.")
    tags: list[str] = Field(description="Words to find the run by.")


class MLflowConfig(TrackerConfig):
    """MLflow: its server, or a database file."""

    tracking_uri: str | None = Field(description="An MLflow server or a database; null is a sqlite file in the run's folder.")
    experiment: str = Field(min_length=1, description="The experiment of MLflow that the run stands in.")


class SilentConfig(TrackerConfig):
    """No curves beyond metrics.jsonl, which every run writes."""


class SeveralConfig(TrackerConfig):
    """Several trackers at once, each below its own name: what tracker=[tensorboard,csv] composes."""

    tensorboard: TensorBoardConfig | None = Field(description="TensorBoard, where it is one of them.")
    csv: CSVConfig | None = Field(description="The table, where it is one of them.")
    wandb: WandBConfig | None = Field(description="Weights & Biases, where it is one of them.")
    mlflow: MLflowConfig | None = Field(description="MLflow, where it is one of them.")
