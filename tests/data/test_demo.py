"""data=demo: held-out phrasings and values that training never sees, the same rows everywhere, commands that compose."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from random import Random

import pytest

from largeforge.config.compose import compose
from largeforge.data import demo_phrases as phrases
from largeforge.data.config import DemoConfig
from largeforge.data.demo import Demo
from largeforge.data.demo_options import OPTIONS, Said
from largeforge.data.demo_phrases import MODELS
from largeforge.data.demo_slots import frame
from largeforge.data.demo_values import VALUES
from largeforge.data.demo_wishes import HELDOUT, TRAINING, Language, Wish, nearest, spellings, wishes, words_of

CHOICES = {"precision"}
"""Slots whose values are choices of the config, which both sides share."""


@pytest.fixture(scope="module")
def trained() -> list[Wish]:
    """As many training rows as conf/data/demo.yaml makes."""
    return wishes(TRAINING, 2000, seed=0)


@pytest.fixture(scope="module")
def heldout() -> list[Wish]:
    return wishes(HELDOUT, 120, seed=0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder for commands that name files."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return inner


def config(**values: object) -> DemoConfig:
    given = {"num_rows": 300, "num_heldout": 100, "seed": 0, "max_length": 256, "packing": "auto", "validation": 0.02, "num_workers": 0, "curriculum": "none"}
    return DemoConfig.model_validate({"_target_": "largeforge.data.demo.Demo", **given, **values})


# ---- both sides are apart ----


def said(language: Language) -> Iterator[Said]:
    for option in OPTIONS:
        yield language.said(option)


def every_phrase(language: Language) -> set[str]:
    """Every spelling of every phrase and frame of one side."""
    frames = chain.from_iterable(family.frames for family in language.families)
    options = chain.from_iterable((*s.nouns, *s.adverbs, *s.sentences) for s in said(language))
    rest: Iterable[str] = (*language.data.demo, *language.data.chats, *language.data.file, *language.artifacts, *language.openers, *language.closers)
    return {spelling.lower().strip(" ,.?:") for phrase in chain(frames, options, rest) for spelling in spellings(phrase)}


def test_no_phrasing_is_shared() -> None:
    """A bare path or slot is a value, not a phrasing; everything else that held-out rows say is new."""
    shared = every_phrase(TRAINING) & every_phrase(HELDOUT)
    assert {phrase for phrase in shared if re.sub(r"\{\w*\}", "", phrase).strip()} == set()


def test_no_family_is_shared() -> None:
    assert {family.name for family in phrases.FAMILIES_TRAINING}.isdisjoint(family.name for family in phrases.FAMILIES_HELDOUT)


@pytest.mark.parametrize("name", sorted(set(VALUES) - CHOICES))
def test_no_value_is_shared(name: str) -> None:
    """2,000 values of each side have none in common."""
    rng = Random(7)
    assert {VALUES[name].training(rng) for _ in range(2000)}.isdisjoint(VALUES[name].heldout(rng) for _ in range(2000))


def test_no_heldout_row_is_trained(trained: list[Wish], heldout: list[Wish]) -> None:
    assert {wish.text.lower() for wish in trained}.isdisjoint(wish.text.lower() for wish in heldout)


def test_the_nearest_row_is_no_answer(trained: list[Wish], heldout: list[Wish]) -> None:
    """Answering with the nearest training row's command is right for less than 20 % of the held-out rows."""
    known = [words_of(wish.text) for wish in trained]
    right = [trained[nearest(words_of(wish.text), known)[1]].command == wish.command for wish in heldout]
    assert sum(right) / len(right) < 0.2


def test_nearest_by_hand() -> None:
    """2 of 4 words are shared with the second: distance 1/2."""
    others = [words_of("one two"), words_of("Tune nano fast."), words_of("three")]
    assert nearest(words_of("tune nano, please"), others) == (0.5, 1)


# ---- the rows ----


def test_thousands_of_distinct_rows() -> None:
    made = wishes(TRAINING, 5000, seed=3)
    assert len({wish.text.lower() for wish in made}) == 5000
    assert len({wish.command for wish in made}) > 3000


def test_the_same_rows_on_every_machine(trained: list[Wish]) -> None:
    """A fixed sum: neither Python's hash seed nor its version may move a row."""
    assert wishes(TRAINING, 2000, seed=0) == trained
    assert wishes(TRAINING, 50, seed=0) == trained[:50]
    assert wishes(TRAINING, 50, seed=1) != trained[:50]
    once = hashlib.sha256(json.dumps([[w.text, w.command] for w in trained[:200]]).encode()).hexdigest()
    assert once == SUM_OF_200


SUM_OF_200 = "08eaf8fd6a0f4f3839aa32c0f11e8e7ae5f930e4da4d2537e8c1e9978a8ea49f"


def test_the_same_heldout_rows_on_every_machine(heldout: list[Wish]) -> None:
    assert hashlib.sha256(json.dumps([[w.text, w.command] for w in heldout]).encode()).hexdigest() == SUM_OF_HELDOUT


