"""An answer's tokens as text, a piece at a time: whole characters only, and never a piece of a string that ends it.

Knows nothing about how tokens are chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # a character whose bytes are not all there yet
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer's tokens, special ones left out."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token alone; bytes of a character that others complete stand in it as Python's surrogateescape has them (PEP 383)."""
    tokenizer_: Any = tokenizer
    text = str(tokenizer_.decode([token]))
    if UNFINISHED not in text:
        return text
    piece = str(tokenizer_.convert_ids_to_tokens(token))
    if BYTE.fullmatch(piece):  # SentencePiece's fallback
        return bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape")
    if all(letter in _byte_of() for letter in piece):  # byte-level BPE
        return bytes(_byte_of()[letter] for letter in piece).decode("utf-8", "surrogateescape")
    return text


@cache
def _byte_of() -> dict[str, int]:
    """The byte that a letter of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    untyped: Any = bytes_to_unicode
    return {letter: byte for byte, letter in untyped().items()}


class Text:
    """The text of one answer as it comes.

    A token is decoded together with the few before it that its text may depend on, not with the whole answer: time grows with the
    answer's length, not with its square. The pieces join to what `decoded` makes of all tokens, up to the first of `stop`.

    Args:
        tokenizer: whose tokens come.
        stop: strings that end the answer; none of them is shown, nor the beginning of one before it is known not to be one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        """Whether one of `stop` was said: no more is shown."""
        self.text = ""
        """What was shown so far."""
        self._ids: list[int] = []
        self._start = 0  # of the tokens that are decoded together
        self._read = 0  # tokens whose text is out
        self._context = ""  # text of those from start to read
        self._out = 0  # characters that are out, held back ones included
        self._held = ""  # what may be the beginning of a stop string

    def add(self, token: int) -> str:
        """Return what one more token lets be shown; may be empty."""
        self._ids.append(token)
        if self.stopped:
            return ""
        text = decoded(self.tokenizer, self._ids[self._start :])
        if len(text) <= len(self._context) or text.endswith(UNFINISHED):
            return ""
        piece = text[len(self._context) :]
        self._start, self._read = self._read, len(self._ids)
        self._context = decoded(self.tokenizer, self._ids[self._start : self._read])
        return self._show(piece)

    def end(self) -> str:
        """Return what is left once no token comes any more."""
        if self.stopped:
            return ""
        whole = decoded(self.tokenizer, self._ids)
        piece = self._show(whole[self._out :])
        rest, self._held = ("" if self.stopped else self._held), ""
        self.text += rest
        return piece + rest

    def _show(self, piece: str) -> str:
        self._out += len(piece)
        if not self.stop:
            self.text += piece
            return piece
        found = self._held + piece
        places = [place for place in map(found.find, self.stop) if place >= 0]
        if places:
            self.stopped = True
            shown, self._held = found[: min(places)], ""
        else:
            kept = max(beginning(found, stop) for stop in self.stop)
            shown, self._held = found[: len(found) - kept], found[len(found) - kept :]
        self.text += shown
        return shown


def beginning(text: str, stop: str) -> int:
    """How many of a text's last characters are the first of `stop`, which is not all there."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
