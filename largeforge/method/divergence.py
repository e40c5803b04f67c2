"""How far a student's distribution over tokens is from a teacher's: three divergences, and their gradient without ever holding all logits.

Knows nothing about networks. Shapes: N supervised tokens, H hidden width, V vocabulary, K outcomes that are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

# As in head.py: tokens whose logits exist at one time.
CHUNK = 128
SMALLEST = 1e-9  # what is left for the tail where everything else was told apart

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True)
class Divergence:
    """A divergence of two distributions over the same outcomes, from their logarithms.

    With the teacher p, the student q and ``m = beta p + (1 - beta) q``:

    - forward_kl: ``sum p log(p / q)`` (Hinton et al. 2015, arXiv:1503.02531, up to a constant);
    - reverse_kl: ``sum q log(q / p)`` (Gu et al. 2024, arXiv:2306.08543);
    - jsd: ``beta sum p log(p / m) + (1 - beta) sum q log(q / m)`` (Agarwal et al. 2024, arXiv:2306.13649, eq. 1).

    Args:
        kind: which.
        beta: of jsd, in (0, 1).
        temperature: both distributions are softened by it, and the value is multiplied by its square, so that gradients keep their size.
    """

    kind: Kind
    beta: float = 0.5
    temperature: float = 1.0

    def __call__(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence of each row [N], and ``q * d divergence / d q`` up to a multiple of q [N, K]; temperature left to the caller."""
        if self.kind == "forward_kl":
            p = log_p.exp()
            return (p * (log_p - log_q)).sum(-1), -p
        q = log_q.exp()
        if self.kind == "reverse_kl":
            weighted = q * (log_q - log_p)
            return weighted.sum(-1), weighted
        p = log_p.exp()
        log_m = (self.beta * p + (1 - self.beta) * q).log()
        weighted = (1 - self.beta) * q * (log_q - log_m)
        return (self.beta * p * (log_p - log_m)).sum(-1) + weighted.sum(-1), weighted


