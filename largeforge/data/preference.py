"""Rows of two answers to one prompt, of which one is preferred: what `data=preference` reads. Knows nothing about how pairs are learnt from."""

from __future__ import annotations

from typing import ClassVar

from largeforge.data.formats import Layout
from largeforge.data.raw import Rows


class Preference(Rows):
    """Pairs from files, buckets or the Hub: prompt, chosen and rejected, as text or as turns."""

    layout: ClassVar[Layout | None] = "preference"
    advice: ClassVar[str] = "task=prepare data=preference layout=messages keeps the chosen answers as rows of chat: train on them with data=artifact"
