"""An index of texts that come one by one: repeats are told and not remembered, and it finds what the step finds."""

from __future__ import annotations

import pytest

from largeforge.data.step.online import NearIndex
from largeforge.errors import InputError
from scripts.benches.near_rows import rows as planted_rows
from tests.data.step.made import make, text
from tests.data.step.survey import gone

SENTENCE = "Please write a short and friendly note to a neighbour whose parcel was delivered to my door yesterday evening"


def test_a_repeat_is_told_what_it_repeats() -> None:
    index = NearIndex(0.8, n=3)
    assert index.add_if_new(SENTENCE, "row 1") is None
    assert index.add_if_new(SENTENCE.upper() + "!", "row 2") == "row 1"
    assert index.add_if_new(SENTENCE.replace("yesterday evening", "yesterday"), "row 3") == "row 1"
    assert index.add_if_new("Something else altogether, with other words in it") is None
    assert index.add_if_new("something else altogether with other words in it") == "Something else altogether, with other words in it", "no key: the text"
    assert len(index) == 2


def test_the_threshold_is_met_exactly() -> None:
    """19 words, 17 runs of three; two words less at the end leave 15 of them: 0.882."""
    shorter = SENTENCE.rsplit(" ", 2)[0]
    for threshold, new in ((0.88, False), (0.89, True)):
        index = NearIndex(threshold, n=3)
        index.add_if_new(SENTENCE, "first")
        assert (index.add_if_new(shorter) is None) == new


def test_the_nearest_is_told() -> None:
    """Of 20 pairs of words each: the third shares 15 of 25 with the first and 17 of 23 with the second, those two 12 of 28 with each other."""
    index = NearIndex(0.6, n=2)
    words = [f"w{number}" for number in range(30)]
    assert [index.add_if_new(" ".join(words[first : first + 21]), f"from {first}") for first in (0, 8, 5)] == [None, None, "from 8"]


def test_texts_without_words_are_always_new() -> None:
    index = NearIndex(0.8)
    assert [index.add_if_new(one) for one in ("", "...", "", "...")] == [None] * 4 and len(index) == 0


def test_it_finds_what_the_step_finds() -> None:
    made = planted_rows(600, 11)
    index = NearIndex(0.8)
    told = [number for number, one in enumerate(made) if index.add_if_new(one.text, str(number)) is not None]
    assert told == gone(list(make("near_duplicates")(text(one.text) for one in made))) and len(told) == 60


def test_too_few_permutations_are_refused() -> None:
    with pytest.raises(InputError, match="num_perm=8 is too few for threshold=0.3"):
        NearIndex(0.3, num_perm=8)