class Teaching(Protocol):
    """What a teacher says about supervised tokens."""

    def log_p(self, rows: slice, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of outcomes [n, K], fp32; and which tokens they are [n, K - 1], the last outcome being every other token.

        None for the tokens stands for the first K of the vocabulary, each an outcome.
        """


@dataclass(frozen=True)
class Kept:
    """A teacher's most likely tokens as they were kept: ids [N, K] and log-probabilities [N, K], at the temperature in use.

    Every other token is one more outcome, so that no mass is lost or shared out: the divergence over these outcomes is never above that over all tokens
    (data processing), and equal to it where all are kept.
    """

    ids_NK: Tensor
    logprob_NK: Tensor

    def log_p(self, rows: slice, temperature: float) -> tuple[Tensor, Tensor | None]:
        logprob = self.logprob_NK[rows]
        return torch.cat([logprob, tail_of(logprob)], dim=1), self.ids_NK[rows]


@dataclass(frozen=True)
class Asked:
    """A teacher in this process: what its head was given [N, H], and the head's weight [V, H]; or its logits [N, V].

    Models of one tokenizer may have heads of different sizes, padded to suit a device: a teacher is asked about the rows that the student has too.
    """

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    logits_NV: Tensor | None = None

    def log_p(self, rows: slice, temperature: float) -> tuple[Tensor, Tensor | None]:
        if self.logits_NV is not None:
            logits = self.logits_NV[rows].float()
        else:
            assert self.hidden_NH is not None and self.weight_VH is not None
            logits = (self.hidden_NH[rows].to(self.weight_VH.dtype) @ self.weight_VH.T).float()
        return torch.log_softmax(logits / temperature, dim=-1), None


def tail_of(logprob_NK: Tensor) -> Tensor:
    """Log-probability of every outcome that is not among these, [N, 1]."""
    return (1 - logprob_NK.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log()


def outcomes(logits_NV: Tensor, ids_NK: Tensor | None, *, width: int, temperature: float) -> Tensor:
    """A student's log-probabilities of a teacher's outcomes, [N, K]."""
    if ids_NK is None:
        return torch.log_softmax(logits_NV[:, :width] / temperature, dim=-1)
    chosen = torch.log_softmax(logits_NV / temperature, dim=-1).gather(1, ids_NK.long())
    return torch.cat([chosen, tail_of(chosen)], dim=1)


def plain_sums(logits_NV: Tensor, targets_N: Tensor, teaching: Teaching, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Sums of the divergence and of the negative log-likelihood over all logits at once: for heads that are no plain linear layer."""
    logits = logits_NV.float()
    log_p, ids = teaching.log_p(slice(None), divergence.temperature)
    log_q = outcomes(logits, ids, width=log_p.shape[1], temperature=divergence.temperature)
    value, _ = divergence(log_p, log_q)
    return value.sum() * divergence.temperature**2, torch.nn.functional.cross_entropy(logits, targets_N, reduction="sum")


class ChunkedDistillation(torch.autograd.Function):
    """Sums of the divergence and of the negative log-likelihood of a linear head, without ever holding all logits of either model.

    Gradients are taken with the values, chunk by chunk, as in ChunkedNLL (head.py); logits have the compute dtype, distributions fp32.
    Of the two gradients only those are made whose weight in the loss is not zero.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, teaching: Teaching, divergence: Divergence, wants: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        sums = [torch.zeros((), dtype=torch.float32, device=hidden_NH.device) for _ in range(2)]
        for_hidden = [torch.empty_like(hidden_NH) if wanted and wants_hidden else None for wanted in wants]
        for_weight = [torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device) if wanted and wants_weight else None for wanted in wants]
        with torch.autocast(device, enabled=False):
            weight = weight_VH.to(dtype)
            for start in range(0, len(targets_N), CHUNK):
                rows = slice(start, start + CHUNK)
                hidden, targets = hidden_NH[rows].to(dtype), targets_N[rows, None]
                logits = (hidden @ weight.T).float()
                found = (_divergence(logits, teaching, rows, divergence, sums[0]), _likelihood(logits, targets, sums[1]))
                for wanted, grad, to_hidden, to_weight in zip(wants, found, for_hidden, for_weight, strict=True):
                    if not wanted:
                        continue
                    grad_scores = grad().to(dtype)
                    if to_hidden is not None:
                        to_hidden[rows] = grad_scores @ weight
                    if to_weight is not None:
                        to_weight += grad_scores.T @ hidden
        ctx.save_for_backward(*for_hidden, *(None if grad is None else grad.to(weight_VH.dtype) for grad in for_weight))
        return sums[0], sums[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        kept = ctx.saved_tensors
        return _scaled(kept[:2], grads), _scaled(kept[2:], grads), None, None, None, None


def _divergence(logits: Tensor, teaching: Teaching, rows: slice, divergence: Divergence, total: Tensor) -> Any:
    """Add a chunk's divergence to the total; return what makes its gradient by logits."""
    temperature = divergence.temperature
    log_p, ids = teaching.log_p(rows, temperature)
    if ids is None:
        log_q = outcomes(logits, None, width=log_p.shape[1], temperature=temperature)
        value, weighted = divergence(log_p, log_q)
        total += value.sum() * temperature**2

        def dense() -> Tensor:
            grad = torch.zeros_like(logits) if log_p.shape[1] < logits.shape[1] else torch.empty_like(logits)
            grad[:, : log_p.shape[1]] = temperature * (weighted - log_q.exp() * weighted.sum(-1, keepdim=True))
            return grad

        return dense
    log_all = torch.log_softmax(logits / temperature, dim=-1)
    chosen = log_all.gather(1, ids.long())
    log_q = torch.cat([chosen, tail_of(chosen)], dim=1)
    value, weighted = divergence(log_p, log_q)
    total += value.sum() * temperature**2

    def grouped() -> Tensor:
        # every token of the tail has its share of the tail's gradient; a chosen one has its own
        whole = weighted.sum(-1, keepdim=True)
        q_all = log_all.exp()
        grad = q_all * (weighted[:, -1:] / log_q[:, -1:].exp() - whole)
        grad.scatter_(1, ids.long(), weighted[:, :-1] - chosen.exp() * whole)
        return grad.mul_(temperature)

    return grouped


def _likelihood(logits: Tensor, targets: Tensor, total: Tensor) -> Any:
    """Add a chunk's negative log-likelihood to the total; return what makes its gradient by logits."""
    logprob = torch.log_softmax(logits, dim=-1)
    total -= logprob.gather(1, targets).sum()

    def gradient() -> Tensor:
        return logprob.exp().scatter_add_(1, targets, torch.full_like(targets, -1, dtype=logprob.dtype))

    return gradient


def _scaled(kept: Any, grads: tuple[Tensor, ...]) -> Tensor | None:
    parts = [one * scale.to(one.dtype) for one, scale in zip(kept, grads, strict=True) if one is not None]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]
