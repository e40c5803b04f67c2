"""Typed configs of the group tracker; imports nothing heavy."""

from __future__ import annotations

from largeforge.config.typed import PartConfig


class TrackerConfig(PartConfig):
    """What every tracker has."""


class TensorBoardConfig(TrackerConfig):
    """Event files under the run's folder, for `tensorboard --logdir outputs`."""


class CSVConfig(TrackerConfig):
    """A table under the run's folder."""


class SilentConfig(TrackerConfig):
    """No curves beyond metrics.jsonl, which every run writes."""
