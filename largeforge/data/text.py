"""Rows of plain text: what `data=text` reads. Knows nothing about how text is learnt from."""

from __future__ import annotations

from typing import ClassVar

from largeforge.data.formats import Layout
from largeforge.data.raw import Rows


class Text(Rows):
    """Texts from files, buckets or the Hub: rows of `{"text": ...}`."""

    layout: ClassVar[Layout | None] = "text"
    advice: ClassVar[str] = "give rows that hold an answer to learn: data=chat data.path=FILE"
