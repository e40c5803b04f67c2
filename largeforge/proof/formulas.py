"""Papers' formulas over all logits at once, for methods that TRL has no trainer of. Slow and plain on purpose. Shapes: A answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from largeforge.contract import AnswerBatch
from largeforge.errors import InputError
from largeforge.proof.peers import Peer


def formula_of(method: str, *, config: Any, network: Any) -> Peer:
    """Return a method's formula as a peer. Raises InputError where there is none."""
    if method != "SimPO":
        raise InputError(f"{method} has nothing to be compared with.", next_step="verify=invariance or verify=resume")

    def loss(batch: AnswerBatch) -> Tensor:
        """Meng et al. 2024, arXiv:2405.14734, eq. 6."""
        sum_A, count_A = answers(network, batch)
        mean_A = config.beta * sum_A / count_A
        return -logsigmoid(mean_A[0::2] - mean_A[1::2] - config.margin).mean()

    return Peer("the paper's formula", network, loss)


def answers(network: Any, batch: AnswerBatch) -> tuple[Tensor, Tensor]:
    """Sum of the log-probabilities of each answer's tokens, and their number, one forward pass an answer."""
    sums, counts = [], []
    for ids, supervised in zip(batch.tokens.input_ids_BT, batch.tokens.supervised_BT, strict=True):
        end = int(supervised.nonzero().max()) + 1
        logits = network(input_ids=ids[None, :end], use_cache=False).logits[0, :-1].float().log_softmax(-1)
        chosen = logits.gather(1, ids[1:end, None]).squeeze(1)
        sums.append(chosen[supervised[1:end]].sum())
        counts.append(int(supervised.sum()))
    return torch.stack(sums), torch.tensor(counts, device=sums[0].device)