SUM_OF_HELDOUT = "f36687e2f4b01966d5b82db6e837cf0cb7d16dfb2e153b6d41b63b934dfdaa4e"


def test_frames_are_templates_with_typed_slots() -> None:
    """A frame's choices are text slots drawn from left to right, the sentence is a Jinja2 template."""
    made = frame("[tune|train] {model} [on|with] {data} {options}")
    assert made.template.source == "{{ said_0 }} {{ model }} {{ said_1 }} {{ data }} {{ options }}"
    assert [slot.values for slot in made.slots.values()] == [["tune", "train"], ["on", "with"]]
    words = {tuple(made.draw(Random(seed)).values()) for seed in range(40)}
    assert words == {(left, right) for left in ("tune", "train") for right in ("on", "with")}
    assert (made.needs("data"), made.needs("prompt"), frame("{options}: go").opens_with, made.opens_with) == (True, False, "options", "")


def test_every_wish_says_what_its_command_says(trained: list[Wish], heldout: list[Wish]) -> None:
    """What a command copies (numbers, paths, names, questions) stands in its wish, letter by letter."""
    copied = {option.key for option in OPTIONS if option.value in VALUES} | {"data.path", "prompt"}
    for wish in [*trained, *heldout]:
        for key, value in settings(wish):
            if key in copied or (key == "model" and value not in MODELS):
                assert value.lower() in wish.text.lower(), wish


def test_settings_stand_in_the_order_they_are_said(trained: list[Wish], heldout: list[Wish]) -> None:
    """Exact match needs one right answer: task, model and rows, then every setting where the wish says it, none twice."""
    head = ["task", "model", "prompt", "data", "data.path"]
    for wish in [*trained, *heldout]:
        keys = [key for key, _ in settings(wish)]
        assert len(keys) == len(set(keys)), wish
        assert keys[: len(set(keys) & set(head))] == [key for key in head if key in keys], wish
        # numbers of three digits and more stand for themselves; a path may hold one too
        said = re.sub(r"\S*/\S*|\S+\.(jsonl?|csv|parquet|arrow)\b", "", wish.text)
        places = [said.find(value) for key, value in settings(wish) if re.fullmatch(r"\d{3,}", value)]
        assert places == sorted(places), wish


def test_no_slot_is_left(trained: list[Wish], heldout: list[Wish]) -> None:
    for wish in [*trained, *heldout]:
        assert not re.search(r"[{}\[\]|]|  | ,|,,", wish.text), wish.text


def settings(wish: Wish) -> list[tuple[str, str]]:
    words = shlex.split(wish.command)
    assert words[:3] == ["python", "-m", "largeforge"]
    return [(key, value) for key, _, value in (word.partition("=") for word in words[3:])]


# ---- the commands ----


def cover(made: list[Wish]) -> list[Wish]:
    """The fewest first rows that show every family, every setting and every choice of a setting."""
    seen: set[str] = set()
    kept = []
    for wish in made:
        shows = {wish.family} | {
            f"{key}={value}" if key in {"task", "data", "trainer", "tracker", "adapter", "plan"} or value in MODELS else key for key, value in settings(wish)
        }
        if not shows <= seen:
            seen |= shows
            kept.append(wish)
    return kept


def test_every_family_composes(folder: Path, trained: list[Wish], heldout: list[Wish]) -> None:
    """Every family, key and choice passes compose and check; a wish for "my chats" leaves the path to the user."""
    for wish in [*cover(trained), *cover(heldout)]:
        words = shlex.split(wish.command)[3:]
        if "data=chat" in words and not any(word.startswith("data.path=") for word in words):
            words.append("data.path=rows.jsonl")
        composed = compose(words)
        assert composed.task == ("chat" if "task=chat" in words else "sft")
        for key, value in settings(wish):
            if key in composed.choices and (key != "model" or value in MODELS):
                assert composed.choices[key] == value
            elif key == "prompt":
                assert composed.values["prompt"] == value


# ---- as a data module ----


def test_rows_and_heldout(cache: Path) -> None:
    """Rows are conversations; each held-out row names its family and its distance to the nearest training row."""
    demo = Demo(config())
    rows = list(demo.rows())
    assert len(rows) == 300
    assert demo.num_rows + demo.facts["num_validation_rows"] == 300
    assert [message.role for message in rows[0].messages] == ["user", "assistant"]
    assert rows[0].messages[-1].content.startswith("python -m largeforge task=")
    examples = demo.heldout()
    assert len(examples) == 100
    for example in examples:
        assert example.prompt[-1].role == "user"
        family, distance = re.fullmatch(r"([\w ]+); (\d\.\d\d) to the nearest training row", example.note).groups()  # type: ignore[union-attr]
        assert family in {family.name for family in phrases.FAMILIES_HELDOUT}
        assert 0.0 < float(distance) <= 1.0


def test_fingerprint_follows_the_rows() -> None:
    prints = {Demo(config(**values)).fingerprint() for values in ({}, {"num_rows": 301}, {"seed": 1})}
    assert len(prints) == 3
    assert Demo(config(num_heldout=7)).fingerprint() in prints
    assert Demo(config()).source.sha256 == Demo(config()).fingerprint()
