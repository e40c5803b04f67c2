"""Pairs of answers from the user's files or a Hub data set: what `data=preference` reads, to prepare and to learn from.

Answers that are judged one by one (a `label` beside prompt and answer) are read too, where the method learns from them.
"""

from __future__ import annotations

from largeforge.data.config import PreferenceConfig
from largeforge.data.raw_module import RawModule


class Preference(RawModule):
    """Pairs: prompt, chosen and rejected, as text or as turns."""

    config: PreferenceConfig
    kind = "preference"
