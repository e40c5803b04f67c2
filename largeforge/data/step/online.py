"""Near-duplicates of texts that come one after another, while they are being made: an index in memory.

Says what is near as the step near_duplicates does (`minhash.py`); for rows that lie in files, that step is the one to use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from largeforge.data.step.minhash import Nearness, band_keys, shingles, signatures, similarity

if TYPE_CHECKING:
    import numpy as np


class NearIndex:
    """Remembers every text that was new; about 2 kB and 8 bytes a word each.

    The answer depends on the texts and their order alone: adding the same again, after a restart, gives the same index.

    Args:
        threshold: least Jaccard similarity of word n-grams at which a text counts as a repeat.
        n: words of a shingle; short texts (a question, an instruction) want 2 or 3, long ones 5.
        num_perm: values of a signature.
        seed: of the permutations.

    Raises:
        InputError: too few permutations for the threshold.
    """

    def __init__(self, threshold: float, *, n: int = 5, num_perm: int = 128, seed: int = 0) -> None:
        self.near = Nearness(threshold=threshold, n=n, num_perm=num_perm, seed=seed)
        self._keys: list[str] = []
        self._shingles: list[np.ndarray] = []
        self._bands: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        """Texts that were new."""
        return len(self._keys)

    def add_if_new(self, text: str, key: str = "") -> str | None:
        """Remember a text that is near to none before it: None. Else change nothing, and return what it is near to.

        Args:
            text: any; one without words is always new, and never remembered.
            key: what a later repeat is told; the text itself where empty.

        Returns:
            The key of the most similar text of those that are near, the earliest of equals; None where it was new.
        """
        import numpy as np

        hashes, offsets = shingles([text], self.near.n)
        if not len(hashes):
            return None
        bands = [(band, int(value)) for band, value in enumerate(band_keys(signatures(hashes, offsets, self.near), offsets, self.near)[:, 0])]
        found = np.unique(hashes)
        candidates = sorted({index for band in bands for index in self._bands.get(band, ())})
        likeness = [(similarity(found, self._shingles[index], self.near), -index) for index in candidates]
        if likeness and max(likeness)[0] >= self.near.threshold:
            return self._keys[-max(likeness)[1]]
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._keys))
        self._keys.append(key or text)
        self._shingles.append(found)
        return None
