"""Typed configs of the group data; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from largeforge.config.typed import Bool, Fraction, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed, real_number


class DataConfig(PartConfig):
    """Where rows come from."""


class TokensConfig(DataConfig):
    """Rows that become tokens: what every kind of them has."""

    curriculum: Literal["none", "length", "loss"] = Field(
        description="Order of the first epoch: none is random; short rows first; or rows of a low loss under the untrained model first."
    )
    max_length: PositiveInt = Field(description="Longest row in tokens; also the width of a packed row.")
    packing: Literal["auto"] | Bool = Field(description="Put several rows into one: true, false, or auto, which compares how full both ways would be.")
    num_workers: NonNegativeInt = Field(description="Processes that make batches ahead; 0 makes them in the main process.")


class ChatRowsConfig(TokensConfig):
    """Rows whose turns can be learnt from."""


class PairRowsConfig(TokensConfig):
    """Rows of which pairs of answers, or answers that are good or bad, can be learnt from."""


class TextRowsConfig(TokensConfig):
    """Rows of text."""


class TrainingDataConfig(TokensConfig):
    """Rows to train on, some of which may be set aside."""

    validation: str | Fraction = Field(description="Validation rows: a path, or the share of the rows to set aside (0 is none).")


class MixConfig(Typed):
    """How several sources become one stream."""

    weights: Literal["rows"] | list[PositiveFloat] | None = Field(
        description="Share of each path, in order; rows takes their sizes; null reads one path after another."
    )
    temperature: PositiveFloat = Field(description="Weights are raised to 1/temperature: above 1 evens the shares out.")
    caps: list[PositiveInt | None] | None = Field(description="Most rows of each path, in order, null for all of one; null has no caps.")
    exhausted: Literal["stop", "skip", "repeat"] = Field(
        description="When a path has no more rows: stop ends the mix, skip goes on with the others, repeat begins it again until all were read."
    )
    seed: NonNegativeInt = Field(description="Seed of the draws.")


class SourceConfig(DataConfig):
    """Where raw rows are read from."""

    path: str | list[str] = Field(description="File, folder, glob, URL (s3://...), list of these, or a Hub data set (org/name).")
    split: str = Field(description="Split of a Hub data set.")
    subset: str | None = Field(description="Subset of a Hub data set that has several; null is its only one.")
    revision: str | None = Field(description="Revision of a Hub data set; null is the newest.")
    streaming: Bool = Field(description="Read a Hub data set as it comes, without keeping it on disk.")
    on_bad_row: Literal["error", "skip"] = Field(description="error tells every bad row and stops; skip counts and lists them.")
    limit: PositiveInt | None = Field(description="Use at most so many rows; null is all.")
    mix: MixConfig = Field(description="How several paths become one stream.")


class ChatConfig(TrainingDataConfig, ChatRowsConfig, SourceConfig):
    """Rows of chat from files or a Hub data set."""

    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"] = Field(description="How a row says who spoke; auto looks at its fields.")


class DemoConfig(TrainingDataConfig, ChatRowsConfig, PairRowsConfig):
    """Plain-English wishes and the LargeForge command that grants each, made by LargeForge itself."""

    num_rows: PositiveInt = Field(description="Training rows to make.")
    num_heldout: PositiveInt = Field(description="Held-out rows, from phrasing families and values that training never sees.")
    seed: NonNegativeInt = Field(description="Seed of the rows; the same seed gives the same rows on every machine.")


class RawConfig(SourceConfig):
    """Raw rows, as task=prepare takes them."""


class RowsConfig(RawConfig):
    """Rows of any kind, as task=prepare reads them; a path may be a data artifact too."""

    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "text"] = Field(
        description="How a row says what it says; auto looks at its fields."
    )


class RawTrainingConfig(TrainingDataConfig, RawConfig):
    """Raw rows that are also learnt from as they are."""


class PreferenceConfig(RawTrainingConfig, PairRowsConfig):
    """Rows of two answers to one prompt, of which one is preferred."""


class RehearsalConfig(Typed):
    """General text among that of a field, so that what the model knew is not forgotten."""

    path: str | list[str] | None = Field(description="File, folder, glob, URL or Hub data set of general text; null is none.")
    share: Annotated[float, BeforeValidator(real_number), Field(ge=0, lt=1)] = Field(description="Share of all rows that are drawn from it; 0 is none.")


class TextConfig(RawTrainingConfig, TextRowsConfig):
    """Rows of plain text."""

    rehearsal: RehearsalConfig = Field(description="General text among that of the field.")


class ArtifactConfig(ChatRowsConfig, PairRowsConfig, TextRowsConfig):
    """A data artifact, to train on or to look at."""

    path: str = Field(description="The artifact's folder, or its URL.")
    split: str = Field(description="The split to train on; the artifact's validation rows validate, its test rows are held out.")
