"""Prompt lookup (Saxena 2023): what followed the last few tokens before, in the prompt or the answer, is a guess at what follows now.

A guess is verified by the network in the step that would have computed one token; knows nothing about how.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3  # tokens that must stand before: two alike are mostly chance
MOST = 12  # tokens guessed at once
LEAST = 2


class Lookup:
    """Guesses for one answer. It guesses more after it was right, and less after it was wrong.

    Args:
        prompt: token ids.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids = list(prompt)
        self._after: dict[tuple[int, ...], int] = {}  # a gram -> the place after its last occurrence
        self._indexed = GRAM  # places that grams were noted up to
        self._size = 2 * LEAST
        self._idle = 0  # steps to sit out: where nothing repeats, guessing costs more than it brings

    def extend(self, tokens: Sequence[int], guessed: int) -> None:
        """Add what was said in a step in which so many tokens had been guessed: all but one of them were right."""
        self._ids.extend(tokens)
        if guessed:
            right = len(tokens) - 1
            self._size = min(MOST, 2 * self._size) if right == guessed else max(LEAST, right + 1)
            self._idle = 0 if right else 4

    def guess(self, most: int) -> list[int]:
        """Return tokens that may come next, at most so many; mostly none."""
        ids = self._ids
        for end in range(self._indexed, len(ids)):  # grams that something follows
            self._after[tuple(ids[end - GRAM : end])] = end
        self._indexed = max(self._indexed, len(ids))
        if self._idle:
            self._idle -= 1
            return []
        place = self._after.get(tuple(ids[-GRAM:]))
        return [] if place is None else ids[place : place + min(self._size, most)]
