"""Log-probabilities of single tokens, and which example each belongs to. Knows nothing about losses.

Shapes: B sequences, T positions, N supervised tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largeforge.batch import TokenBatch

# As in head.py: tokens whose logits exist at one time.
CHUNK = 128


def example_of_token(batch: TokenBatch) -> Tensor:
    """int64 [N]: which example of the batch (0 .. num_examples - 1, row after row) each supervised token belongs to."""
    starts_BT = batch.position_ids_BT == 0
    starts_BT[:, 0] = True
    number_BT = starts_BT.flatten().cumsum(0).view_as(starts_BT) - 1
    return number_BT[batch.supervised_BT]


class ChunkedLogprobs(torch.autograd.Function):
    """Log-probability of each target under a linear head [N], without ever holding all logits.

    What each token's hidden state would get is kept with the loss, chunk by chunk (d log p / d logits = one_hot - softmax), and scaled by
    the gradient of that token when it is known. Where the head itself learns, its logits are made again in the backward pass. Logits
    have the compute dtype, log-sum-exp and softmax fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        logprob_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        grad_hidden = torch.empty_like(hidden_NH) if wants_hidden else None
        with torch.autocast(device, enabled=False):
            weight = weight_VH.to(dtype)
            for start in range(0, len(targets_N), CHUNK):
                rows = slice(start, start + CHUNK)
                targets = targets_N[rows, None]
                scores, logprob_N[rows] = _normalised(hidden_NH[rows].to(dtype), weight, targets)
                if grad_hidden is not None:
                    scores.neg_().scatter_add_(1, targets, torch.ones_like(targets, dtype=scores.dtype))
                    grad_hidden[rows] = scores.to(dtype) @ weight
        ctx.dtype = dtype
        ctx.save_for_backward(grad_hidden, *((hidden_NH, weight_VH, targets_N) if wants_weight else ()))
        return logprob_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_hidden, *kept = ctx.saved_tensors
        (grad_N,) = grads
        for_hidden = None if grad_hidden is None else grad_hidden * grad_N[:, None].to(grad_hidden.dtype)
        if not kept:
            return for_hidden, None, None
        hidden_NH, weight_VH, targets_N = kept
        with torch.autocast(hidden_NH.device.type, enabled=False):
            weight = weight_VH.to(ctx.dtype)
            for_weight = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device)
            for start in range(0, len(targets_N), CHUNK):
                rows = slice(start, start + CHUNK)
                hidden, targets = hidden_NH[rows].to(ctx.dtype), targets_N[rows, None]
                scores, _ = _normalised(hidden, weight, targets)
                scores.neg_().scatter_add_(1, targets, torch.ones_like(targets, dtype=scores.dtype)).mul_(grad_N[rows, None])
                for_weight += scores.to(ctx.dtype).T @ hidden
        return for_hidden, for_weight.to(weight_VH.dtype), None


def _normalised(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [n, V] (fp32) of a chunk, and the log-probability [n] of each target."""
    scores = (hidden @ weight.T).float()
    scores -= scores.amax(dim=1, keepdim=True)
    chosen = scores.gather(1, targets).squeeze(1)
    sums = scores.exp_().sum(dim=1, keepdim=True)
    logprob = chosen - sums.squeeze(1).log()
    return scores.div_(sums), logprob
