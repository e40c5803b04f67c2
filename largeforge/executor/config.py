"""Typed configs of the group executor; imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from largeforge.config.typed import NonNegativeInt, PartConfig


class ExecutorConfig(PartConfig):
    """Where the tasks of a pipeline run."""


class LocalConfig(ExecutorConfig):
    """Processes of this machine."""

    num_workers: NonNegativeInt = Field(description="Processes; 0 is one a core.")


class RayConfig(ExecutorConfig):
    """A Ray cluster, through Ray Data."""

    address: str | None = Field(description="Of the cluster (auto, or host:port); null starts one on this machine. Its machines must see the run's folder.")
    num_workers: NonNegativeInt = Field(description="Tasks at once; 0 is one a CPU of the cluster.")
