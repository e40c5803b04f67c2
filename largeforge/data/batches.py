"""Tokens of rows laid side by side as tensors: padded or packed sequences, answers told apart. Knows nothing about tables or steps.

Shapes: B sequences, T positions, A answers, N supervised tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from largeforge.batch import AnswerBatch, TokenBatch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Tokens = tuple[np.ndarray, np.ndarray]
    """Ids (int32) and supervised flags (bool) of one example."""


def collate(sequences: Sequence[Sequence[Tokens]], *, pad_id: int, annotations: dict[str, Tensor] | None = None) -> TokenBatch:
    """Lay examples behind one another in sequences padded on the right to the longest.

    Position ids start again at every example; padding goes on counting, so that it belongs to the example before it.
    """
    import torch

    width = max(sum(len(ids) for ids, _ in sequence) for sequence in sequences)
    ids_BT = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    positions_BT = torch.zeros((len(sequences), width), dtype=torch.int64)
    supervised_BT = torch.zeros((len(sequences), width), dtype=torch.bool)
    num_tokens = 0
    for b, sequence in enumerate(sequences):
        at = begin = 0
        for ids, supervised in sequence:
            begin, at = at, at + len(ids)
            ids_BT[b, begin:at] = torch.from_numpy(ids)
            supervised_BT[b, begin:at] = torch.from_numpy(supervised)
            positions_BT[b, begin:at] = torch.arange(at - begin)
        positions_BT[b, begin:] = torch.arange(width - begin)
        num_tokens += at
    num_examples = sum(len(sequence) for sequence in sequences)
    return TokenBatch(ids_BT, positions_BT, supervised_BT, num_examples=num_examples, num_tokens=num_tokens, annotations=annotations or {})


def collate_answers(sequences: Sequence[Sequence[Tokens]], desirable: Sequence[bool], *, pad_id: int, annotations: dict[str, Tensor]) -> AnswerBatch:
    """Lay answers with their prompts side by side, and say which answer each supervised token belongs to."""
    import torch

    if not desirable:
        return AnswerBatch(empty(annotations), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    tokens = collate(sequences, pad_id=pad_id, annotations=annotations)
    counts = torch.tensor([int(flags.sum()) for sequence in sequences for _, flags in sequence])
    answer_N = torch.arange(len(desirable)).repeat_interleave(counts)
    return AnswerBatch(tokens, answer_N, torch.tensor(list(desirable), dtype=torch.bool))


def empty(annotations: dict[str, Tensor] | None = None) -> TokenBatch:
    """What a rank is given that has nothing to do while others have: two positions, of which nothing is learnt."""
    import torch

    zeros = torch.zeros((1, 2), dtype=torch.int64)
    return TokenBatch(zeros, torch.arange(2)[None], torch.zeros((1, 2), dtype=torch.bool), num_examples=0, num_tokens=0, annotations=annotations or {})
