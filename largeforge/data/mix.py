"""Several sources in one stream, each with its share: by weight, flattened by a temperature, capped. Knows nothing about files or what rows say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

from largeforge.data.rows import BadRow

T = TypeVar("T")
Exhausted = Literal["stop", "skip", "repeat"]


def shares(weights: Sequence[float], temperature: float) -> list[float]:
    """The probability of each source: its weight to the power 1/temperature, normalised.

    A temperature of 1 takes the weights as they are, a higher one evens them out (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2).
    """
    largest = max(weights)
    raised = [(weight / largest) ** (1 / temperature) for weight in weights]
    return [value / sum(raised) for value in raised]


def mixed(
    sources: Sequence[Callable[[], Iterator[T | BadRow]]],
    weights: Sequence[float],
    *,
    temperature: float = 1.0,
    caps: Sequence[int | None] | None = None,
    exhausted: Exhausted,
    seed: int,
) -> Iterator[T | BadRow]:
    """Draw row after row, each time from a source chosen by its share; the same rows in the same order for the same seed.

    A bad row is given on and another is drawn from the same source in its place, so that shares hold for good rows. A source that has
    given as many rows as its cap is set aside, and the others go on.

    Args:
        sources: each begins its rows anew when it is called.
        weights: of the sources, > 0.
        temperature: > 0.
        caps: the most good rows of each source; None is all.
        exhausted: what happens when a source has no more rows. stop: the mix ends. skip: the others go on until none is left.
            repeat: it begins again, until every source has been read to its end or its cap.
        seed: of the draws.
    """
    draw = random.Random(f"mix {seed}")
    chances = shares(weights, temperature)
    limits = list(caps) if caps is not None else [None] * len(sources)
    streams = [source() for source in sources]
    given = [0] * len(sources)
    first = [True] * len(sources)  # whether a source is being read for the first time
    live = list(range(len(sources)))
    while live:
        number = draw.choices(live, [chances[index] for index in live])[0]
        row: T | BadRow | None = None
        for row in streams[number]:
            if not isinstance(row, BadRow):
                break
            if first[number]:  # told once
                yield row
            row = None
        if row is None:
            if exhausted == "stop":
                return
            first[number] = False
            if exhausted == "skip" or not given[number]:
                live.remove(number)
            elif not any(first[index] for index in live):
                return
            else:
                streams[number] = sources[number]()
            continue
        yield row
        given[number] += 1
        if given[number] == limits[number]:
            live.remove(number)
            if exhausted == "repeat" and not any(first[index] for index in live):
                return
