"""Plain-English wishes and the LargeForge command that grants each, put together from phrases and values by a seed.

Knows phrases and values; knows nothing about tokens or files. The same seed gives the same rows on every machine and Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from largeforge.data.demo_options import OPTIONS, Option, Said
from largeforge.data.demo_phrases import (
    ARTIFACT_HELDOUT,
    ARTIFACT_TRAINING,
    CLOSERS_HELDOUT,
    CLOSERS_TRAINING,
    DATA_HELDOUT,
    DATA_TRAINING,
    FAMILIES_HELDOUT,
    FAMILIES_TRAINING,
    FILLERS_TRAINING,
    MODELS,
    OPENERS_HELDOUT,
    OPENERS_TRAINING,
    DataPhrases,
    Family,
)
from largeforge.data.demo_slots import ALTERNATIVES, Frame, frame
from largeforge.data.demo_values import VALUES

PROGRAM = "python -m largeforge"


@dataclass(frozen=True)
class Wish:
    """One row: what is wished for, the command that grants it, and the family its phrasing belongs to."""

    text: str
    command: str
    family: str


@dataclass(frozen=True)
class Language:
    """One side of the split: its phrases, and which of both makers fills the slots ("training" or "heldout")."""

    side: str
    families: tuple[Family, ...]
    data: DataPhrases
    artifacts: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    joints: tuple[str, ...]
    fillers: tuple[str, ...] = ()

    def said(self, option: Option) -> Said:
        return option.training if self.side == "training" else option.heldout

    def value(self, name: str, rng: Random) -> str:
        values = VALUES[name]
        return (values.training if self.side == "training" else values.heldout)(rng)


TRAINING = Language(
    "training",
    FAMILIES_TRAINING,
    DATA_TRAINING,
    ARTIFACT_TRAINING,
    OPENERS_TRAINING,
    CLOSERS_TRAINING,
    (" and ", ", ", ", ", " and ", ", and ", " & ", ", also ", " as well as ", " together with "),
    FILLERS_TRAINING,
)
HELDOUT = Language("heldout", FAMILIES_HELDOUT, DATA_HELDOUT, ARTIFACT_HELDOUT, OPENERS_HELDOUT, CLOSERS_HELDOUT, (" and ", ", ", " plus "))


def wishes(language: Language, count: int, *, seed: int) -> list[Wish]:
    """Make `count` wishes of one side, no two alike."""
    rng = Random(f"{language.side} {seed}")
    made: dict[str, Wish] = {}
    while len(made) < count:
        wish = _wish(language, rng)
        made.setdefault(wish.text.lower(), wish)
    return list(made.values())


def _wish(language: Language, rng: Random) -> Wish:
    family = _drawn(language.families, rng)
    chosen = frame(rng.choice(family.frames))
    said = chosen.draw(rng)
    words = [f"task={family.task}"]
    if family.task == "chat":
        text, asked = _chat(language, chosen, said, rng)
    else:
        text, asked = _training(language, chosen, said, rng)
    return Wish(_finished(language, text, rng), " ".join([PROGRAM, *words, *asked]), family.name)


# ---- what is wished for ----


def _chat(language: Language, chosen: Frame, said: dict[str, str], rng: Random) -> tuple[str, list[str]]:
    """Fill a frame of the task chat."""
    said["model"], model = _model(language, rng, artifact=0.65)
    asked = [f"model={model}"]
    if chosen.needs("prompt"):
        prompt = language.value("prompt", rng)
        asked.append(f'prompt="{prompt}"')
        said["prompt"] = rng.choice((f'"{prompt}"', f'"{prompt}"', f"'{prompt}'" if "'" not in prompt else f'"{prompt}"'))
    return chosen.template.render(said), asked


def _training(language: Language, chosen: Frame, said: dict[str, str], rng: Random) -> tuple[str, list[str]]:
    """Fill a frame of a training task; how its options are joined to it is decided by what stands around them."""
    said["model"], model = _model(language, rng, artifact=0.06)
    asked = [f"model={model}"]
    if chosen.needs("data"):
        said["data"], words = _data(language, rng)
        asked += words
    options = _options(rng, least=1 if chosen.opens_with == "options" else 0)
    pairs = [(option, _value(language, option, rng)) for option in options]
    text, settings = _with_options(language, chosen.template.render({**said, "options": "{options}"}), pairs, rng)
    return text, asked + settings


def _model(language: Language, rng: Random, *, artifact: float) -> tuple[str, str]:
    """Draw a model: how it is called, and what the command calls it."""
    if rng.random() < artifact:
        path = language.value("run", rng)
        return _spoken(rng.choice(language.artifacts), rng).replace("{path}", path), path
    choice = rng.choice(list(MODELS))
    return rng.choice(MODELS[choice]), choice


def _data(language: Language, rng: Random) -> tuple[str, list[str]]:
    """Draw the rows: how they are called, and the words of the command."""
    kind = rng.random()
    if kind < 0.33:
        return _spoken(rng.choice(language.data.demo), rng), ["data=demo"]
    if kind < 0.66:
        return _spoken(rng.choice(language.data.chats), rng), ["data=chat"]
    path = language.value("file", rng)
    return _spoken(rng.choice(language.data.file), rng).replace("{path}", path), ["data=chat", f"data.path={path}"]


# Options of which a command has one at most.
EXCLUSIVE = ({"trainer.max_steps", "trainer.epochs"},)


def _options(rng: Random, *, least: int) -> list[Option]:
    """Draw 0 to 3 options that go together, in the order they are said."""
    count = max(least, rng.choices((0, 1, 2, 3), (20, 48, 26, 6))[0])
    chosen: list[Option] = []
    while len(chosen) < count:
        option = rng.choices(OPTIONS, [option.weight for option in OPTIONS])[0]
        keys = {other.key for other in chosen}
        clash = any(option.key in group and keys & group for group in EXCLUSIVE)
        if option.key not in keys and not clash:
            chosen.append(option)
    return chosen


def _value(language: Language, option: Option, rng: Random) -> str:
    return language.value(option.value, rng) if option.value in VALUES else option.value


# ---- how it is said ----


def _with_options(language: Language, text: str, pairs: Sequence[tuple[Option, str]], rng: Random) -> tuple[str, list[str]]:
    """Put the options into a sentence, or behind it as sentences of their own. Returns it with the settings in the order they are said."""
    inside: list[tuple[str, str]] = []
    behind: list[tuple[str, str]] = []
    settings: list[str] = []
    first = text.startswith("{options}")
    share = rng.choice((0.0, 0.0, 0.3, 1.0)) if not first else 0.0
    for option, value in pairs:
        said = language.said(option)
        kinds = [kind for kind, phrases in (("noun", said.nouns), ("adverb", said.adverbs)) if phrases]
        if said.sentences and (not kinds or rng.random() < share):
            behind.append((_padded(language, _spoken(rng.choice(said.sentences), rng).replace("{}", value), rng), f"{option.key}={value}"))
            continue
        kind = rng.choice(kinds) if kinds else "sentence"
        phrases = {"noun": said.nouns, "adverb": said.adverbs, "sentence": said.sentences}[kind]
        inside.append((kind, _padded(language, _spoken(rng.choice(phrases), rng).replace("{}", value), rng)))
        settings.append(f"{option.key}={value}")
    text = _fit(text, _listed(language, inside, rng))
    if behind:
        rng.shuffle(behind)
        joint = rng.choice((". ", ". ", "; ", ", "))
        text = text.rstrip(",;: ")
        text = text + (" " if text.endswith("?") else joint) + joint.join(phrase for phrase, _ in behind)
    return text, settings + [setting for _, setting in behind]


def _padded(language: Language, phrase: str, rng: Random) -> str:
    """Now and then add a word or two that ask for nothing."""
    if language.fillers and phrase[-1].isalnum() and rng.random() < 0.12:
        return f"{phrase} {rng.choice(language.fillers)}"
    return phrase


def _listed(language: Language, inside: Sequence[tuple[str, str]], rng: Random) -> str:
    """Join options into one phrase: `with rank 8 and seed 3, for 30 steps`."""
    words, before = "", ""
    opening = rng.choice(("with ", "with ", "using ", "")) if language.side == "training" else "with "
    if inside and inside[0][0] == "noun" and not opening:
        words = ", "
    for index, (kind, phrase) in enumerate(inside):
        joint = "" if index == 0 else rng.choice(language.joints) if before == kind else rng.choice((" ", ", ", " and "))
        words += joint + (opening if kind == "noun" and before != "noun" else "") + phrase
        before = kind
    return words


def _fit(text: str, options: str) -> str:
    """Put the phrase of the options into its slot; without options close the gap."""
    if options.startswith(", "):
        return options.removeprefix(", ").join(re.split(r"\{options\}", re.sub(r"(?<=[^\W_]) (?=\{options\})", ", ", text)))
    if options:
        return text.replace("{options}", options)
    return re.sub(r"^\{options\}[,:;]? |[,;:/]? ?(?:->)? ?\{options\}", "", text)


def _finished(language: Language, text: str, rng: Random) -> str:
    """Add the words that ask for nothing, and the case and full stop that people use or leave out."""
    text = re.sub(r" ([?.,;:])(?= |$)", r"\1", re.sub(r"\s+", " ", text)).strip()
    if rng.random() < 0.1:
        text = rng.choice(language.openers) + text
    if rng.random() < 0.1 and text[-1] not in "?\"'":
        text += rng.choice(language.closers)
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if text[-1].isalnum() and rng.random() < 0.25:
        text += rng.choice(".!")
    return text


def _spoken(phrase: str, rng: Random) -> str:
    """Choose among the alternatives `[a|b]` of a phrase."""
    while match := ALTERNATIVES.search(phrase):
        phrase = phrase[: match.start()] + rng.choice(match[1].split("|")) + phrase[match.end() :]
    return phrase


def _drawn(families: Sequence[Family], rng: Random) -> Family:
    return rng.choices(families, [family.weight for family in families])[0]


def spellings(phrase: str) -> Iterator[str]:
    """Every way to say a phrase: all combinations of its alternatives."""
    pieces = [piece.split("|") if index % 2 else [piece] for index, piece in enumerate(ALTERNATIVES.split(phrase))]
    return (re.sub(r"\s+", " ", "".join(combination)).strip() for combination in product(*pieces))


# ---- how far apart two wishes are ----


def words_of(text: str) -> frozenset[str]:
    """The words of a wish, without case and punctuation at their ends."""
    return frozenset(word.strip("\"'.,;:!?()").lower() for word in text.split())


def nearest(wish: frozenset[str], others: Sequence[frozenset[str]]) -> tuple[float, int]:
    """Find the nearest of several sets of words: its distance (1 - shared / all words, in [0, 1]) and its index."""
    return min((1 - len(wish & other) / len(wish | other), index) for index, other in enumerate(others))
