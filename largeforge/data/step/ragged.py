"""Arrays of different lengths behind each other in one file, written a few at a time and read through a memory map.

Knows nothing about what they hold.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class RaggedWriter:
    """Writes <name>.bin (the values) and, when all went well, <name>.npy (int64 offsets, one more than arrays).

    Args:
        folder: exists.
        name: of both files.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._values = (folder / f"{name}.bin").open("wb")
        self._offsets = folder / f"{name}.npy"
        self._lengths: list[np.ndarray] = []

    def __enter__(self) -> RaggedWriter:
        return self

    def add(self, values: np.ndarray | bytes, lengths: np.ndarray | list[int]) -> None:
        """Append arrays that lie behind each other in `values`; lengths count values (bytes of bytes)."""
        import numpy as np

        self._values.write(values if isinstance(values, bytes) else values.tobytes())
        self._lengths.append(np.asarray(lengths, dtype=np.int64))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import numpy as np

        self._values.close()
        if kind is None:
            np.save(self._offsets, np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths]).cumsum())


class Ragged:
    """The arrays of one `RaggedWriter`, by number.

    Args:
        folder: where they were written.
        name: of both files.
        dtype: of the values.
    """

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        import numpy as np

        self.offsets: np.ndarray = np.load(folder / f"{name}.npy")
        # an empty file cannot be mapped
        self._values: np.ndarray = np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") if self.offsets[-1] else np.zeros(0, dtype=dtype)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self._values[self.offsets[index] : self.offsets[index + 1]]
