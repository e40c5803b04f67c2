"""What a text means, as a vector: the mean of its tokens' static embeddings, from WordLlama's files (MIT), which lie inside its package.

Reads the files by themselves: importing `wordllama` would set up Python's root logger, and its own loader looks for the tokenizer on the network first.
Vectors are whole numbers, so that the product of two is exact in float32, whatever the order of its sums: the same on every machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np

DIMENSIONS = 256
LENGTH = 4000
"""Of every vector, nearly: a product of two, and every sum on the way to it, stays below 2^24 and so is exact in float32.
Rounding moves a cosine by about 0.0001."""
GRAIN = 1 << 14  # the table's values become whole numbers of this size, so that sums of them are exact


class StaticEmbedding:
    """Token embeddings of WordLlama (l2_supercat, 32,000 tokens of 256 dimensions; trained from Llama 2's embeddings). Order of words does not count.

    Raises:
        MissingExtra: the package, or its files, are not there.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("wordllama")
        places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
        self._weights, self._tokenizer = (
            next((place / name for place in places if (place / name).is_file()), None)
            for name in ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")
        )
        if self._weights is None or self._tokenizer is None:
            raise MissingExtra("wordllama", extra="data")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: int16, (texts, DIMENSIONS), each of length LENGTH; zeros for a text without tokens. A text's vector does not depend on the others."""
        import numpy as np

        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        result = np.zeros((len(ids), DIMENSIONS), dtype=np.int16)
        told = np.flatnonzero(lengths)
        if not len(told):
            return result
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
        begins = (np.cumsum(lengths) - lengths)[told]
        sums = np.add.reduceat(self.table[np.clip(flat, 0, len(self.table) - 1)], begins, axis=0, dtype=np.int64).astype(np.float64)
        norms = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        result[told] = np.rint(sums / np.maximum(norms, 1) * LENGTH).astype(np.int16)
        return result

    @cached_property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def table(self) -> np.ndarray:
        """int32, (tokens, DIMENSIONS)."""
        import numpy as np
        from safetensors import safe_open

        with safe_open(str(self._weights), framework="np") as weights:
            values = weights.get_tensor("embedding.weight")
        table: np.ndarray = np.rint(values.astype(np.float64) * GRAIN).astype(np.int32)
        return table


@lru_cache(maxsize=1)
def static_embedding() -> StaticEmbedding:
    """The embedding of this process: its table (33 MB) is read once."""
    return StaticEmbedding()
