"""Hashes of every run of characters of many texts at once, and which of them stand for a text. Knows nothing about rows.

All in numpy over the texts laid end to end: a run's hash is made by doubling (two runs of 8 make one of 16), so that its cost does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_FACTOR = 0x9E3779B97F4A7C15


@cache
def _table() -> np.ndarray:
    """A number of 64 bits for each byte; the same on every machine."""
    import hashlib

    import numpy as np

    return np.frombuffer(b"".join(hashlib.blake2b(bytes([value]), digest_size=8, key=b"runs").digest() for value in range(256)), dtype="<u8").astype(np.uint64)


def runs_of(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `size` bytes (a power of two) of UTF-8.

    Returns:
        uint64 hashes in order, and the int64 number of the text that each stands in; a text shorter than `size` has none.
    """
    import numpy as np

    data = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([len(one) for one in data], dtype=np.int64)
    hashes = _table()[np.frombuffer(b"".join(data), dtype=np.uint8)]
    width = 1
    factor = _FACTOR
    with np.errstate(over="ignore"):
        while width < size:
            hashes = hashes[:-width] * np.uint64(factor) + hashes[width:] if len(hashes) > width else hashes[:0]
            factor = factor * factor % (1 << 64)
            width *= 2
        counts = np.maximum(lengths - size + 1, 0)
        owners = np.repeat(np.arange(len(data)), counts)
        begins = np.cumsum(lengths) - lengths
        places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(begins, counts)
        return _mixed(hashes[places]), owners


def winnowed(hashes: np.ndarray, owners: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the smallest hash of every `window` (a power of two) runs in a row.

    Two texts that share `size + window - 1` bytes in a row share a hash (Schleimer, Wilkerson and Aiken 2003); about one run in `window / 2` is kept.
    """
    import numpy as np

    smallest, width = hashes, 1
    while width < window and len(smallest) > width:
        smallest = np.minimum(smallest[:-width], smallest[width:])
        width *= 2
    if width < window:
        return hashes[:0], owners[:0]
    first, last = owners[: len(smallest)], owners[window - 1 :]
    smallest, first = smallest[first == last], first[first == last]
    new = np.ones(len(smallest), dtype=bool)
    new[1:] = (smallest[1:] != smallest[:-1]) | (first[1:] != first[:-1])
    return smallest[new], first[new]


def distinct(values: np.ndarray) -> np.ndarray:
    """Sort, each value once: for millions of numbers this is ten times as fast as numpy's own way by hashes."""
    import numpy as np

    values = np.sort(values)
    new = np.ones(len(values), dtype=bool)
    new[1:] = values[1:] != values[:-1]
    return values[new]


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread what the low bits know over all 64 (the end of splitmix64)."""
    import numpy as np

    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = hashes ^ (hashes >> np.uint64(31))
    return mixed
