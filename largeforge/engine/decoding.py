"""One batch of prompts, answered token by token on any causal LM of transformers.

Knows token ids only: nothing about templates, text or requests. Rows that have ended leave the batch.
Shapes: B rows still answering, T positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from largeforge.engine.choosing import Choosing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_SHARED = 8  # tokens that prompts must share at their start to be read once for all
KEEP_SHARE = 0.75  # the cache is cut to the rows still answering once fewer than this share of it are


class Decoding:
    """A batch under way. Call `step` under inference_mode until `done`.

    Args:
        network: in eval mode.
        prompts: token ids of each row, none empty.
        choosing: how each row's tokens are chosen, and when it is over.
    """

    def __init__(self, network: PreTrainedModel, prompts: Sequence[Sequence[int]], choosing: Sequence[Choosing]) -> None:
        from largeforge.engine.cache import growing_cache  # transformers' cache classes: imported when something is answered

        self.network = network
        self.choosing = choosing
        self._rows = list(range(len(prompts)))  # batch row -> prompt
        self._cache: Any = growing_cache(_base(network).config)
        self._shared = shared_prefix(prompts)
        prompts = [prompt[len(self._shared) :] for prompt in prompts]
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        filler = next(iter(choosing[0].ends), 0)
        self._input_ids_BT = torch.tensor([[filler] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)], device=network.device)
        self._mask_BT = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=network.device)
        self._positions_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0) + len(self._shared)
        self._mask_BT = torch.cat([self._mask_BT.new_ones(len(prompts), len(self._shared)), self._mask_BT], dim=1)

    @property
    def answers(self) -> list[list[int]]:
        """Tokens of each answer so far."""
        return [row.answer for row in self.choosing]

    @property
    def ended_by(self) -> list[str | None]:
        """What ended each answer: "stop" or "length"; None where it goes on."""
        return [row.ended_by for row in self.choosing]

    @property
    def done(self) -> bool:
        return not self._rows

    def step(self) -> list[tuple[int, int]]:
        """Compute one token for every row still answering; return (prompt, token) for those that go on their answers."""
        if self._shared:
            self._read_shared()
        logits_BV = self._logits()
        tokens = self._choose(logits_BV)
        said, staying = [], []
        for place, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            one = self.choosing[row]
            if one.ended_by is not None:
                continue
            said_before = len(one.answer)
            if one.take(token):
                staying.append(place)
            if len(one.answer) > said_before:
                said.append((row, token))
        self._go_on(tokens, staying)
        return said

    def _read_shared(self) -> None:
        """Read what all prompts begin with once, for all of them."""
        ids_1T = torch.tensor([self._shared], device=self._mask_BT.device)
        with last_position_only(self.network):
            self.network(input_ids=ids_1T, past_key_values=self._cache, use_cache=True)
        self._cache.batch_repeat_interleave(len(self._rows))
        self._shared = []

    def _logits(self) -> Tensor:
        with last_position_only(self.network):
            out = self.network(
                input_ids=self._input_ids_BT,
                attention_mask=self._mask_BT,
                position_ids=self._positions_BT,
                past_key_values=self._cache,
                use_cache=True,
            )
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV

    def _choose(self, logits_BV: Tensor) -> list[int]:
        tokens: list[int] = logits_BV.float().argmax(-1).tolist()  # in bf16 argmax takes ten times as long on a CPU
        for place, row in enumerate(self._rows):
            if not self.choosing[row].plain and self.choosing[row].ended_by is None:
                tokens[place] = self.choosing[row].choose(logits_BV[place])
        return tokens

    def _go_on(self, tokens: list[int], staying: list[int]) -> None:
        """Make the next step's input; drop the rows that have ended when enough of them have."""
        kept = staying if len(staying) < KEEP_SHARE * len(self._rows) or not staying else list(range(len(self._rows)))
        if len(kept) < len(self._rows):
            places = torch.tensor(kept, device=self._mask_BT.device, dtype=torch.long)
            if kept:
                self._cache.batch_select_indices(places)
            self._mask_BT, self._positions_BT = self._mask_BT[places], self._positions_BT[places]
        self._rows = [self._rows[place] for place in kept]
        self._input_ids_BT = torch.tensor([[tokens[place]] for place in kept], device=self._mask_BT.device)
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(kept), 1)], dim=1)
        self._positions_BT = self._positions_BT[:, -1:] + 1


@contextmanager
def last_position_only(network: PreTrainedModel) -> Iterator[None]:
    """Let the output head see the last position only, and that in one piece of memory.

    transformers' own `logits_to_keep=1` hands the head a strided slice, for which torch copies the head's weights once per row:
    11 of 12 s of a prompt of 32 x 60 tokens on a CPU (smollm2, one thread).
    """
    head: Any = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, -1:].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return what all prompts begin with, the last token of the shortest left out, if it is worth reading apart: else nothing."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    count = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))
    count = min(count, min(map(len, prompts)) - 1)
    return first[:count] if len(prompts) > 1 and count >= MIN_SHARED else []


def _base(network: PreTrainedModel) -> Any:
    return network.get_base_model() if hasattr(network, "peft_config") else network  # type: ignore[operator]
