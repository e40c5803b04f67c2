"""The output head where a loss is taken, and nowhere else: negative log-likelihood of supervised tokens.

Works on any Hugging Face causal LM, adapted or not, through a forward pre-hook on its output embeddings; knows nothing
about methods. Shapes: B sequences, T positions, N supervised tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from largeforge.batch import TokenBatch
from largeforge.method.attention import ExampleAttention
from largeforge.method.likelihood import ChunkedLogprobs

# Tokens whose logits exist at one time. Measured on 1,328 tokens, V 49,152, bf16, one CPU thread: 0.61 s at 128, 0.73 at 256,
# 0.59 at 512, against 1.39 for all logits at once and 1.08 for torch's linear_cross_entropy (4.7 s with its own chunks).
CHUNK = 128


class SupervisedHead:
    """Runs a network and takes the loss at supervised positions only.

    Where the head is a plain linear layer and nothing follows it, its logits are made in chunks and never held for the
    backward pass; any other head (an adapter on it, a bias, soft-capping) makes the logits of the N positions at once.
    Which of both holds is found on the first batch, by comparing one row, so that no list of models is kept.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.head: nn.Module = network.get_output_embeddings()
        self.attention = ExampleAttention(network)
        # transformers keeps packed examples apart under flash only in a batch of one row, and mixes them in silence in any other
        # (modeling_flash_attention_utils._is_packed_sequence): rows are laid out as one, since positions start again in each
        self.as_one = str(getattr(getattr(network, "config", None), "_attn_implementation", "")).startswith("flash")
        self.chunked: bool | None = None if type(self.head) is nn.Linear and self.head.bias is None else False

    def nll(self, batch: TokenBatch) -> Tensor:
        """Return the sum of the negative log-likelihoods of the batch's supervised tokens (scalar, fp32)."""
        predicts_BT = predicting(batch.supervised_BT)
        targets_N = batch.input_ids_BT[batch.supervised_BT]
        if self.chunked is None:
            self.chunked = self._head_is_plain(batch, predicts_BT)
        if not self.chunked:
            return functional.cross_entropy(self._forward(batch, predicts_BT)[0].float(), targets_N, reduction="sum")
        _, hidden_NH = self._forward(batch, predicts_BT, logits_rows=1)
        return ChunkedNLL.apply(hidden_NH, self.head.weight, targets_N)  # type: ignore[no-any-return, no-untyped-call]

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Return the log-probability of each supervised token, [N] fp32, in the order of `input_ids[supervised]`."""
        predicts_BT = predicting(batch.supervised_BT)
        targets_N = batch.input_ids_BT[batch.supervised_BT]
        if self.chunked is None:
            self.chunked = self._head_is_plain(batch, predicts_BT)
        if not self.chunked:
            logits_NV = self._forward(batch, predicts_BT)[0].float()
            return -functional.cross_entropy(logits_NV, targets_N, reduction="none")
        _, hidden_NH = self._forward(batch, predicts_BT, logits_rows=1)
        return ChunkedLogprobs.apply(hidden_NH, self.head.weight, targets_N)  # type: ignore[no-any-return, no-untyped-call]

    def states(self, batch: TokenBatch) -> Tensor | None:
        """Return what a plain linear head is given at the positions that predict supervised tokens, [N, H]; None where the head is more than that."""
        predicts_BT = predicting(batch.supervised_BT)
        if self.chunked is None:
            self.chunked = self._head_is_plain(batch, predicts_BT)
        return self._forward(batch, predicts_BT, logits_rows=1)[1] if self.chunked else None

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the logits [N, V] that predict the batch's supervised tokens, in the order of `input_ids[supervised]`."""
        return self._forward(batch, predicting(batch.supervised_BT))[0]

    def _forward(self, batch: TokenBatch, predicts_BT: Tensor, *, logits_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Run the network; the head sees the chosen rows alone. Returns logits and what the head could have seen [N, H]."""
        seen: list[Tensor] = []
        ids_BT, position_ids_BT = batch.input_ids_BT, batch.position_ids_BT
        if self.as_one:
            ids_BT, position_ids_BT, predicts_BT = ids_BT.reshape(1, -1), position_ids_BT.reshape(1, -1), predicts_BT.reshape(1, -1)

        def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(arguments[0][predicts_BT])
            return (seen[0] if logits_rows is None else seen[0][:logits_rows].detach(), *arguments[1:])

        # entered before the hook is there: it may try the network out
        with self.attention.within(position_ids_BT):
            handle = self.head.register_forward_pre_hook(keep)
            try:
                # no attention mask and no cache: only then does transformers keep packed examples apart by their positions
                output = self.network(input_ids=ids_BT, position_ids=position_ids_BT, use_cache=False)
            finally:
                handle.remove()
        return output.logits, seen[0]

    @torch.no_grad()
    def _head_is_plain(self, batch: TokenBatch, predicts_BT: Tensor) -> bool:
        one = TokenBatch(batch.input_ids_BT[:1, :2], batch.position_ids_BT[:1, :2], batch.supervised_BT[:1, :2], num_examples=1, num_tokens=2)
        first_BT = torch.zeros_like(predicts_BT[:1, :2])
        first_BT[0, 0] = True
        # a resumed run asks this again: what dropout draws here must not shift what it draws in training
        with torch.random.fork_rng():
            logits, hidden = self._forward(one, first_BT)
        return bool(torch.equal(logits, self.head(hidden).to(logits.dtype)))


def predicting(supervised_BT: Tensor) -> Tensor:
    """The positions whose logits predict supervised tokens: each one to the left of its token."""
    predicts_BT = torch.zeros_like(supervised_BT)
    predicts_BT[:, :-1] = supervised_BT[:, 1:]
    return predicts_BT


class ChunkedNLL(torch.autograd.Function):
    """Sum of negative log-likelihoods of a linear head without ever holding all logits.

    The gradient is taken with the loss, chunk by chunk: d loss / d logits = softmax - one_hot (the idea of Liger-Kernel's
    fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989). Logits have the compute dtype, log-sum-exp and softmax fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(device, enabled=False):
            weight = weight_VH.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
            grad_hidden = torch.empty_like(hidden_NH) if wants_hidden else None
            grad_weight = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device) if wants_weight else None
            for start in range(0, len(targets_N), CHUNK):
                hidden, targets = hidden_NH[start : start + CHUNK].to(dtype), targets_N[start : start + CHUNK, None]
                scores = (hidden @ weight.T).float()
                scores -= scores.amax(dim=1, keepdim=True)
                total -= scores.gather(1, targets).sum()
                sums = scores.exp_().sum(dim=1, keepdim=True)
                total += sums.log().sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                scores /= sums
                scores.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=scores.dtype))
                grad_scores = scores.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + CHUNK] = grad_scores @ weight
                if grad_weight is not None:
                    grad_weight += grad_scores.T @ hidden
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        (scale,) = grads
        return None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype), None if grad_weight is None else grad_weight * scale, None
