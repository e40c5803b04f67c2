"""DPO: learn to prefer the chosen answer, held to a reference model.

Sees token ids and masks; knows nothing about rows, templates or devices. Shapes: A answers, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from largeforge.batch import AnswerBatch
from largeforge.contract import Term
from largeforge.method.config import DPOConfig
from largeforge.method.preference import Referenced


class DPO(Referenced):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    With ``m = (log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))`` under the model p and the reference r, a pair's loss is

    - sigmoid: ``-(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m)``, s the label smoothing (Mitchell 2023, conservative DPO);
    - hinge: ``max(0, 1 - beta m)`` (SLiC, Zhao et al. 2023, arXiv:2305.10425);
    - ipo: ``(m - 1 / (2 beta))^2``, of log-probabilities averaged over an answer's tokens (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    Averaged over pairs. The implied reward of an answer, as it is logged, is ``beta (log p - log r)``.
    """

    config: DPOConfig

    def loss(self, batch: AnswerBatch) -> list[Term]:
        logprob = self.answer_logprob(batch)
        ratio_A = logprob.sum_A - self.reference_logprob(batch)
        self.note_margin(*(self.config.beta * ratio_A.detach()).view(-1, 2).T)
        if self.config.loss == "ipo":
            ratio_A = ratio_A / logprob.count_A
        margin_P = ratio_A[0::2] - ratio_A[1::2]
        return [Term("preference", self.pair_loss(margin_P).sum())]

    def pair_loss(self, margin_P: Tensor) -> Tensor:
        """Loss of each pair from its margin m, [P]."""
        beta, smoothing = self.config.beta, self.config.label_smoothing
        if self.config.loss == "hinge":
            return torch.relu(1 - beta * margin_P)
        if self.config.loss == "ipo":
            return (margin_P - 1 / (2 * beta)) ** 2
        return -(1 - smoothing) * logsigmoid(beta * margin_P) - smoothing * logsigmoid(-beta * margin_P)
