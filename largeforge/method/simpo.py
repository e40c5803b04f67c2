"""SimPO: prefer the answer whose tokens are likelier on average, by a margin; no reference model.

Sees token ids and masks; knows nothing about rows, templates or devices. Shapes: A answers, P pairs.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from largeforge.batch import AnswerBatch
from largeforge.contract import Term
from largeforge.method.config import SimPOConfig
from largeforge.method.preference import Preference


class SimPO(Preference):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734, eq. 6).

    ``-log sigmoid(beta * mean log p(chosen) - beta * mean log p(rejected) - margin)``, averaged over pairs; the mean is over an answer's
    supervised tokens.
    """

    config: SimPOConfig

    def loss(self, batch: AnswerBatch) -> list[Term]:
        reward_A = self.config.beta * self.answer_logprob(batch).mean_A
        self.note_margin(*reward_A.detach().view(-1, 2).T)
        return [Term("preference", -logsigmoid(reward_A[0::2] - reward_A[1::2] - self.config.margin).sum())]
