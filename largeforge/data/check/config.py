"""Typed configs of the group data/check; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, Fraction, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed

CheckName = Literal["schema", "completeness", "duplicates", "leakage", "length", "balance", "bias", "quality"]


class CheckConfig(PartConfig):
    """What is checked of prepared rows, and what ends in exit code 4."""

    fail_on: Literal["never", "error", "warning"] = Field(description="Findings of this severity, or a higher one, end the run with exit code 4.")


class NothingConfig(CheckConfig):
    """Nothing is checked."""


class CompletenessConfig(Typed):
    """Texts that say nothing, answers that were cut off, fields that some rows lack."""

    placeholders: list[str] = Field(description="A text that is one of these and nothing else is a placeholder; case, brackets and end marks do not matter.")
    phrases: list[str] = Field(description="A text that holds one of these anywhere is a placeholder; case does not matter.")
    truncated_characters: PositiveInt = Field(description="Only answers of at least so many characters can count as cut off.")
    truncated_unless: Fraction = Field(description="Answers are held to end in a full stop where at least this share of the long ones does.")
    field_share: Fraction = Field(description="A further field is missed where at least this share of the rows has it.")


class DuplicatesConfig(Typed):
    """Rows that say the same, prompts with several answers, rows that say nearly the same."""

    exact_share: Fraction = Field(description="More repeated rows than this share are a warning; 0 allows none.")
    conflict_share: Fraction = Field(description="More rows than this share whose prompt has another answer elsewhere are a warning; 0 allows none.")
    near_share: Fraction = Field(description="More rows of the sample than this share that nearly repeat another one are a warning.")
    similarity: Fraction = Field(description="Rows are nearly the same from this Jaccard similarity of their runs of 16 characters on.")
    sample: PositiveInt = Field(description="Rows that are compared for near duplicates; the same rows on every machine.")


class LeakageConfig(Typed):
    """Rows of validation and test that training knows."""

    min_characters: NonNegativeInt = Field(description="Shorter prompts and texts are too common to be told: greetings, one-word questions.")
    contained: Bool = Field(description="Also look for prompts of validation and test rows that stand inside a longer training row.")


class LengthConfig(Typed):
    """How long rows are."""

    max_characters: PositiveInt = Field(description="Rows longer than this are a warning.")
    z: PositiveFloat = Field(description="A row is an outlier at so many robust standard deviations (1.4826 MAD) of log length from the median.")


class BalanceConfig(Typed):
    """How rows are spread over classes."""

    fields: list[str] = Field(description="Fields that hold a class; those that no row has are passed over.")
    max_ratio: PositiveFloat = Field(description="Rows of the largest class over those of the smallest; more is a warning.")
    min_rows: NonNegativeInt = Field(description="A class with fewer rows is a warning, where the classes have as many on average.")
    max_classes: PositiveInt = Field(description="A field with more values than this names no class and is passed over.")


class BiasConfig(Typed):
    """How groups of people are named, and whether negative words stand near them."""

    groups: str = Field(description="standard, or a YAML file of your own: families of groups of terms, and negative words.")
    window: PositiveInt = Field(description="A negative word is near a term at a distance of at most so many words.")
    max_ratio: PositiveFloat = Field(description="Rows that name the group of a family named most over those of the one named least; more is a warning.")
    min_rows: PositiveInt = Field(description="Fewer rows than this tell nothing about a group or a family.")
    lift: PositiveFloat = Field(
        description="Negative words near a group so many times as often as near the rest of its family are a warning, where the test agrees."
    )
    p_value: Fraction = Field(description="Chance of a false alarm over all groups together (Fisher's exact test, divided by the number of groups).")


class QualityConfig(Typed):
    """How good rows look."""

    low: Fraction = Field(description="A row with a lower score is poor.")
    max_low_share: Fraction = Field(description="More poor rows than this share are a warning.")
    sample: PositiveInt = Field(description="Rows that are scored; the same rows on every machine.")


class StandardConfig(CheckConfig):
    """Everything that is checked of prepared rows."""

    only: list[CheckName] = Field(description="Checks that run; an empty list is all of them.")
    skip: list[CheckName] = Field(description="Checks that do not run.")
    examples: NonNegativeInt = Field(description="Rows named with each finding, by where they came from.")
    completeness: CompletenessConfig = Field(description="Texts that say nothing, answers cut off, missing fields.")
    duplicates: DuplicatesConfig = Field(description="Rows that say the same, or nearly.")
    leakage: LeakageConfig = Field(description="Rows of validation and test that training knows.")
    length: LengthConfig = Field(description="How long rows are.")
    balance: BalanceConfig = Field(description="How rows are spread over classes.")
    bias: BiasConfig = Field(description="How groups of people are named.")
    quality: QualityConfig = Field(description="How good rows look.")
