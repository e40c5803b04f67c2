"""Text as it comes: whole characters, exactly the text of all tokens, and never a piece of what ends it."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from largeforge.contract import LoadedModel
from largeforge.engine.text import Text, beginning, decoded, token_text


@pytest.mark.parametrize("seed", range(4))
def test_pieces_join_to_the_whole(nano: LoadedModel, seed: int) -> None:
    """Random tokens, broken characters and special tokens among them: the pieces are what decoding all of them says."""
    assert nano.tokenizer is not None
    chance = random.Random(seed)
    words = nano.tokenizer("a日é! the 👍🏽 house", add_special_tokens=False).input_ids
    ids = [chance.choice(words) if chance.random() < 0.3 else chance.randrange(4096) for _ in range(200)] + words[:3]
    text = Text(nano.tokenizer)
    pieces = [text.add(token) for token in ids]
    assert sum(map(bool, pieces)) > 100
    assert "".join(pieces) + text.end() == text.text == decoded(nano.tokenizer, ids)


def test_bytes_of_tokens_are_those_of_the_text(nano: LoadedModel) -> None:
    """Half characters among them: joined they are the text's, whichever tokens it is cut into."""
    assert nano.tokenizer is not None
    text = "a day at the 👍🏽 house, 家へ帰る: Ünïcödé"
    tokens = [token_text(nano.tokenizer, one) for one in nano.tokenizer(text, add_special_tokens=False).input_ids]
    assert b"".join(one.encode("utf-8", "surrogateescape") for one in tokens) == text.encode()
    assert any("\udc80" <= letter <= "\udcff" for one in tokens for letter in one), "no letter was cut, and nothing was shown"


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    class Pieces:
        """Of a Llama 2: what has no piece is said in bytes."""

        def decode(self, ids: list[int]) -> str:
            return "\ufffd"

        def convert_ids_to_tokens(self, token: int) -> str:
            return f"<0x{token:02X}>"

    pieces: Any = Pieces()
    assert [token_text(pieces, one).encode("utf-8", "surrogateescape") for one in (0xF0, 0x9F)] == [b"\xf0", b"\x9f"]


def test_what_may_be_the_beginning_of_a_stop_string() -> None:
    assert beginning("abc<|e", "<|end|>") == 3 and beginning("abc", "<|end|>") == 0 == beginning("<|end|>", "x")
    assert beginning("aab", "abab") == 2 and beginning("aba", "abab") == 3
    assert beginning("END", "END") == 0  # all of it is another matter


@pytest.mark.parametrize("stop", [("wor",), ("lo, w", "never"), ("o", "ld"), ("!",), ("H",), ("world!",)])
def test_stop_strings(nano: LoadedModel, stop: tuple[str, ...]) -> None:
    """The text ends before the first of them, wherever tokens begin and end; nothing of it is ever shown."""
    assert nano.tokenizer is not None
    whole = "Hello, world! Hello"
    expected = whole[: min(place for place in map(whole.find, stop) if place >= 0)]
    text, shown = Text(nano.tokenizer, stop), ""
    for token in nano.tokenizer(whole, add_special_tokens=False).input_ids:
        shown += text.add(token)
        assert expected.startswith(shown)
        if text.stopped:
            break
    assert text.stopped and shown + text.end() == text.text == expected


def test_a_stop_string_that_does_not_come(nano: LoadedModel) -> None:
    """What was held back is shown at the end."""
    assert nano.tokenizer is not None
    text = Text(nano.tokenizer, ["lo!!!"])
    shown = "".join(map(text.add, nano.tokenizer("Hello", add_special_tokens=False).input_ids))
    assert shown == "Hel" and not text.stopped
    assert text.end() == "lo" and not text.stopped and text.text == "Hello"


def test_a_long_answer_takes_no_longer_per_token(nano: LoadedModel) -> None:
    """Twenty thousand tokens, each decoded with the few before it: with all of them it would take minutes."""
    assert nano.tokenizer is not None
    text = Text(nano.tokenizer)
    token = nano.tokenizer(" house", add_special_tokens=False).input_ids[0]
    start = time.monotonic()
    for _ in range(20_000):
        text.add(token)
    assert time.monotonic() - start < 30
