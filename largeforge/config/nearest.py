"""The nearest of some names to what was typed: pure functions on text."""

from __future__ import annotations

from collections.abc import Iterable


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

    "adapter.rnk" -> "adapter.r", "train.max_steps" -> "trainer.max_steps", "max_steps" -> "trainer.max_steps".
    """
    keys = list(keys)
    head, _, leaf = path.rpartition(".")
    best: tuple[float, int, str] | None = None
    for key in keys:
        key_head, _, key_leaf = key.rpartition(".")
        leaf_gap = distance(leaf.lower(), key_leaf)
        if head or not key_head:
            gap: float = leaf_gap + distance(head.lower(), key_head)
        else:
            gap = leaf_gap + 0.5  # a bare word: any group may be meant
        if leaf_gap > max(1, len(leaf) // 2) and not (key_leaf.startswith(leaf[:1]) and head == key_head and len(key_leaf) <= 2):
            continue
        rank = (gap, -_shared(path, key), key)
        if best is None or rank < best:
            best = rank
    if best is not None and best[0] <= max(2, len(path) // 3):
        return best[2]
    ends = [key for key in keys if leaf and len(leaf) > 1 and (key.rpartition(".")[2].startswith(leaf) or key.rpartition(".")[2].endswith(leaf))]
    same = [key for key in ends if key.rpartition(".")[0] == head] or (ends if not head else [])
    return min(same, key=len) if same else None


def _shared(a: str, b: str) -> int:
    """Letters that two words have in common at their beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
