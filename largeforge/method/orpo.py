"""ORPO: learn the chosen answer and its odds over the rejected one, in one pass.

Sees token ids and masks; knows nothing about rows, templates or devices. Shapes: A answers, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from largeforge.batch import AnswerBatch
from largeforge.contract import Term
from largeforge.method.config import ORPOConfig
from largeforge.method.preference import Preference


class ORPO(Preference):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, eq. 6-7).

    ``NLL(chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected))``, where ``odds = p / (1 - p)`` and
    ``log p`` is the mean log-probability of an answer's supervised tokens. NLL is averaged over tokens, the other term over pairs.
    """

    config: ORPOConfig

    def loss(self, batch: AnswerBatch) -> list[Term]:
        logprob = self.answer_logprob(batch)
        mean_A = logprob.mean_A
        odds_A = log_odds(mean_A)
        self.note_margin(*(self.config.beta * mean_A.detach()).view(-1, 2).T)
        margin_P = odds_A[0::2] - odds_A[1::2]
        return [Term("nll", -logprob.sum_A[0::2].sum()), Term("preference", -logsigmoid(margin_P).sum(), coefficient=self.config.beta)]

    def weights(self, batch: AnswerBatch) -> dict[str, int]:
        tokens_A = torch.bincount(batch.answer_N, minlength=batch.num_answers)
        return {"nll": int(tokens_A[0::2].sum()), **super().weights(batch)}


def log_odds(logprob: Tensor) -> Tensor:
    """``log(p / (1 - p))`` from ``log p`` < 0, exact near p = 1 where ``1 - exp`` cancels."""
    return logprob - torch.log(-torch.expm1(logprob))
