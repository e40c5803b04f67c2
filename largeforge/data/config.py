"""Typed configs of the group data; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, Fraction, NonNegativeInt, PartConfig, PositiveInt


class DataConfig(PartConfig):
    """Where rows come from."""


class TrainingDataConfig(DataConfig):
    """What all rows that are trained on have in common."""

    max_length: PositiveInt = Field(description="Longest row in tokens; also the width of a packed row.")
    packing: Literal["auto"] | Bool = Field(description="Put several rows into one: true, false, or auto, which compares how full both ways would be.")
    validation: str | Fraction = Field(description="Validation rows: a path, or the share of the rows to set aside (0 is none).")
    num_workers: NonNegativeInt = Field(description="Processes that make batches ahead; 0 makes them in the main process.")


class ChatConfig(TrainingDataConfig):
    """Rows of chat from files or a Hub data set."""

    path: str | list[str] = Field(description="File, glob, list of both, or a Hub data set (org/name).")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"] = Field(description="How a row says who spoke; auto looks at its fields.")
    split: str = Field(description="Split of a Hub data set.")
    revision: str | None = Field(description="Revision of a Hub data set; null is the newest.")
    on_bad_row: Literal["error", "skip"] = Field(description="error tells every bad row and stops; skip counts and lists them.")
    limit: PositiveInt | None = Field(description="Use at most so many rows; null is all.")


class DemoConfig(TrainingDataConfig):
    """Plain-English wishes and the LargeForge command that grants each, made by LargeForge itself."""

    num_rows: PositiveInt = Field(description="Training rows to make.")
    num_heldout: PositiveInt = Field(description="Held-out rows, from phrasing families and values that training never sees.")
    seed: NonNegativeInt = Field(description="Seed of the rows; the same seed gives the same rows on every machine.")


class RowsConfig(DataConfig):
    """Rows of any kind, as task=prepare reads them."""

    path: str | list[str] = Field(description="File, folder, glob, artifact, URL, list of these, or a Hub data set (org/name).")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "text"] = Field(
        description="How a row says what it says; auto looks at its fields."
    )
    split: str = Field(description="Split of a Hub data set.")
    revision: str | None = Field(description="Revision of a Hub data set; null is the newest.")
    on_bad_row: Literal["error", "skip"] = Field(description="error tells every bad row and stops; skip counts and lists them.")
    limit: PositiveInt | None = Field(description="Use at most so many rows; null is all.")


class ArtifactConfig(DataConfig):
    """A data artifact, to train on or to look at."""

    path: str = Field(description="The artifact's folder, or its URL.")
    split: str = Field(description="The split to train on; the artifact's validation rows validate, its test rows are held out.")
    max_length: PositiveInt = Field(description="Longest row in tokens; also the width of a packed row.")
    packing: Literal["auto"] | Bool = Field(description="Put several rows into one: true, false, or auto, which compares how full both ways would be.")
    num_workers: NonNegativeInt = Field(description="Processes that make batches ahead; 0 makes them in the main process.")
