"""Word n-grams of texts as 64-bit hashes, their MinHash signatures, and the bands of them that near rows share.

Knows neither rows nor files: `clusters.py` keeps what is made here, `online.py` holds it in memory. Every hash is the same on every machine.

A shingle is n words in a row, lower case, without punctuation; Chinese and Japanese characters count as words. A text of fewer than n words is one
shingle of all its words, so that it is near only to texts of the same words; a text without words has none, and is near to nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from largeforge.errors import InputError

if TYPE_CHECKING:
    import numpy as np

SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+")
ASCII_WORDS = bytes(ord(chr(code).lower()) if code < 128 and (chr(code).isalnum() or code == ord("_")) else ord(" ") for code in range(256))
RECALL = 0.995
"""The least chance that a pair exactly at the threshold shares a band."""
MAX_WORDS_HELD = 200_000
BLOCK_SHINGLES = 20_000  # of one signature pass: its buffers stay in the cache of a core
MAX_AT_ONCE = 4096
EMPTY = 0
"""The band key of a text without words."""


@dataclass(frozen=True)
class Nearness:
    """When two texts are near.

    Args:
        threshold: least Jaccard similarity of the sets of shingles, above 0, at most 1.
        n: words of a shingle.
        num_perm: values of a signature: more find more pairs that are near, and cost time and space.
        verify: whether a pair's similarity is counted over all shingles (exact but for collisions of 64-bit hashes), or estimated by the share of equal
            signature values (standard error about sqrt(t (1 - t) / num_perm), 0.035 at 0.8 of 128; the space a row takes then does not grow with its length).
        seed: of the permutations.

    Raises:
        InputError: too few permutations for the threshold.
    """

    threshold: float = 0.8
    n: int = 5
    num_perm: int = 128
    verify: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if recall(self.threshold, 1, self.num_perm) < RECALL:
            raise InputError(
                f"num_perm={self.num_perm} is too few for threshold={self.threshold:g}: of the pairs at the threshold "
                f"{recall(self.threshold, 1, self.num_perm):.0%} would be found (at least {RECALL:.1%} is needed).",
                next_step="a larger num_perm (128 is usual) or a higher threshold",
            )

    @property
    def rows_of_band(self) -> int:
        """Signature values that must all be equal: as many as leave a pair at the threshold a chance of RECALL to share a band.

        Two texts of similarity s agree in a given value with probability s (Broder 1997), so they share one of b bands of r values with
        1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). At 0.8 and 128 values: 21 bands of 6, 99.8 %.
        """
        return max(r for r in range(1, self.num_perm + 1) if recall(self.threshold, r, self.num_perm // r) >= RECALL)

    @property
    def num_bands(self) -> int:
        return self.num_perm // self.rows_of_band


def recall(similarity: float, rows: int, bands: int) -> float:
    """The chance that a pair of that similarity shares a band: 1 - (1 - s^r)^b."""
    return float(1 - (1 - similarity**rows) ** bands)


class WordHashes(dict[bytes, int]):
    """Word -> 64 bits of its BLAKE2b: those met of late are held."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= MAX_WORDS_HELD:
            self.clear()
        value = self[word] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
        return value


HELD = WordHashes()


def words(text: str) -> list[bytes]:
    """The words of a text in UTF-8, lower case, without punctuation."""
    if text.isascii():  # the same words, in a third of the time
        return text.encode().translate(ASCII_WORDS).split()
    return [word.encode("utf-8", "surrogatepass") for word in WORD.findall(text.lower())]


