"""Typed configs of the group data/check; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import PartConfig


class CheckConfig(PartConfig):
    """What is checked of prepared rows, and what ends in exit code 4."""

    fail_on: Literal["never", "error", "warning"] = Field(description="Findings of this severity, or a higher one, end the run with exit code 4.")


class NothingConfig(CheckConfig):
    """Nothing is checked."""


class StandardConfig(CheckConfig):
    """Everything that is checked of prepared rows."""
