"""A cache of keys and values that grows in place, for transformers' own attention; knows nothing about prompts.

transformers' DynamicLayer copies everything it holds at every token: a fifth of a decoding step on a CPU (120 rows, smollm2).
Shapes: B rows, H key and value heads, T positions, D head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROOM = 64  # positions that a full buffer grows by


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: views of buffers that have room for tokens to come."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append BHTD states; return all states so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = _with_room(key_states, 0), _with_room(value_states, 0)
            length = 0
        else:
            length = self.keys.shape[-2]
        end = length + key_states.shape[-2]
        if end > self._keys.shape[-2]:
            self._keys, self._values = _grown(self._keys, length, end), _grown(self._values, length, end)
        self._keys[..., length:end, :] = key_states
        self._values[..., length:end, :] = value_states
        self.keys, self.values = self._keys[..., :end, :], self._values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._replace(self._keys[indices], self._values[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._replace(self._keys.repeat_interleave(repeats, dim=0), self._values.repeat_interleave(repeats, dim=0))

    def _replace(self, keys: Tensor, values: Tensor) -> None:
        length = self.keys.shape[-2]
        self._keys, self._values = keys, values
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """Return an empty cache for a network of this config; layers of other kinds (sliding windows ...) stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    return cache


def _with_room(states: Tensor, end: int) -> Tensor:
    rows, heads, _, width = states.shape
    return states.new_empty(rows, heads, end + ROOM, width)


def _grown(buffer: Tensor, length: int, end: int) -> Tensor:
    grown = _with_room(buffer, end)
    grown[..., :length, :] = buffer[..., :length, :]
    return grown
