"""Rows with near-duplicates planted in them, each pair's likeness counted over all its word 5-grams. Standard library only; no bench of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

N = 5
LOW, HIGH = 0.8, 0.95
DECOY_LOW = 0.6
"""A decoy is like its origin by this much up to, not including, LOW: both stay."""


@dataclass(frozen=True)
class Made:
    """One row: its text; for a planted one which row it was made from and how alike the two are; for a decoy the same, under its own name. -1 is none."""

    text: str
    origin: int = -1
    similarity: float = 0.0
    decoy_of: int = -1


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Every run of 5 words."""
    words = text.split()
    return {tuple(words[place : place + N]) for place in range(len(words) - N + 1)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def rows(count: int, seed: int, *, planted: float = 0.1, decoys: float = 0.05) -> list[Made]:
    """Make rows of 60 to 100 lower-case words; a share of them is an edited earlier row, at a Jaccard of 0.8 to 0.95, both ends met, and a share nearly so.

    No row is the origin of two, nor is an edited one: of each planted pair one row stays, and of no other.
    """
    rng = random.Random(f"near rows {seed}")
    syllables = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()
    vocabulary = sorted({"".join(rng.choice(syllables) for _ in range(rng.randint(2, 4))) for _ in range(30_000)})
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))  # like a language: few words make most of the text
    drawn = _draws(rng, vocabulary, weights)
    made: list[Made] = []
    free: list[int] = []
    kinds = ["planted"] * int(count * planted) + ["decoy"] * int(count * decoys)
    kinds += ["new"] * (count - len(kinds))
    rng.shuffle(kinds)
    for kind in kinds:
        if kind == "new" or not free:
            free.append(len(made))
            made.append(Made(" ".join(next(drawn) for _ in range(rng.randint(60, 100)))))
            continue
        place = rng.randrange(len(free))
        free[place], free[-1] = free[-1], free[place]
        origin = free.pop()
        if kind == "planted":
            edited, likeness = _edited(rng, made[origin].text, drawn, lambda likeness: LOW <= likeness <= HIGH)
            made.append(Made(edited, origin, likeness))
        else:
            edited, likeness = _edited(rng, made[origin].text, drawn, lambda likeness: DECOY_LOW <= likeness < LOW)
            made.append(Made(edited, similarity=likeness, decoy_of=origin))
    return made


def _draws(rng: random.Random, vocabulary: list[str], weights: list[float]) -> Iterator[str]:
    while True:
        yield from rng.choices(vocabulary, cum_weights=weights, k=10_000)


def _edited(rng: random.Random, text: str, drawn: Iterator[str], wanted: Callable[[float], bool]) -> tuple[str, float]:
    """Change, cut off or append words until the likeness is one that is wanted."""
    whole = ngrams(text)
    while True:
        words = text.split()
        kind = rng.choice(["change", "run", "cut", "append"])
        if kind == "change":
            for _ in range(rng.randint(1, 4)):
                words[rng.randrange(len(words))] = next(drawn)
        elif kind == "run":
            first, size = rng.randrange(len(words) - 16), rng.randint(1, 16)
            words[first : first + size] = [next(drawn) for _ in range(size)]
        elif kind == "cut":
            words = words[: len(words) - rng.randint(3, 35)]
        else:
            words += [next(drawn) for _ in range(rng.randint(4, 50))]
        edited = " ".join(words)
        likeness = jaccard(whole, ngrams(edited))
        if wanted(likeness):
            return edited, likeness