def shingles(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of n words of every text, in order, repeats included.

    Returns:
        uint64 hashes of all texts behind each other; int64 offsets, one more than texts: text i's are hashes[offsets[i]:offsets[i + 1]].
    """
    import numpy as np

    of_texts = [words(text) for text in texts]
    lengths = np.fromiter(map(len, of_texts), dtype=np.int64, count=len(texts))
    total = int(lengths.sum())
    flat = np.fromiter(map(HELD.__getitem__, chain.from_iterable(of_texts)), dtype=np.uint64, count=total)
    starts = np.cumsum(lengths) - lengths
    hashes = np.zeros(total, dtype=np.uint64)
    begins = np.zeros(total, dtype=bool)
    if total >= n:
        hashes[: total - n + 1] = folded([flat[k : total - n + 1 + k] for k in range(n)])
    left = np.repeat(starts + lengths, lengths) - np.arange(total)  # words from here to the text's end
    begins[left >= n] = True
    for size in range(1, n):
        firsts = starts[lengths == size]
        hashes[firsts] = folded([flat[firsts + k] for k in range(size)])
        begins[firsts] = True
    counts = np.where(lengths >= n, lengths - n + 1, np.minimum(lengths, 1))
    return hashes[begins], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def folded(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One hash of several, in order: a polynomial, then mixed so that every bit depends on every bit."""
    import numpy as np

    value = np.full(columns[0].shape, len(columns), dtype=np.uint64)
    for column in columns:
        value = value * np.uint64(0x9E3779B97F4A7C15) + column
    value ^= value >> np.uint64(30)  # the end of splitmix64
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


@lru_cache(maxsize=8)
def permutations(num_perm: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and summands, uint64: x -> a x + b is one to one over 64 bits."""
    import numpy as np

    drawn = b"".join(hashlib.blake2b(f"minhash {seed} {index}".encode(), digest_size=16).digest() for index in range(num_perm))
    pairs = np.frombuffer(drawn, dtype="<u8").reshape(num_perm, 2)
    return pairs[:, 0] | np.uint64(1), pairs[:, 1].copy()


def signatures(hashes: np.ndarray, offsets: np.ndarray, near: Nearness) -> np.ndarray:
    """The smallest value of every text's hashes under each permutation (Broder 1997), its upper 32 bits: uint32, (texts, num_perm); zeros where it has none."""
    import numpy as np

    factors, summands = permutations(near.num_perm, near.seed)
    told = np.flatnonzero(np.diff(offsets))
    result = np.zeros((len(offsets) - 1, near.num_perm), dtype=np.uint32)
    starts = offsets[:-1][told]
    first = 0
    while first < len(told):
        last = max(int(np.searchsorted(starts, starts[first] + BLOCK_SHINGLES)), first + 1)
        block = hashes[starts[first] : offsets[told[last - 1] + 1]]
        begins = starts[first:last] - starts[first]
        least = np.empty((near.num_perm, last - first), dtype=np.uint64)
        if last - first == 1 and len(block) <= MAX_AT_ONCE:  # one text, as `online.py` asks for: all permutations at once
            result[told[first]] = (block * factors[:, None] + summands[:, None]).min(axis=1) >> np.uint64(32)
            first = last
            continue
        values = np.empty_like(block)
        for index in range(near.num_perm):
            np.multiply(block, factors[index], out=values)
            np.add(values, summands[index], out=values)
            np.minimum.reduceat(values, begins, out=least[index])
        result[told[first:last]] = (least >> np.uint64(32)).T
        first = last
    return result


def band_keys(signatures: np.ndarray, offsets: np.ndarray, near: Nearness) -> np.ndarray:
    """One 64-bit key of each band of each text: (bands, texts); EMPTY where a text has no words. Near texts share a key of the same band."""
    import numpy as np

    width = near.rows_of_band
    of_bands = signatures[:, : near.num_bands * width].T.astype(np.uint64).reshape(near.num_bands, width, -1)
    keys = folded([of_bands[:, k] for k in range(width)])
    keys[keys == EMPTY] = 1
    keys[:, np.diff(offsets) == 0] = EMPTY
    return keys


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B| of two sorted arrays without repeats."""
    import numpy as np

    both = np.concatenate((a, b))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def similarity(a: np.ndarray, b: np.ndarray, near: Nearness) -> float:
    """How alike two texts are, by what `evidence` keeps of them; 0 where lengths alone show that they are not near enough."""
    import numpy as np

    if not near.verify:
        return float(np.count_nonzero(a == b)) / near.num_perm
    if min(len(a), len(b)) < near.threshold * max(len(a), len(b)):
        return 0.0
    return jaccard(a, b)
