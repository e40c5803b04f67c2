"""Answers that the network being trained writes itself, in place of those of the rows. Knows nothing about losses.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largeforge.batch import TokenBatch


@torch.no_grad()
def answered(network: Any, batch: TokenBatch, *, max_tokens: int, temperature: float) -> TokenBatch:
    """Draw an answer to every prompt of a batch and return the batch with these: a prompt is what stands before an example's first supervised token.

    Draws from torch's global generator, whose state checkpoints hold. Annotations are dropped: they are about other answers.

    Args:
        network: in evaluation mode.
        batch: padded or packed; an empty one is returned as it is.
        max_tokens: longest answer.
        temperature: > 0.
    """
    prompts = prompts_of(batch)
    if not prompts:
        return batch
    device = batch.input_ids_BT.device
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.int64, device=device)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = prompt
        mask_BT[row, width - len(prompt) :] = 1
    ends = network.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    drawn_BT = network.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,  # a model's own settings for chatting would make it another distribution
        max_new_tokens=max_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
    )[:, width:]
    return laid_out(prompts, [until_end(row, ends) for row in drawn_BT], device)


def prompts_of(batch: TokenBatch) -> list[Tensor]:
    """Token ids before the first supervised token of each example that has one."""
    prompts = []
    for ids, positions, supervised in zip(batch.input_ids_BT, batch.position_ids_BT, batch.supervised_BT, strict=True):
        starts = [0, *(positions[1:] == 0).nonzero().flatten().add(1).tolist(), len(ids)]
        for start, end in zip(starts, starts[1:], strict=False):
            learnt = supervised[start:end].nonzero()
            if len(learnt):
                prompts.append(ids[start : start + int(learnt[0])])
    return prompts


def until_end(ids: Tensor, ends: list[int]) -> Tensor:
    """An answer up to its first end token, that included; whole where there is none."""
    for place, token in enumerate(ids.tolist()):
        if token in ends:
            return ids[: place + 1]
    return ids


def laid_out(prompts: list[Tensor], answers: list[Tensor], device: Any) -> TokenBatch:
    """Prompts with their answers, one a sequence, padded on the right; only answers are supervised."""
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.int64, device=device)
    supervised_BT = torch.zeros((len(prompts), width), dtype=torch.bool, device=device)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids_BT[row, : len(prompt)] = prompt
        ids_BT[row, len(prompt) : len(prompt) + len(answer)] = answer
        supervised_BT[row, len(prompt) : len(prompt) + len(answer)] = True
    positions_BT = torch.arange(width, device=device).expand(len(prompts), width).contiguous()
    tokens = sum(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    return TokenBatch(ids_BT, positions_BT, supervised_BT, num_examples=len(prompts), num_tokens=tokens)
