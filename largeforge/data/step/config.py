"""Typed configs of the group data/step; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, Fraction, PartConfig, Typed


class StepConfig(PartConfig):
    """One step of a pipeline."""


class NormaliseConfig(StepConfig):
    """Unicode and whitespace in one form."""

    unicode: Literal["none", "nfc", "nfkc"] = Field(description="Unicode form: nfc joins accents, nfkc also flattens ligatures and full width; none leaves it.")
    strip: Bool = Field(description="Take white space off both ends of every text, and off the ends of lines.")
    newlines: Bool = Field(description="Windows and old Mac line ends become \\n; three or more empty lines become two.")
    control: Bool = Field(description="Take out control characters and zero-width marks that nobody sees, tab and newline excepted.")


class ExactDuplicatesConfig(StepConfig):
    """One row of each set of rows that say the same."""

    by: Literal["row", "text", "prompt"] = Field(description="Equal in everything, in all text, or in every turn before the last answer.")
    ignore_case: Bool = Field(description="Texts that differ in case only are the same.")


class SplitConfig(StepConfig):
    """Train, validation and test, by a stable hash of what a row says."""

    validation: Fraction = Field(description="Share of the rows for validation.")
    test: Fraction = Field(description="Share of the rows for the test.")
    salt: str = Field(description="Changes which rows go where; the same salt gives the same split on every machine, whatever the order of rows.")
    keep_together: Literal["prompt", "row"] = Field(description="Rows with the same question go to the same split, or each by itself.")


class StepsConfig(Typed):
    """Every step that there is; `steps` says which of them run, and in which order."""

    normalise: NormaliseConfig = Field(description="Unicode and white space in one form.")
    exact_duplicates: ExactDuplicatesConfig = Field(description="Rows that say the same, once.")
    split: SplitConfig = Field(description="Train, validation, test.")
