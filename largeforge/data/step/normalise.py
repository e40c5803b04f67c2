"""Unicode and white space in one form, so that equal texts are equal bytes. Looks at no meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import NormaliseConfig

# Control characters but tab and newline, the zero-width space, joiners' cousins, direction marks and the byte order mark. The joiners themselves
# (U+200C, U+200D) stay: scripts and emoji are written with them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_LINE_END = re.compile("\r\n?|\x85|\u2028|\u2029")
_BEFORE_NEWLINE = re.compile(r"[ \t]+(?=\n)")
_EMPTY_LINES = re.compile(r"\n{4,}")
_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}


class Normalise(Step):
    """Unicode forms as of Unicode Standard Annex 15; a row whose text is empty afterwards is left out."""

    config: NormaliseConfig

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Stream one shard."""
        for row in rows:
            done = row.rewritten(self.normal, by=self.name)
            if done is not row and not all(text.strip() for text in done.texts()) and all(text.strip() for text in row.texts()):
                yield Dropped(row, "nothing_visible", "a text holds characters that nobody sees, and nothing else")
            else:
                yield done

    def normal(self, text: str) -> str:
        """Return one text in the form the config asks for."""
        config = self.config
        if text.isascii() and text.isprintable():  # nothing to do but at the ends: most texts, and ten times as fast
            return text.strip() if config.strip else text
        if config.newlines:
            text = _LINE_END.sub("\n", text)
        if config.unicode != "none" and not text.isascii():
            text = unicodedata.normalize(_FORMS[config.unicode], text)
        if config.control:
            text = _UNSEEN.sub("", text)
        if config.strip:
            text = _BEFORE_NEWLINE.sub("", text).strip()
        if config.newlines:
            text = _EMPTY_LINES.sub("\n\n\n", text)
        return text
