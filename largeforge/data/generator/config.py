"""Typed configs of the group data/generator; imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from largeforge.config.typed import PartConfig, PositiveInt


class GeneratorConfig(PartConfig):
    """What makes rows."""

    num_rows: PositiveInt = Field(description="Rows to keep; making stops there.")


class TemplateConfig(GeneratorConfig):
    """Rows from Jinja2 templates with typed slots."""
