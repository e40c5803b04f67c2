"""The nearest of some names to what was typed: pure functions on text."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=8192)
def distance(a: str, b: str, limit: int = 99) -> int:
    """Count the letters to insert, delete, change or swap with a neighbour to make `b` from `a`; stops above `limit`."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before_last, before = before, row
        row = [i]
        for j, y in enumerate(b, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before_last[j - 2] + 1)
            row.append(best)
        if min(row) > limit:
            return limit + 1
    return row[-1]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name nearest to `word`, or None where none is near.

    Letters count; among equals the one that shares the longest beginning and the length. A word that is the beginning
    or the end of exactly one name is near to it however much is missing.
    """
    names = list(names)
    word = word.lower()
    ranked = sorted((distance(word, name.lower()), -_shared(word, name.lower()), abs(len(word) - len(name)), name) for name in names)
    if ranked and ranked[0][0] <= max(1, min(3, (len(word) + 1) // 2)):
        return ranked[0][3]
    parts = [name for name in names if len(word) > 1 and (name.lower().startswith(word) or name.lower().endswith(word))]
    return min(parts, key=len) if parts else None


def nearest_key(path: str, keys: Iterable[str]) -> str | None:
    """Return the key nearest to a dotted path, matched on the full path.

    "adapter.rnk" -> "adapter.r", "train.max_steps" -> "trainer.max_steps", "max_steps" -> "trainer.max_steps",
    "lr" -> "method.learning_rate".
    """
    keys = list(keys)
    head, _, leaf = path.rpartition(".")
    ranked = sorted(rank for key in keys if (rank := _rank(path, head, leaf, key)) is not None)
    if ranked:
        return ranked[0][2]
    if len(leaf) < 2:
        return None
    ends = [key for key in keys if _leaf(key).startswith(leaf) or _leaf(key).endswith(leaf) or _initials(_leaf(key)) == leaf]
    same = [key for key in ends if key.rpartition(".")[0] == head] or (ends if not head else [])
    return min(same, key=len) if same else None


def _rank(path: str, head: str, leaf: str, key: str) -> tuple[float, int, str] | None:
    """How far a key is from a path, None where it is too far to be meant."""
    key_head, _, key_leaf = key.rpartition(".")
    abbreviated = head == key_head and len(key_leaf) <= 2 and key_leaf.startswith(leaf[:1])
    most = max(1, len(leaf) // 2)
    leaf_gap = distance(leaf.lower(), key_leaf, 99 if abbreviated else most)
    close = leaf_gap <= most
    if not head and key_head:  # a bare word: any group may be meant
        return (leaf_gap + 0.5, -_shared(leaf, key_leaf), key) if leaf_gap <= len(leaf) // 3 else None
    gap = leaf_gap + distance(head.lower(), key_head)
    if not (close or abbreviated) or gap > max(2, len(path) // 3):
        return None
    return gap, -_shared(path, key), key


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("_"))


def _shared(a: str, b: str) -> int:
    """Letters that two words have in common at their beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
