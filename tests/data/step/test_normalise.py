"""step.normalise: one form for equal texts, nothing taken that somebody reads."""

from __future__ import annotations

import pytest

from largeforge.data.rows import Dropped
from largeforge.data.step.config import NormaliseConfig
from largeforge.data.step.normalise import Normalise
from tests.data.making import row


def config(**changes: object) -> NormaliseConfig:
    return NormaliseConfig(**{"_target_": "", "unicode": "nfc", "strip": True, "newlines": True, "control": True, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafe\u0301", "café"),
        ("  two ends \n", "two ends"),
        ("one  \r\ntwo\rthree", "one\ntwo\nthree"),
        ("far\n\n\n\n\n\napart", "far\n\n\napart"),
        ("un\u200bseen\ufeff", "unseen"),
        ("bell\x07", "bell"),
        ("\u202eturned", "turned"),
    ],
)
def test_one_form(before: str, after: str) -> None:
    assert Normalise(config()).normal(before) == after


@pytest.mark.parametrize("text", ["plain", "tab\there", "  indented\n    code".strip(), "नमस्ते", "👩\u200d👩\u200d👧", "می\u200cخواهم", "ﬁne Ａ", "a\n\nb"])
def test_what_somebody_reads_stays(text: str) -> None:
    """Joiners stand inside emoji and words; nfc leaves ligatures and full width as they are."""
    assert Normalise(config()).normal(text) == text


def test_nfkc_flattens_and_none_leaves() -> None:
    assert Normalise(config(unicode="nfkc")).normal("ﬁne Ａ") == "fine A"
    assert Normalise(config(unicode="none")).normal("cafe\u0301") == "cafe\u0301"
    off = Normalise(config(unicode="none", strip=False, newlines=False, control=False))
    assert off.normal(" a\r\n\x07 ") == " a\r\n\x07 "


def test_rows_are_told_as_changed_only_where_they_are() -> None:
    same, other = Normalise(config())([row("plain"), row(" ends ")])
    assert "changed" not in same.lineage  # type: ignore[union-attr]
    assert other.lineage["changed"] == ["normalise"]  # type: ignore[union-attr]
    assert next(other.texts()) == "ends"  # type: ignore[union-attr]


def test_a_text_of_nothing_visible_is_left_out() -> None:
    (dropped,) = Normalise(config())([row("\u200b\u200e")])
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "nothing_visible"


def test_twice_is_once() -> None:
    step = Normalise(config())
    for text in ("a \u200b b", "x\r\n\r\n\r\n\r\n\r\ny", "\u0041\u030a ", "\x07 a"):
        assert step.normal(step.normal(text)) == step.normal(text)
