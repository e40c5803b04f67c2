"""Pairs for tests of methods of preference: made here, padded or packed, and their log-probabilities the plain way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largeforge.batch import AnswerBatch
from largeforge.data.batches import collate_answers
from tests.method.conftest import VOCABULARY

Answer = tuple[list[int], list[int]]
"""Prompt and answer, token ids."""


def make_pairs(count: int, *, seed: int = 3) -> list[tuple[Answer, Answer]]:
    """(chosen, rejected) of one prompt each, of 2 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        found: list[int] = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        return found

    pairs = []
    for _ in range(count):
        prompt = ids(2, 8)
        pairs.append(((prompt, ids(2, 10)), (prompt, ids(2, 10))))
    return pairs


def tokens(answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    prompt, said = answer
    return np.array([*prompt, *said], dtype=np.int32), np.array([False] * len(prompt) + [True] * len(said))


def batch_of(pairs: Sequence[tuple[Answer, Answer]], *, packed: bool = False, annotations: dict[str, Tensor] | None = None) -> AnswerBatch:
    """Pairs in one micro-batch: a sequence an answer, or everything in one packed sequence."""
    answers = [answer for pair in pairs for answer in pair]
    sequences = [[tokens(answer) for answer in answers]] if packed else [[tokens(answer)] for answer in answers]
    return collate_answers(sequences, [True, False] * len(pairs), pad_id=0, annotations=annotations or {})


def plain_logprobs(network: Any, answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    """Sum of the log-probabilities of each answer's tokens, one forward pass an answer over all logits; and their number."""
    sums, counts = [], []
    for prompt, said in answers:
        ids = torch.tensor([[*prompt, *said]])
        logits = network(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        sums.append(logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
        counts.append(len(said))
    return torch.stack(sums), torch.tensor(counts)


def gradient(loss: Tensor, network: Any) -> dict[str, Tensor]:
    """Gradient of a loss by parameter; the network's own is left empty."""
    network.zero_grad()
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}
    network.zero_grad()
    return found
