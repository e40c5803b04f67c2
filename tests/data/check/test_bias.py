"""How groups of people are named, and negative words near them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from largeforge.data.check.bias import fisher, read_groups
from largeforge.data.rows import Row
from largeforge.errors import InputError
from tests.data.check.clean import check, clean_rows, one

ONLY: dict[str, Any] = {"only": ["bias"], "examples": 1000}


def about(texts: list[str]) -> list[Row]:
    return [Row({"text": text}, f"rows:{number}") for number, text in enumerate(texts, start=1)]


def test_planted_slurs_are_found() -> None:
    """40 rows in which a negative word stands beside women, among 1,000 with 300 that name women and 300 that name men neutrally: recall 1, precision 1."""
    texts = [
        f"Number {number}: {['the woman reads a page', 'the man reads a page', 'the page is read'][number % 3]} and walks home in the evening."
        for number in range(960)
    ]
    texts += [f"Number {number}: women are {['stupid', 'useless', 'hysterical', 'bad'][number % 4]} at reading pages." for number in range(40)]
    (finding,) = check(about(texts), **ONLY)
    assert (finding.severity, finding.count) == ("warning", 40)
    assert finding.examples == [f"rows:{number}" for number in range(961, 1001)]
    assert "near women in 11.1 %" in finding.message and "in 0.0 % (0 of 320)" in finding.message


def test_negative_words_far_away_or_near_everybody_are_no_finding() -> None:
    far = "The woman came home. Then it rained for one or two days, the river rose, and the weather was terrible."
    early = "The terrible weather lasted for one or two days, the river rose, and then at last it ended, and a woman came home."
    for text in (far, early):
        assert check(about([text] * 100 + ["The man came home."] * 100), **ONLY) == []
    both = [f"The {who} had a bad day." for who in ("woman", "man") for _ in range(100)]
    assert check(about(both), **ONLY) == []


def test_planted_absence_is_found() -> None:
    """60 rows name men, 10 name women: six times as many. Below check.bias.min_rows nothing is said."""
    texts = ["His brother sings."] * 60 + ["Her sister sings."] * 10
    (finding,) = check(about(texts), **ONLY)
    assert finding.count == 60 and "60 rows name men, 10 name women: 6.0 times as many" in finding.message
    assert "the other never" in one(check(about(texts[:60]), **ONLY), holding="women").message
    assert check(about(texts[20:]), **{**ONLY, "bias": {"min_rows": 60}}) == []


def test_noise_raises_nothing() -> None:
    """20 sets of 600 rows with groups and negative words thrown in at random: at p_value=0.01, at most 1 raises a finding."""
    groups = read_groups("standard")
    hard = sorted(groups.negative)
    raised = 0
    for seed in range(20):
        draw = random.Random(seed)
        texts = []
        for _ in range(600):
            words = ["word"] * draw.randint(10, 40)
            for family in ("gender", "age", "migration"):
                group = draw.choice(list(groups.families[family].values()))
                words[draw.randrange(len(words))] = " ".join(draw.choice(group))
            if draw.random() < 0.3:
                words.insert(draw.randrange(len(words)), draw.choice(hard))
            texts.append(" ".join(words))
        raised += any("negative" in finding.message for finding in check(about(texts), **ONLY, bias={"lift": 1.0}))
    assert raised <= 1


def test_terms_of_several_words_and_brackets() -> None:
    """A term of two words counts once, as its own group; brackets and apostrophes do not hide a term."""
    texts = ["An old woman (she's kind) met (women) and black people."] * 50 + ["Plain."] * 50
    found = check(about(texts), **ONLY)
    assert {finding.message.partition(":")[0] for finding in found} == {"gender", "age", "origin"}
    assert "50 rows name old, 0 name young" in one(found, holding="age").message


def test_groups_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text("families:\n  pets: {cats: [cat, cats], dogs: [dog, dogs]}\nnegative: [wet]\n")
    rows = about(["A wet cat."] * 60 + ["A dog."] * 60)
    assert check(rows, **ONLY) == []
    (finding,) = check(rows, **ONLY, bias={"groups": str(path)})
    assert finding.count == 60 and "near cats in 100.0 %" in finding.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("families: [", "is no YAML"),
        ("groups: {}", "must hold families and negative"),
        ("families: {}\nnegative: [bad]", "at least one family"),
        ("families: {a: {b: [c]}}\nnegative: [bad]", "families.a must name two groups"),
        ("families: {a: {b: [c], d: [no]}}\nnegative: [bad]", "families.a.d must be a list of words"),
        ("families: {a: {b: [c], d: ['1']}}\nnegative: [bad]", "without a letter"),
        ("families: {a: {b: [c], d: [e]}}\nnegative: [very bad]", "single words; not: very bad"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        check([], bias={"groups": str(path)})


def test_a_missing_file_is_told() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        check([], bias={"groups": "nowhere.yaml"})


def test_fisher_as_by_hand() -> None:
    """The tea taster: 4 of 4 against 0 of 4 has a chance of 1 in 70, 3 of 4 against 1 of 4 of 17 in 70; scipy gives 0.00249 for 20/100 against 40/400."""
    assert fisher(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher(0, 50, 10, 50) == pytest.approx(1)
    assert fisher(500, 100_000, 400, 100_000) < 1e-3
    assert fisher(50_000, 100_000, 50_000, 100_000) == pytest.approx(0.5, abs=0.01)


def test_the_rows_that_are_clean_name_both() -> None:
    rows = [replace(row, content={"text": row.text()}) for row in clean_rows(num_rows=1500)]
    assert check(rows, **ONLY) == []
