"""Rows with near-duplicates planted in them, each pair's likeness counted over all its word 5-grams. Standard library only; no bench of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

N = 5
LOW, HIGH = 0.8, 0.95


@dataclass(frozen=True)
class Made:
    """One row: its text, and for a planted one which row it was made from and how alike the two are; origin -1 is none."""

    text: str
    origin: int = -1
    similarity: float = 0.0


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Every run of 5 words."""
    words = text.split()
    return {tuple(words[place : place + N]) for place in range(len(words) - N + 1)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def rows(count: int, seed: int, *, planted: float = 0.1) -> list[Made]:
    """Make rows of 60 to 100 lower-case words; a share of them is an edited earlier row, at a Jaccard of 0.8 to 0.95, both ends met.

    No row is the origin of two, nor is a planted one: of each pair one row stays.
    """
    rng = random.Random(f"near rows {seed}")
    syllables = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()
    vocabulary = sorted({"".join(rng.choice(syllables) for _ in range(rng.randint(2, 4))) for _ in range(30_000)})
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]  # like a language: few words make most of the text
    drawn = iter(_draws(rng, vocabulary, weights))
    made: list[Made] = []
    free: list[int] = []
    num_planted = int(count * planted)
    is_planted = [False] * (count - num_planted) + [True] * num_planted
    rng.shuffle(is_planted)
    for flag in is_planted:
        if flag and free:
            origin = free.pop(rng.randrange(len(free)))
            edited, likeness = _edited(rng, made[origin].text, drawn)
            made.append(Made(edited, origin, likeness))
        else:
            free.append(len(made))
            made.append(Made(" ".join(next(drawn) for _ in range(rng.randint(60, 100)))))
    return made


def _draws(rng: random.Random, vocabulary: list[str], weights: list[float]) -> Iterator[str]:
    while True:
        yield from rng.choices(vocabulary, weights, k=10_000)


def _edited(rng: random.Random, text: str, drawn: Iterator[str]) -> tuple[str, float]:
    """Change, cut off or append words until the likeness is one that is wanted."""
    whole = ngrams(text)
    while True:
        words = text.split()
        kind = rng.choice(["change", "run", "cut", "append"])
        if kind == "change":
            for _ in range(rng.randint(1, 2)):
                words[rng.randrange(len(words))] = next(drawn)
        elif kind == "run":
            first, size = rng.randrange(len(words) - 6), rng.randint(1, 6)
            words[first : first + size] = [next(drawn) for _ in range(size)]
        elif kind == "cut":
            words = words[: len(words) - rng.randint(3, 19)]
        else:
            words += [next(drawn) for _ in range(rng.randint(4, 24))]
        edited = " ".join(words)
        likeness = jaccard(whole, ngrams(edited))
        if LOW <= likeness <= HIGH:
            return edited, likeness
