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
            return torch.linalg.vecdot(p, log_p - log_q), -p
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
        return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1), None


def tail_of(logprob_NK: Tensor) -> Tensor:
    """Log-probability of every outcome that is not among these, [N, 1]."""
    return (1 - logprob_NK.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log()


def outcomes(logits_NV: Tensor, ids_NK: Tensor | None, *, width: int, temperature: float) -> Tensor:
    """A student's log-probabilities of a teacher's outcomes, [N, K]."""
    if ids_NK is None:
        logits_NV = logits_NV[:, :width]
        return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)
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
    """The divergence and the negative log-likelihood of a linear head, mixed, without ever holding all logits of either model.

    Returns ``a D + b NLL`` for the coefficients (a, b), and the sums D and NLL without a gradient of their own: one gradient by logits is made of both,
    chunk by chunk with the values, as in ChunkedNLL (head.py), so that it meets hidden states and weights once. Logits have the compute dtype,
    distributions fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, teaching: Teaching, divergence: Divergence, coefficients: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        sums = torch.zeros(2, dtype=torch.float32, device=hidden_NH.device)
        grad_hidden = torch.empty_like(hidden_NH) if wants_hidden else None
        grad_weight = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device) if wants_weight else None
        with torch.autocast(device, enabled=False):
            weight = weight_VH.to(dtype)
            for start in range(0, len(targets_N), CHUNK):
                rows = slice(start, start + CHUNK)
                hidden = hidden_NH[rows].to(dtype)
                logits = (hidden @ weight.T).float()
                wanted = wants_hidden or wants_weight
                grad = _chunk(logits, targets_N[rows, None], teaching.log_p(rows, divergence.temperature), divergence, coefficients, sums, wanted=wanted)
                if grad is None:
                    continue
                grad_scores = grad.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = grad_scores @ weight
                if grad_weight is not None:
                    grad_weight.addmm_(grad_scores.T, hidden) if dtype == torch.float32 else grad_weight.add_(grad_scores.T @ hidden)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype))
        found = coefficients[0] * sums[0] + coefficients[1] * sums[1], sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_hidden, grad_weight = (None if one is None else one * grad.to(one.dtype) for one in ctx.saved_tensors)
        return grad_hidden, grad_weight, None, None, None, None


def _chunk(
    logits: Tensor,
    targets: Tensor,
    taught: tuple[Tensor, Tensor | None],
    divergence: Divergence,
    coefficients: tuple[float, float],
    sums: Tensor,
    *,
    wanted: bool,
) -> Tensor | None:
    """Add a chunk's divergence and negative log-likelihood to the sums; return the gradient of their mixture by logits, where it is wanted."""
    temperature, (learns, likes) = divergence.temperature, coefficients
    log_p, ids = taught
    logprob = torch.log_softmax(logits, dim=-1)
    sums[1] -= logprob.gather(1, targets).sum()
    grad = None
    if ids is None:
        width = log_p.shape[1]
        shared = temperature == 1 and width == logits.shape[1]  # then both terms are of one distribution
        log_q = logprob if shared else outcomes(logits, None, width=width, temperature=temperature)
        value, weighted = divergence(log_p, log_q)
        if wanted:
            q = log_q.exp()
            scale = temperature * learns
            # q (likes - scale * sum of weighted) + scale * weighted
            own = weighted.sum(-1, keepdim=True).mul_(-scale)
            grad = torch.zeros_like(logits) if width < logits.shape[1] else q
            grad[:, :width] = q.mul_(own.add_(likes) if shared else own).add_(weighted, alpha=scale)
    else:
        shared = temperature == 1
        log_all = logprob if shared else torch.log_softmax(logits / temperature, dim=-1)
        chosen = log_all.gather(1, ids.long())
        log_q = torch.cat([chosen, tail_of(chosen)], dim=1)
        value, weighted = divergence(log_p, log_q)
        if wanted:
            # every token of the tail has its share of the tail's gradient; a chosen one has its own
            scale = temperature * learns
            whole = weighted.sum(-1, keepdim=True)
            nll = likes if shared else 0.0
            grad = log_all.exp().mul_(scale * (weighted[:, -1:] / log_q[:, -1:].exp() - whole) + nll)
            grad.scatter_(1, ids.long(), scale * (weighted[:, :-1] - chosen.exp() * whole) + nll * chosen.exp())
    sums[0] += value.sum() * temperature**2
    if grad is not None and likes:
        if not shared:
            grad += logprob.exp_().mul_(likes)
        grad.scatter_add_(1, targets, torch.full_like(targets, -likes, dtype=grad.dtype))
    return grad
