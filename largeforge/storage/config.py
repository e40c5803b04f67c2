"""Typed configs of the group storage; imports nothing heavy."""

from __future__ import annotations

from largeforge.config.typed import PartConfig


class StorageConfig(PartConfig):
    """Where files lie."""


class AutoConfig(StorageConfig):
    """Whatever a path begins with; credentials and endpoints from the environment."""
